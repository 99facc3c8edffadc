"""torchvision's models by name: their last layer is the head, whatever it is called there."""

from pathlib import Path

import pytest
import torch
from torch import nn

import metalearn
from metalearn.errors import UsageError
from metalearn.models import TorchvisionModel
from metalearn.torchvision_import import torchvision_module

models = torchvision_module("models")
IMAGES = {"input_shape": (3, 32, 32), "num_outputs": 5}


def made(name: str = "mobilenet_v3_small", **options: object) -> TorchvisionModel:
    torch.manual_seed(0)
    return TorchvisionModel(**{**IMAGES, "name": name, **options})  # type: ignore[arg-type]


# A family a row, small; what its classifier is called in torchvision, and the images that it takes.
FAMILIES = {
    "resnet18": ("fc", 32),
    "mobilenet_v3_small": ("classifier.3", 32),
    "shufflenet_v2_x0_5": ("fc", 32),
    "squeezenet1_1": ("classifier.1", 32),
    "densenet121": ("classifier", 32),
    "googlenet": ("fc", 32),
    "inception_v3": ("fc", 75),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_layer_is_the_head(name: str) -> None:
    path, side = FAMILIES[name]
    model = made(name, input_shape=(3, side, side))
    original = models.get_model_builder(name)
    assert isinstance(model.features.get_submodule(path), nn.Identity)
    assert model.head.out_features == 5
    x = torch.rand(2, 3, side, side)
    torch.testing.assert_close(model.eval()(x), model.head(model.features(x)))
    assert model.features(x).shape == (2, model.head.in_features)
    assert model.train()(x).shape == (2, 5), f"one output in training too, unlike some of {original.__name__}"


def test_with_its_own_classifier_it_is_torchvisions_model() -> None:
    torch.manual_seed(0)
    original = models.resnet18().eval()
    model = made("resnet18", num_outputs=1000).eval()
    model.head.load_state_dict(original.fc.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), original(x))


def test_the_functional_model_without_its_head_gives_features() -> None:
    module = made().eval()
    model, x = metalearn.functionalize(module), torch.rand(2, 3, 32, 32)
    body = model.without("head")
    features, _ = body(body.params, body.buffers, x)
    torch.testing.assert_close(module.head(features), module(x))


def test_grey_images_are_given_to_all_channels() -> None:
    grey, x = made(input_shape=(1, 32, 32)).eval(), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), made().eval()(x.repeat(1, 3, 1, 1)))


def test_batch_norm_is_by_running_statistics_or_transductive() -> None:
    x, y = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    for norm, transductive in ((None, False), ("batch_running", False), ("batch", True)):
        model = made("resnet18", norm=norm).eval()
        assert model.protocol()["transductive"] == transductive
        assert bool(list(model.buffers())) != transductive
        assert torch.allclose(model(torch.cat([x, y]))[:4], model(x), atol=1e-4) != transductive
    own, batch = made("resnet18").train(), made("resnet18", norm="batch")
    torch.testing.assert_close(batch(x), own(x))


def test_weights_are_loaded_and_images_normalised_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the published name stands for the download; without it, and without a network, the fix is told."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    file = tmp_path / "hub" / "checkpoints" / Path(entry.url).name
    file.parent.mkdir(parents=True)
    torch.manual_seed(1)
    published = models.shufflenet_v2_x0_5().eval()
    torch.save(published.state_dict(), file)
    model = made("shufflenet_v2_x0_5", weights="DEFAULT").eval()
    assert model.protocol()["weights"] == "IMAGENET1K_V1"
    published.fc = nn.Identity()
    mean, std = (torch.tensor(each)[:, None, None] for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.features((x - mean) / std), published((x - mean) / std))
    torch.testing.assert_close(model(x), model.head(published((x - mean) / std)))
    plain = made("shufflenet_v2_x0_5").eval()
    torch.testing.assert_close(plain(x), plain.head(plain.features(x)))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(type(entry), "get_state_dict", unreachable)
    with pytest.raises(
        UsageError, match=r"IMAGENET1K_V1 of shufflenet_v2_x0_5 could not be had \(OSError: no route to"
    ):
        made("shufflenet_v2_x0_5", weights="DEFAULT")


def test_options_are_the_builders_own() -> None:
    assert made(options={"dropout": 0.7}).features.classifier[2].p == 0.7
    assert made(options={"width_mult": 0.1}).protocol()["options"] == {"width_mult": 0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnt18"}, r"no classification model 'resnt18' \(model.name\). Did you mean 'resnet18'"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "no classification model 'fasterrcnn_resnet50_fpn'"),
        ({"weights": "DEFAUL"}, "has no weights 'DEFAUL' .* Did you mean 'DEFAULT'"),
        ({"norm": "bacth"}, "Unknown TorchvisionModel norm 'bacth'. Did you mean 'batch'"),
        ({"name": "squeezenet1_1", "norm": "batch"}, "squeezenet1_1 has no batch norm"),
        ({"name": "resnet18", "options": {"width": 1}}, "can not be built with model.options=.*'width'"),
        ({"options": {"num_classes": 3}}, "model.options.num_classes is not yours to set"),
        ({"name": "squeezenet1_1", "input_shape": (3, 8, 8)}, r"does not take images of shape \[3, 8, 8\]"),
        ({"input_shape": (2, 32, 32)}, "1 or 3 channels, got 2"),
        ({"input_shape": (3,)}, "takes images"),
    ],
)
def test_mistakes_are_told_in_a_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        made(**options)
    assert "\n" not in str(refused.value)
