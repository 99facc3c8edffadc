"""FC100 as a source: the published split by superclass."""

import json
from pathlib import Path

import pytest

from metalearn import UsageError
from metalearn.tasks import FC100
from metalearn.tasks.cifar_fs.loading import SPLITS, class_names, superclasses

SIZES = {"train": (12, 60), "val": (4, 20), "test": (4, 20)}


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_the_published_one(cifar_root: Path, split: str) -> None:
    published = json.loads((cifar_root.parent / "splits" / "fc100" / f"{split}.json").read_text())
    assert sorted(superclasses("fc100", split)) == sorted(published)
    assert (len(superclasses("fc100", split)), len(class_names("fc100", split))) == SIZES[split]


def test_the_classes_of_a_superclass_are_those_that_cifar_fs_names() -> None:
    """The same 20 groups of five, of which CIFAR-FS cuts through and FC100 does not."""
    groups = {name: set(own) for split in SPLITS for name, own in superclasses("fc100", split).items()}
    assert len(groups) == 20
    assert {len(own) for own in groups.values()} == {5}
    told: dict[str, set[str]] = {}
    for split in SPLITS:
        for name, own in superclasses("cifar_fs", split).items():
            told.setdefault(name, set()).update(own)
    assert told == groups


@pytest.mark.slow
def test_the_real_images(cifar_root: Path, shared_cache: Path) -> None:
    source = FC100(root=cifar_root, cache_dir=shared_cache, ways=20, shots=5)
    card = source.protocol()
    assert (card["dataset"], card["classes"]) == ("fc100", {"train": 60, "val": 20, "test": 20})
    assert card["superclasses"] == {"train": 12, "val": 4, "test": 4}
    assert card["images"] == {"train": 36000, "val": 12000, "test": 12000}
    assert "1805.10123" in card["split_scheme"]
    whole, part = source.episodes("test", range(4), seed=3), source.episodes("test", [2], seed=3)
    assert (whole.support[0][2:3] == part.support[0]).all()
    assert whole.query[0].shape == (4, 300, 3, 32, 32)


def test_missing_data_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CIFAR-100 was not found"):
        FC100(root=tmp_path)
