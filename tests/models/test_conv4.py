"""The four-block convolutional network."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.models import Conv4
from metalearn.models.norms import NORMS
from metalearn.training.protocol import model_card

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


def test_one_width_for_all_blocks_is_the_list_of_it() -> None:
    made = []
    for filters in (8, [8, 8, 8, 8]):
        torch.manual_seed(0)
        made.append(Conv4(**OMNIGLOT, filters=filters))  # type: ignore[arg-type]
    one, four = (model.state_dict() for model in made)
    assert list(one) == list(four)
    assert all(torch.equal(one[name], four[name]) for name in one)
    assert [model.protocol()["filters"] for model in made] == [8, [8, 8, 8, 8]]
    assert [model_card(model)["filters"] for model in made] == [8, [8, 8, 8, 8]]


def test_the_defaults_values_are_those_that_they_were() -> None:
    """Runs of before go on with the same numbers: the draws, their order and the arithmetic have not changed."""
    torch.manual_seed(0)
    model = Conv4(**OMNIGLOT, filters=3)  # type: ignore[arg-type]
    torch.manual_seed(0)
    widths, expected = (1, 3, 3, 3, 3), []
    for before, after in pairwise(widths):
        expected.append(nn.Conv2d(before, after, 3, padding=1).weight)
    expected.append(nn.Linear(3, 5).weight)
    got = [*(block.conv.weight for block in model.features), model.head.weight]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    card = {"model": "conv4", "filters": 3, "norm": "batch", "transductive": True, "downsampling": "pool"}
    assert model.protocol() == {**card, "init": "torch"}


def test_the_features_of_r2d2_are_the_last_two_blocks() -> None:
    torch.manual_seed(0)
    options = {"filters": [2, 3, 4, 5], "negative_slope": 0.1, "embedding": "last_two", "norm": "none"}
    model = Conv4(input_shape=(3, 84, 84), num_outputs=5, **options)  # type: ignore[arg-type]
    x = torch.rand(2, 3, 84, 84)
    maps = [x]
    for block in model.features:
        maps.append(
            nn.functional.leaky_relu(nn.functional.conv2d(maps[-1], block.conv.weight, block.conv.bias, 1, 1), 0.1)
        )
        if len(maps) < 5:
            maps[-1] = nn.functional.max_pool2d(maps[-1], 2)
    third, fourth = (nn.functional.max_pool2d(each, 2, stride=1).flatten(1) for each in maps[-2:])
    assert third.shape[1] == 4 * 9 * 9
    torch.testing.assert_close(model(x), model.head(torch.cat([third, fourth], 1)))
    assert model.protocol()["embedding"] == "last_two"


@pytest.mark.parametrize(("side", "num_features"), [(84, 72576), (28, 3584), (32, 8064)])
def test_the_number_of_r2d2s_features(side: int, num_features: int) -> None:
    """72,576 and 3,584 are told of mini-ImageNet and Omniglot in the paper."""
    with torch.device("meta"):
        model = Conv4(input_shape=(3, side, side), num_outputs=5, filters=[96, 192, 384, 512], embedding="last_two")
    assert model.head.in_features == num_features


def test_dropout_is_after_the_last_two_blocks_and_in_training_alone() -> None:
    torch.manual_seed(0)
    model = Conv4(**OMNIGLOT, filters=4, dropout=0.5)  # type: ignore[arg-type]
    assert [hasattr(block, "dropout") for block in model.features] == [False, False, True, True]
    x = torch.rand(3, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


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
        ({"filters": [8, 8, 8]}, r"one for each of the 4 blocks, got \[8, 8, 8\]"),
        ({"filters": [8, 8, 8, "8"]}, "`filters`"),
        ({"filters": [8, 12, 8, 8], "norm": "group"}, r"multiple of 8, got \[8, 12, 8, 8\]"),
        ({"embedding": "last_tow"}, "Did you mean 'last_two'"),
        ({"embedding": "last_two", "downsampling": "stride"}, "needs downsampling='pool'"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"negative_slope": -0.1}, "`negative_slope`"),
        ({"input_shape": (1,)}, "use model=mlp"),
        ({"input_shape": (1, 12, 28)}, "needs 16 pixels a side"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Conv4(**{**OMNIGLOT, **options})  # type: ignore[arg-type]
