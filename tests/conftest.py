"""What every test starts from: one thread, and real data where the machine has them."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_DATA_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"

if "METALEARN_DATA" not in os.environ and _DATA_BESIDE_THE_REPOSITORY.is_dir():
    os.environ["METALEARN_DATA"] = str(_DATA_BESIDE_THE_REPOSITORY)
# Also for the processes that tests start: threads that spin for each other make a busy machine many times slower.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """A handler that one test leaves on the root logger would write to a stream that is closed in the next."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _pictures_without_layout() -> Iterator[None]:
    """Every run in a test draws its pictures; arranging them takes a third of such a run, and no number depends on it.

    What tests start as processes of their own draws them whole.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConstrainedLayoutEngine, "execute", lambda engine, figure: None)
        yield


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The folder of the real Omniglot. Missing data is a failure, not a skip: a silent skip would certify nothing."""
    folder = Path(os.environ.get("METALEARN_DATA", "")).expanduser() / "omniglot"
    if not (folder / "images_background.zip").is_file() and not (folder / "images_background").is_dir():
        pytest.fail(
            f"The tests need the real Omniglot, and {folder} does not hold it. Set METALEARN_DATA to a folder with"
            " omniglot/images_background.zip and omniglot/images_evaluation.zip in it.",
            pytrace=False,
        )
    return folder


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """The folder of the real CIFAR-100, a zip of PNG files; missing data is a failure."""
    folder = Path(os.environ.get("METALEARN_DATA", "")).expanduser() / "cifar100"
    if not (folder / "cifar100_png.zip").is_file():
        pytest.fail(
            f"The tests need the real CIFAR-100, and {folder} does not hold it. Set METALEARN_DATA to a folder with"
            " cifar100/cifar100_png.zip in it.",
            pytrace=False,
        )
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that each of the real data sets is decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def glyph_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 5-way 2-shot run on glyphs, never to be written to: copy it first."""
    folder = tmp_path_factory.mktemp("runs") / "glyphs"
    task = ("task=glyphs", "task.shots=2", "+task.num_alphabets=3", "+task.characters=8", "+task.drawings=8")
    return _trained(folder, *task, "model.filters=4", "inner.lr=0.1", "eval.num_inner_steps=3")


@pytest.fixture(scope="session")
def sinusoid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on sine waves, never to be written to: copy it first."""
    folder = tmp_path_factory.mktemp("runs") / "sinusoid"
    return _trained(folder, "task=sinusoid", "model.hidden=[8]", "eval.num_inner_steps=3")


def _trained(folder: Path, *overrides: str) -> Path:
    from metalearn import train

    sizes = ("meta.num_steps=4", "meta.batch_size=3", "eval.every=2", "eval.val_episodes=4", "eval.num_episodes=8")
    quiet = ("eval.baseline=false", "device=cpu", "logger=none", f"hydra.run.dir={folder}")
    assert train.main([*overrides, *sizes, *quiet]) == 0
    return folder
