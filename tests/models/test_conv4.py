"""The four-block convolutional network."""

import pytest
import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.models import Conv4
from metalearn.models.conv4 import NORMS

OMNIGLOT = {"input_shape": (1, 28, 28), "num_outputs": 5}


def test_the_literatures_size() -> None:
    model = Conv4(**OMNIGLOT)  # type: ignore[arg-type]
    convolutions = 9 * 64 + 64 + 3 * (9 * 64 * 64 + 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + 4 * 128 + 64 * 5 + 5
    mini_imagenet = Conv4(input_shape=(3, 84, 84), num_outputs=5, filters=32)
    assert mini_imagenet.head.in_features == 32 * 5 * 5


@pytest.mark.parametrize("downsampling", ["pool", "stride"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_variant_gives_logits_and_a_gradient_to_every_parameter(norm: str, downsampling: str) -> None:
    torch.manual_seed(0)
    model = Conv4(**OMNIGLOT, filters=8, norm=norm, downsampling=downsampling)  # type: ignore[arg-type]
    logits = model(torch.rand(6, 1, 28, 28))
    assert logits.shape == (6, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.features[0].conv.weight.grad.abs().sum() > 0


def test_blocks_are_convolution_norm_relu_pool() -> None:
    model = Conv4(**OMNIGLOT, filters=4, norm="none")  # type: ignore[arg-type]
    x = torch.rand(2, 1, 28, 28)
    expected = x
    for block in model.features:
        convolved = nn.functional.conv2d(expected, block.conv.weight, block.conv.bias, padding=1)
        expected = nn.functional.max_pool2d(convolved.relu(), 2)
    torch.testing.assert_close(model(x), model.head(expected.flatten(1)))


def test_strides_end_in_an_average_over_space() -> None:
    model = Conv4(**OMNIGLOT, filters=4, downsampling="stride")  # type: ignore[arg-type]
    x = torch.rand(3, 1, 28, 28)
    assert model.features(x).shape == (3, 4, 2, 2)
    torch.testing.assert_close(model(x), model.head(model.features(x).mean((2, 3))))


def test_batch_norm_is_transductive_in_both_modes_and_the_running_one_is_not() -> None:
    x, y = torch.rand(4, 1, 28, 28), torch.rand(4, 1, 28, 28)
    batch = Conv4(**OMNIGLOT, filters=8)  # type: ignore[arg-type]
    assert not list(batch.buffers())
    assert torch.equal(batch.train()(x), batch.eval()(x))
    assert not torch.allclose(batch(torch.cat([x, y]))[:4], batch(x), atol=1e-3)
    assert batch.protocol()["transductive"] is True
    running = Conv4(**OMNIGLOT, filters=8, norm="batch_running")  # type: ignore[arg-type]
    assert len(list(running.buffers())) == 3 * 4
    running.train()(x)
    running.eval()
    torch.testing.assert_close(running(torch.cat([x, y]))[:4], running(x))
    assert running.protocol()["transductive"] is False


@pytest.mark.parametrize("norm", ["layer", "group", "instance"])
def test_other_norms_look_at_one_example_at_a_time(norm: str) -> None:
    model = Conv4(**OMNIGLOT, filters=16, norm=norm)  # type: ignore[arg-type]
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(model(x)[:2], model(x[:2]))
    assert model.features[0].norm.weight.shape == (16,)


def test_maml_initialisation() -> None:
    torch.manual_seed(0)
    model = Conv4(**OMNIGLOT, init="maml")  # type: ignore[arg-type]
    bound = (6 / (64 * 9 + 64 * 9)) ** 0.5
    weight = model.features[1].conv.weight.detach()
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert float(model.head.weight.detach().std()) == pytest.approx(1, abs=0.15)
    assert not model.head.bias.any()
    assert not model.features[0].conv.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bacth"}, r"Unknown Conv4 norm 'bacth'. Did you mean 'batch'"),
        ({"downsampling": "strided"}, "Did you mean 'stride'"),
        ({"init": "x"}, "Known: 'maml', 'torch'"),
        ({"filters": 0}, "`filters`"),
        ({"filters": 12, "norm": "group"}, "multiple of 8, got 12"),
        ({"input_shape": (1,)}, "use model=mlp"),
        ({"input_shape": (1, 12, 28)}, "needs 16 pixels a side"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Conv4(**{**OMNIGLOT, **options})  # type: ignore[arg-type]
