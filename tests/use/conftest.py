from collections.abc import Callable
from pathlib import Path

import pytest

import metalearn
from metalearn.config import build_source, read_config
from metalearn.types import Episodes
from metalearn.use import Learner


@pytest.fixture(scope="session")
def glyph_learner(glyph_run: Path) -> Learner:
    return metalearn.load(glyph_run, device="cpu")


@pytest.fixture(scope="session")
def sinusoid_learner(sinusoid_run: Path) -> Learner:
    return metalearn.load(sinusoid_run, device="cpu")


@pytest.fixture(scope="session")
def test_episodes() -> Callable[[Path], Episodes]:
    """The test episodes that a run's results.json was measured on."""

    def draw(run: Path) -> Episodes:
        config = read_config(run)
        return build_source(config).episodes("test", range(config.eval.num_episodes), seed=config.seed)

    return draw


@pytest.fixture(scope="session")
def glyph_episodes(glyph_run: Path, test_episodes: Callable[[Path], Episodes]) -> Episodes:
    return test_episodes(glyph_run)
