"""The functions of normalisation in a call: what is asked for is used, in functions too; padded rows are left out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import UsageError, functionalize

D = torch.float64
NUM_REAL = 4


class Calling(nn.Module):
    """Calls a function of normalisation on statistics that are called something else than torch's modules call them."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("mean", torch.full((3,), 0.4, dtype=D))
        self.register_buffer("var", torch.full((3,), 1.6, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.mean, self.var, self.training)


FUNCTIONS = {
    "F.batch_norm": lambda x, mean, var, training: F.batch_norm(x, mean, var, training=training, momentum=0.3),
    "torch.batch_norm": lambda x, mean, var, training: torch.batch_norm(
        x, None, None, mean, var, training, 0.3, 1e-5, True
    ),
    "F.instance_norm": lambda x, mean, var, training: F.instance_norm(
        x, mean, var, use_input_stats=training, momentum=0.3
    ),
    "torch.instance_norm": lambda x, mean, var, training: torch.instance_norm(
        x, None, None, mean, var, training, 0.3, 1e-5, True
    ),
}  # fmt: skip


def _inputs() -> tuple[Tensor, Tensor]:
    """Six rows, the last two of them noise, and which are real."""
    x = torch.randn(6, 3, 5, dtype=D, generator=torch.Generator().manual_seed(0)) + 1
    x[NUM_REAL:] *= 50
    return x, torch.arange(6) < NUM_REAL


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("statistics", [None, "set", "tracked", "running"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_go_by_what_is_asked_for(name: str, statistics, training: bool) -> None:
    x, rows = _inputs()
    model = functionalize(Calling(FUNCTIONS[name]).train(training)).normalising(statistics)
    by_set = training if statistics is None else statistics != "running"
    tracked = training if statistics is None else statistics == "tracked"
    reference = {name: value.clone() for name, value in model.buffers.items()}
    used = (reference["mean"], reference["var"]) if tracked or not by_set else (None, None)
    expected = FUNCTIONS[name](x[:NUM_REAL], *used, by_set)
    seeing = model.seeing(rows)
    for output, after in (
        model({}, model.buffers, x[:NUM_REAL]),
        seeing({}, model.buffers, x),
        [each[1] if isinstance(each, Tensor) else each for each in _side_by_side(seeing, x)],
    ):
        torch.testing.assert_close(output[:NUM_REAL], expected, rtol=0, atol=1e-13)
        for key in ("mean", "var"):
            torch.testing.assert_close(after[key], reference[key], rtol=0, atol=1e-13)


def _side_by_side(model, x: Tensor):
    outputs, after = torch.vmap(lambda x: model({}, model.buffers, x))(torch.stack([x + 1, x]))
    return outputs, {name: value[1] for name, value in after.items()}


@pytest.mark.parametrize("statistics", ["tracked", "running"])
def test_what_is_not_kept_can_not_be_used(statistics: str) -> None:
    model = functionalize(nn.BatchNorm1d(3, track_running_stats=False)).normalising(statistics)
    with pytest.raises(UsageError, match=rf"'{statistics}'\) needs running statistics.*track_running_stats=True"):
        model(model.params, model.buffers, torch.ones(4, 3))


def test_an_instance_norm_without_running_statistics_is_left_alone() -> None:
    model, x = functionalize(nn.InstanceNorm1d(3)), _inputs()[0].float()
    for statistics in ("set", "tracked", "running"):
        output, _ = model.normalising(statistics)(model.params, model.buffers, x)
        assert torch.equal(output, F.instance_norm(x))


@pytest.mark.parametrize(("norm", "what"), [(nn.BatchNorm1d(3), "batch norm"), (None, "instance norm")])
def test_rows_that_can_not_be_told_apart_are_refused(norm, what: str) -> None:
    model = functionalize(norm or nn.InstanceNorm1d(3, track_running_stats=True))
    with pytest.raises(UsageError, match=f"a {what} sees 12 rows of a padded set of 6 examples"):
        model.seeing(torch.ones(6, dtype=torch.bool))(model.params, model.buffers, torch.randn(12, 3, 5))


def test_statistics_of_low_precision_are_summed_up_in_a_higher_one() -> None:
    x = (torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 3).bfloat16()
    model = functionalize(nn.BatchNorm1d(3, momentum=None)).to(torch.bfloat16)
    _, after = torch.vmap(lambda x: model(model.params, model.buffers, x))(x[None])
    assert after["running_var"].dtype == torch.bfloat16
    torch.testing.assert_close(after["running_var"][0].float(), x.float().var(0), rtol=1e-2, atol=0)
