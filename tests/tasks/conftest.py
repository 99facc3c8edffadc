"""Where the tests of real data find it. Missing data is a failure, not a skip: a silent skip would certify nothing."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    beside_repository = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("METALEARN_DATA") or beside_repository).expanduser()
    if not (folder / "omniglot" / "images_background.zip").is_file():
        pytest.fail(
            f"The tests need the real Omniglot, and {folder / 'omniglot'} does not hold it. Set METALEARN_DATA to a"
            " folder with omniglot/images_background.zip and omniglot/images_evaluation.zip in it.",
            pytrace=False,
        )
    return folder


@pytest.fixture(scope="session")
def omniglot_root(data_folder: Path) -> Path:
    return data_folder / "omniglot"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that Omniglot is decoded once."""
    return tmp_path_factory.mktemp("cache")
