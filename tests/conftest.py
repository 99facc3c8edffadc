"""What every test starts from: one thread, and real data where the machine has them."""

import os
from pathlib import Path

import pytest
import torch

_DATA_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"

if "METALEARN_DATA" not in os.environ and _DATA_BESIDE_THE_REPOSITORY.is_dir():
    os.environ["METALEARN_DATA"] = str(_DATA_BESIDE_THE_REPOSITORY)
# Also for the processes that tests start: threads that spin for each other make a busy machine many times slower.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


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
