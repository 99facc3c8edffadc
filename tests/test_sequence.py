import pytest
import torch
from torch import Tensor, nn
from torch.func import grad

from metalearn import UsageError, functionalize
from metalearn.sequence import unroll
from metalearn.testing import assert_close

D = torch.float64


class _Cell(nn.Module):
    """A recurrent cell that keeps its hidden state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(2, 3)
        self.register_buffer("hidden", torch.zeros(3))

    def forward(self, x):
        self.hidden = self.cell(x[None], self.hidden[None])[0]
        return {"hidden": self.hidden, "sum": self.hidden.sum()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return functionalize(_Cell().double())


def _by_hand(model, params: dict[str, Tensor], xs: Tensor, *, truncation: int | None = None) -> Tensor:
    hidden, rows = model.buffers["hidden"], []
    for step, x in enumerate(xs):
        if truncation and step % truncation == 0:
            hidden = hidden.detach()
        hidden = torch.tanh(
            params["cell.weight_ih"] @ x + params["cell.bias_ih"]
            + params["cell.weight_hh"] @ hidden + params["cell.bias_hh"]
        )  # fmt: skip
        rows.append(hidden)
    return torch.stack(rows)


@pytest.mark.parametrize("truncation", [None, 1, 2, 3, 100])
def test_it_is_backpropagation_through_time(model, truncation: int | None) -> None:
    xs = torch.linspace(-1, 1, 14, dtype=D).reshape(7, 2)

    def ours(params, xs):
        outputs, _ = unroll(model, params, model.buffers, xs, truncation=truncation)
        return outputs["hidden"].square().sum()

    def theirs(params, xs):
        return _by_hand(model, params, xs, truncation=truncation).square().sum()

    outputs, state = unroll(model, model.params, model.buffers, xs, truncation=truncation)
    assert_close(outputs["hidden"], _by_hand(model, model.params, xs), tolerance=1e-14)
    assert outputs["sum"].shape == (7,)
    assert torch.equal(state["hidden"], outputs["hidden"][-1])
    assert_close(grad(ours, (0, 1))(model.params, xs), grad(theirs, (0, 1))(model.params, xs), tolerance=1e-13)


def test_truncation_changes_the_gradient_only(model) -> None:
    xs = torch.linspace(-1, 1, 14, dtype=D).reshape(7, 2)

    def last(xs, truncation):
        return unroll(model, model.params, model.buffers, xs, truncation=truncation)[0]["sum"][-1]

    assert torch.equal(last(xs, None), last(xs, 3))
    reached = grad(last)(xs, 3).abs().sum(1) > 0
    assert reached.tolist() == [False] * 6 + [True]  # the window of the last step begins with it
    assert (grad(last)(xs, None).abs().sum(1) > 0).all()


def test_two_halves_are_the_whole(model) -> None:
    xs = torch.linspace(-1, 1, 14, dtype=D).reshape(7, 2)
    whole, end = unroll(model, model.params, model.buffers, xs)
    first, middle = unroll(model, model.params, model.buffers, xs[:3])
    second, last = unroll(model, model.params, middle, xs[3:])
    assert torch.equal(torch.cat([first["hidden"], second["hidden"]]), whole["hidden"])
    assert torch.equal(end["hidden"], last["hidden"])


def test_several_and_named_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, x, y, *, scale=None):
            return (x + y) * (1 if scale is None else scale)

    model, x = functionalize(Sum()), torch.arange(3.0)
    assert torch.equal(unroll(model, {}, model.buffers, (x, 2 * x))[0], 3 * x)
    named = {"x": x, "y": x, "scale": x}
    assert torch.equal(unroll(model, {}, model.buffers, named)[0], 2 * x * x)


def test_dropout_differs_from_step_to_step_and_repeats_from_the_same_state() -> None:
    model, x = functionalize(nn.Dropout(0.5)), torch.ones(2, 64)
    outputs, state = unroll(model, {}, model.buffers, x)
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(unroll(model, {}, model.buffers, x)[0], outputs)
    assert not torch.equal(unroll(model, {}, state, x)[0], outputs)


@pytest.mark.parametrize(
    ("inputs", "truncation", "words"),
    [
        (torch.ones(0, 2), None, "time axis"),
        ((torch.ones(2, 2), torch.ones(3, 2)), None, "time axis"),
        (torch.ones(()), None, "time axis"),
        (torch.ones(3, 2), 0, "truncation is 0"),
        (torch.ones(3, 2), 2.5, "truncation is 2.5"),
        (torch.ones(3, 2), "3", "truncation is '3'"),
        (torch.ones(3, 2), True, "truncation is True"),
    ],
)
def test_mistakes_are_told(model, inputs, truncation, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        unroll(model, model.params, model.buffers, inputs, truncation=truncation)


def test_outputs_of_several_shapes_are_refused() -> None:
    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(0))

        def forward(self, x):
            self.seen = torch.cat([self.seen, x[None]])
            return self.seen

    model = functionalize(Grows())
    with pytest.raises(UsageError, match="different shapes"):
        unroll(model, {}, model.buffers, torch.ones(3))


def test_outputs_of_several_structures_are_refused() -> None:
    class Either(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else (x, x)

    with pytest.raises(UsageError, match="output of step 1 is built otherwise"):
        unroll(functionalize(Either()), {}, {}, torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("truncation", [None, 1, 2, 3])
def test_a_parameter_that_forward_assigns_is_unrolled_as_calculus_says(truncation: int | None) -> None:
    class Fades(nn.Module):
        def __init__(self):
            super().__init__()
            self.state, self.decay = nn.Parameter(torch.zeros(1, dtype=D)), nn.Parameter(torch.full((1,), 0.5, dtype=D))

        def forward(self, x):
            self.state = self.state * self.decay + x
            return self.state.sin()

    def by_hand(initial, decay, xs):
        state, total = initial, 0
        for step, x in enumerate(xs):
            state = state.detach() if truncation and step and step % truncation == 0 else state
            state = state * decay + x
            total = total + (step + 1) * state.sin().sum()
        return total

    model, xs = functionalize(Fades()), torch.linspace(-1, 2, 7, dtype=D)[:, None]
    weights = torch.arange(1.0, 8.0, dtype=D)[:, None]

    def ours(initial, decay, xs):
        outputs, _ = unroll(model, {"state": initial, "decay": decay}, model.buffers, xs, truncation=truncation)
        return (weights * outputs).sum()

    at = (torch.full((1,), 0.3, dtype=D), torch.full((1,), 0.7, dtype=D), xs)
    assert_close(grad(ours, (0, 1, 2))(*at), grad(by_hand, (0, 1, 2))(*at), tolerance=1e-13)
    plain = [x.clone().requires_grad_() for x in at]
    assert_close(torch.autograd.grad(ours(*plain), plain), grad(by_hand, (0, 1, 2))(*at), tolerance=1e-13)
