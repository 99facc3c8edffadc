"""The residual network of twelve convolutions, and DropBlock."""

import pytest
import torch
from torch import Tensor, nn

import metalearn
from metalearn.errors import UsageError
from metalearn.models import ResNet12
from metalearn.models.drop_block import DropBlock
from metalearn.models.norms import NORMS

SMALL = {"input_shape": (3, 32, 32), "num_outputs": 5, "filters": [2, 3, 4, 5]}


def small(**options: object) -> ResNet12:
    torch.manual_seed(0)
    return ResNet12(**{**SMALL, **options})  # type: ignore[arg-type]


def test_the_literatures_size() -> None:
    def count(filters: list[int]) -> int:
        pairs = zip([3, *filters], filters, strict=False)
        convolutions = sum(9 * a * b + 2 * 9 * b * b + a * b for a, b in pairs)
        return convolutions + sum(4 * 2 * width for width in filters) + 5 * filters[-1] + 5

    for filters in ([64, 160, 320, 640], [64, 128, 256, 512]):
        with torch.device("meta"):
            model = ResNet12(input_shape=(3, 84, 84), num_outputs=5, filters=filters)
            whole = ResNet12(input_shape=(3, 84, 84), num_outputs=5, filters=filters, pooling="none")
        assert sum(parameter.numel() for parameter in model.parameters()) == count(filters)
        assert whole.head.in_features == filters[-1] * 5 * 5
    assert sum(isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) for part in model.modules()) == 12


def test_a_block_is_three_convolutions_and_a_shortcut() -> None:
    model, x = small(norm="none"), torch.rand(2, 3, 32, 32)
    expected = x
    for block in model.features:
        first = nn.functional.leaky_relu(nn.functional.conv2d(expected, block.conv1.weight, padding=1), 0.1)
        second = nn.functional.leaky_relu(nn.functional.conv2d(first, block.conv2.weight, padding=1), 0.1)
        third = nn.functional.conv2d(second, block.conv3.weight, padding=1)
        shortcut = nn.functional.conv2d(expected, block.shortcut.conv.weight)
        expected = nn.functional.max_pool2d(nn.functional.leaky_relu(third + shortcut, 0.1), 2)
    assert expected.shape == (2, 5, 2, 2)
    torch.testing.assert_close(model(x), model.head(expected.mean((2, 3))))
    whole = small(norm="none", pooling="none")
    torch.testing.assert_close(whole(x), whole.head(expected.flatten(1)))


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_gives_logits_and_a_gradient_to_every_parameter(norm: str) -> None:
    model = small(filters=8, norm=norm)
    model(torch.rand(6, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert model.protocol()["transductive"] == (norm == "batch")
    assert bool(list(model.buffers())) == (norm == "batch_running")


def test_predictions_depend_on_the_others_with_batch_norm_of_the_set_alone() -> None:
    x, y = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    for norm, same in (("batch", False), ("batch_running", True), ("layer", True)):
        model = small(norm=norm).eval()
        assert torch.allclose(model(torch.cat([x, y]))[:4], model(x), atol=1e-5) == same


def test_dropping_is_by_values_and_then_by_squares_and_draws_from_the_key() -> None:
    module = small(drop_rate=0.2, block_size=2, norm="layer")
    assert [type(block.drop) for block in module.features] == [nn.Dropout, nn.Dropout, DropBlock, DropBlock]
    assert module.protocol()["block_size"] == 2
    model, x = metalearn.functionalize(module), torch.rand(3, 3, 32, 32)
    first, after = model(model.params, model.buffers, x)
    again, _ = model(model.params, model.buffers, x)
    other, _ = model(model.params, after, x)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    alone, _ = model.eval()(model.params, model.buffers, x)
    torch.testing.assert_close(alone, small(norm="layer")(x))


def dropped(rate: float, size: int, shape: tuple[int, ...] = (200, 4, 10, 10)) -> Tensor:
    torch.manual_seed(0)
    return DropBlock(rate, size)(torch.ones(shape))


@pytest.mark.parametrize(("rate", "size"), [(0.1, 1), (0.1, 3), (0.25, 2), (0.1, 10)])
def test_about_the_rate_is_dropped_and_the_mean_of_an_example_is_kept(rate: float, size: int) -> None:
    maps = dropped(rate, size)
    # Squares that overlap drop a little less than the rate: at most the share of two that meet.
    assert rate - 0.75 * rate**2 - 0.02 < float((maps == 0).double().mean()) < rate + 0.02
    means = maps.mean((1, 2, 3))
    torch.testing.assert_close(means[means > 0], torch.ones(int((means > 0).sum())))


def test_what_is_dropped_are_whole_squares() -> None:
    maps = dropped(0.02, 3)
    away = (maps == 0).to(torch.float32)
    assert away.any()
    inside = nn.functional.avg_pool2d(away, 3, stride=1) > 0.99  # every place where a whole square is away
    covered = nn.functional.max_pool2d(nn.functional.pad(inside.to(torch.float32), [2] * 4), 3, stride=1)
    assert torch.equal(covered, away)


def test_an_example_of_which_nothing_is_left_is_zero() -> None:
    torch.manual_seed(0)
    drop = DropBlock(0.9, 4)
    x = torch.ones(50, 1, 4, 4, requires_grad=True)
    maps = drop(x)
    maps.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert set(maps.flatten(1).sum(1).tolist()) == {0.0, 16.0}
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bacth"}, "Unknown ResNet12 norm 'bacth'. Did you mean 'batch'"),
        ({"pooling": "avrage"}, "Did you mean 'average'"),
        ({"filters": [64, 128, 256]}, "one for each of the 4 blocks"),
        ({"drop_rate": 1.5}, "`drop_rate`"),
        ({"drop_rate": 0.1, "block_size": 0}, "`block_size`"),
        ({"drop_rate": 0.1}, r"block_size=5 is larger than .* 2 pixels a side. Set block_size <= 2"),
        ({"input_shape": (3, 15, 32)}, "needs 16 pixels a side"),
        ({"input_shape": (3,)}, "ResNet12 takes images"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**options)


def test_squares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="squares of 5 pixels do not fit into maps of 4 x 8"):
        DropBlock(0.1, 5)(torch.ones(1, 1, 4, 8))
