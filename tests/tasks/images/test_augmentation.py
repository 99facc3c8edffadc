"""Augmentation: what torchvision gives for each image alone, a function of its key, other generators untouched."""

import pickle
import random as python_random
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks import ClassificationSource
from metalearn.tasks.images.augmentation import Augmentation
from metalearn.torchvision_import import torchvision_module

v2 = torchvision_module("transforms.v2")

CROP = {"name": "RandomCrop", "size": 12, "padding": 2}
JITTER = {"name": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
# What is described, and whether it runs on a batch at once. A new kind of step is a row here.
PIPELINES = [
    ("RandomHorizontalFlip", True),
    ({"name": "RandomVerticalFlip", "p": 0.3}, True),
    (CROP, True),
    ({**CROP, "padding": [1, 0, 3, 2], "padding_mode": "reflect"}, True),
    ({**CROP, "padding": [2, 0], "fill": 0.5}, True),
    (JITTER, True),
    ({**JITTER, "hue": 0.2}, True),
    ({"name": "ColorJitter", "contrast": [0.1, 3.0]}, True),
    ({"name": "RandomErasing", "p": 0.9}, True),
    ({"name": "RandomErasing", "scale": [0.5, 1.0], "ratio": [0.2, 5.0], "value": [0.1, 0.2, 0.3]}, True),
    ({"name": "RandomGrayscale", "p": 0.5}, True),
    ("RandomInvert", True),
    ({"name": "RandomSolarize", "threshold": 0.5}, True),
    ("RandomAutocontrast", True),
    ({"name": "RandomAdjustSharpness", "sharpness_factor": 2.0}, True),
    ([CROP, JITTER, "RandomHorizontalFlip", {"name": "RandomErasing"}], True),
    ({"name": "Compose", "transforms": [CROP, {"name": "Compose", "transforms": ["RandomHorizontalFlip"]}]}, True),
    ({"name": "RandomErasing", "p": 1.0, "value": "random"}, False),
    ({"name": "RandomRotation", "degrees": 20, "interpolation": "bilinear"}, False),
    ({"name": "RandomResizedCrop", "size": 12}, False),
    ({"name": "RandomApply", "transforms": [{"name": "GaussianBlur", "kernel_size": 3}], "p": 0.5}, False),
    ([CROP, "GaussianNoise"], False),
    ({"name": "AutoAugment", "policy": "cifar10"}, False),
]


def images(num_tasks: int = 3, num_examples: int = 20) -> torch.Tensor:
    return torch.rand(num_tasks, num_examples, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def keys(num_tasks: int = 3) -> torch.Tensor:
    return random.key(torch.arange(num_tasks))


def one_by_one(augment: Augmentation, batch: torch.Tensor, task_keys: torch.Tensor) -> torch.Tensor:
    """What the transforms give for each image alone, with torch's generator seeded by the image's key."""
    result = torch.empty_like(batch)
    with torch.random.fork_rng(devices=[]):
        for task, key in enumerate(task_keys):
            for example in range(batch.shape[1]):
                torch.manual_seed(int(random.fold_in(key, example)))
                result[task, example] = v2.Compose(list(augment.transforms))(batch[task, example])
    return result


@pytest.mark.parametrize(("described", "is_batched"), PIPELINES, ids=lambda each: str(each)[:60])
def test_each_image_is_what_the_transforms_give_for_it_alone(described: object, is_batched: bool) -> None:
    augment = Augmentation.of(described, image_shape=(3, 12, 12))
    made = augment(images(), keys())
    assert augment.is_batched == is_batched
    assert type(made) is torch.Tensor
    torch.testing.assert_close(made, one_by_one(augment, images(), keys()), rtol=0, atol=2e-6)
    assert not torch.equal(made, images())


@pytest.mark.parametrize("described", [[CROP, JITTER], [JITTER, "GaussianNoise"]], ids=["at once", "each"])
def test_a_picture_is_a_function_of_its_key(described: object) -> None:
    augment = Augmentation.of(described, image_shape=(3, 12, 12))
    made = augment(images(), keys())
    assert torch.equal(made, augment(images(), keys()))
    # In whatever batch: the last task alone.
    torch.testing.assert_close(made[2:], augment(images()[2:], keys()[2:]), rtol=0, atol=2e-6)
    same = images(1, 1).expand(2, 20, -1, -1, -1)
    drawn = augment(same, keys(2)).reshape(40, -1)
    assert len(torch.unique(drawn, dim=0)) > 30  # every image has draws of its own


@pytest.mark.parametrize("described", [[CROP, JITTER], "GaussianNoise"], ids=["at once", "each"])
def test_the_global_generators_and_the_images_are_left_alone(described: object) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    python_random.seed(1)
    before = torch.get_rng_state(), python_random.getstate(), np.random.get_state()[1].tolist()
    batch = images()
    augment = Augmentation.of(described, image_shape=(3, 12, 12))
    made = augment(batch, keys())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert python_random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert torch.equal(batch, images())
    torch.manual_seed(2)  # nor do they matter
    assert torch.equal(made, augment(batch, keys()))


def test_an_error_puts_the_generators_back() -> None:
    augment = Augmentation.of(v2.Lambda(_spoilt_above_one), image_shape=(3, 12, 12))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(UsageError, match="Lambda makes images"):
        augment(2 * images(), keys())
    assert torch.equal(torch.get_rng_state(), before)


def _spoilt_above_one(image: torch.Tensor) -> torch.Tensor:
    torch.rand(3)
    return image[..., :4] if image.max() > 1 else image


def test_a_subclass_is_called_and_not_imitated() -> None:
    class Darker(v2.RandomHorizontalFlip):  # type: ignore[misc, name-defined]
        def transform(self, inpt: torch.Tensor, params: dict[str, object]) -> torch.Tensor:
            return inpt * 0.5

    augment = Augmentation.of(Darker(p=1.0), image_shape=(3, 12, 12))
    assert not augment.is_batched
    torch.testing.assert_close(augment(images(), keys()), images() * 0.5)


OWN = """
import torch
from metalearn.torchvision_import import torchvision_module

class Speckle(torchvision_module("transforms.v2").Transform):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def transform(self, inpt, params):
        return inpt + self.strength * torch.randn(inpt.shape)
"""


def test_a_class_of_ones_own_is_named_by_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_transforms.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    described = {"_target_": "own_transforms.Speckle", "strength": 0.5}
    augment = Augmentation.of([described, "RandomHorizontalFlip"], image_shape=(3, 12, 12))
    made = augment(images(), keys())
    assert torch.equal(made, one_by_one(augment, images(), keys())), "a function of the key"
    assert (
        0.45 < float(Augmentation.of(described, image_shape=(3, 12, 12))(images(), keys()).sub(images()).std()) < 0.55
    )
    for wrong, text in (
        ({**described, "_target_": "own_transforms.Sparkle"}, "own_transforms.Sparkle can not be imported"),
        ({**described, "_target_": "pathlib.Path"}, "pathlib.Path is no class derived from"),
        ({**described, "strenght": 1}, "own_transforms.Speckle takes no 'strenght'. Did you mean 'strength'"),
        ({**described, "name": "RandomCrop"}, "names no transform"),
    ):
        with pytest.raises(UsageError, match=text):
            Augmentation.of(wrong, image_shape=(3, 12, 12))


def test_no_images_and_no_transforms() -> None:
    augment = Augmentation.of([CROP], image_shape=(3, 12, 12))
    assert augment(images()[:0], keys()[:0]).shape == (0, 20, 3, 12, 12)
    assert torch.equal(Augmentation.of([], image_shape=(3, 12, 12))(images(), keys()), images())


def test_objects_and_descriptions_are_the_same_and_travel() -> None:
    described = Augmentation.of([CROP, "RandomHorizontalFlip"], image_shape=(3, 12, 12))
    objects = v2.Compose([v2.RandomCrop(12, padding=2), v2.RandomHorizontalFlip()])
    made = described(images(), keys())
    assert torch.equal(Augmentation.of(objects, image_shape=(3, 12, 12))(images(), keys()), made)
    assert torch.equal(pickle.loads(pickle.dumps(described))(images(), keys()), made)
    assert described.protocol() == Augmentation.of(described, image_shape=(3, 12, 12)).protocol()
    assert described.protocol()[0].startswith("RandomCrop(size=(12, 12), padding=[2, 2, 2, 2]")


@pytest.mark.parametrize(
    ("described", "text"),
    [
        ("RandomHorizontalFlop", "has no 'RandomHorizontalFlop'. Did you mean 'RandomHorizontalFlip'"),
        ({"name": "RandomCrop", "sise": 12}, "RandomCrop takes no 'sise'. Did you mean 'size'"),
        ({"name": "RandomCrop"}, r"RandomCrop can not be built with \{\} \(.*size"),
        ({"name": "ColorJitter", "hue": 0.7}, r"ColorJitter can not be built with \{'hue': 0.7\} \(hue values"),
        ({"size": 12}, "names no transform. Write"),
        ({"name": "RandomRotation", "degrees": 9, "interpolation": "bilinea"}, "interpolation='bilinea' is unknown"),
        ({"name": "Resize", "size": 6}, r"Resize makes images \[3, 6, 6\] of images \[3, 12, 12\]"),
        ({"name": "RandomCrop", "size": 8}, r"RandomCrop makes images \[3, 8, 8\]"),
        ({"name": "RandomCrop", "size": 20}, "RandomCrop fails on a float32 image .* larger than"),
        ({"name": "ScaleJitter", "target_size": [12, 12]}, "ScaleJitter makes images"),
        ("MixUp", "MixUp fails on a float32 image|MixUp can not be built"),
        ("Transform", "has no 'Transform'"),
        ({"name": "Normalize", "mean": [0.5], "std": [0.5]}, "Normalise in the model"),
        ([torch.nn.Identity()], "expected a transform of torchvision.transforms.v2"),
        (torch.flip, "A function of your own goes into v2.Lambda"),
        (v2.ToDtype(torch.uint8, scale=True), "ToDtype gives torch.uint8"),
    ],
)
def test_mistakes_are_told(described: object, text: str) -> None:
    with pytest.raises(UsageError, match=text) as raised:
        Augmentation.of(described, image_shape=(3, 12, 12))
    assert str(raised.value).count("\n") <= 1


def test_only_images_are_augmented() -> None:
    with pytest.raises(UsageError, match=r"needs images \[channel, height, width\], and these examples are \[4\]"):
        Augmentation.of("RandomHorizontalFlip", image_shape=(4,))


def test_a_source_augments_its_training_images_alone() -> None:
    stored = {split: torch.randint(0, 256, (6, 8, 3, 12, 12), dtype=torch.uint8) for split in ("train", "test")}
    sizes = {"ways": 3, "shots": 2, "query_shots": 2}
    plain = ClassificationSource(name="mine", classes=stored, **sizes)  # type: ignore[arg-type]
    source = ClassificationSource(name="mine", classes=stored, augment=[JITTER], **sizes)  # type: ignore[arg-type]
    for split, same in (("train", False), ("test", True)):
        made, expected = source.episodes(split, range(4)), plain.episodes(split, range(4))
        assert torch.equal(made.support[0], expected.support[0]) == same
        assert torch.equal(made.query[0], expected.query[0]) == same
        assert torch.equal(made.query[1], expected.query[1])
    assert torch.equal(source.episodes("train", [2]).support[0], source.episodes("train", range(4)).support[0][2:3])
    assert source.protocol()["augmentation"] == [repr(v2.ColorJitter(0.4, 0.4, 0.4))]


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_a_jitter_of_few_images_leaves_adjustments_out_at_some_position(num_images: int) -> None:
    augment = Augmentation.of([{**JITTER, "hue": 0.2}], image_shape=(3, 6, 6))
    for key in range(8):
        images = torch.rand(1, num_images, 3, 6, 6, generator=torch.Generator().manual_seed(key))
        assert augment(images, random.key(torch.tensor([key]))).shape == images.shape
