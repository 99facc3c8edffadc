from pathlib import Path

import pytest

from metalearn.sweeps import Point


@pytest.fixture
def point(tmp_path: Path) -> Point:
    folder = tmp_path / "0"
    folder.mkdir()
    return Point(folder=folder, number=0, digest="abc", values={"inner.lr": 0.1, "seed": 2}, total=3)
