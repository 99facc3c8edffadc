"""The checker itself: it accepts what is right, and says what is wrong with everything else."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim
from metalearn.metagrad import FirstOrder
from metalearn.optim import GradientTransformation
from metalearn.testing import check_transformation
from metalearn.testing.transformations import ways

D = torch.float64
HYPERS = {"lr": 0.1, "decay": 0.9, "eps": 1e-2}
Rule = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


class SquareState(NamedTuple):
    num_steps: Tensor
    square: dict[str, Tensor]


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def scaled(g: Tensor, square: Tensor, hypers: dict[str, Tensor]) -> Tensor:
    return -hypers["lr"] * g / (square + hypers["eps"]).sqrt()


def by_rule(rule: Rule = scaled) -> Callable[[dict[str, Tensor]], GradientTransformation]:
    """A user's own optimizer: RMSProp with eps in the root, or what a rule makes of gradient and mean square."""

    def make(hypers: dict[str, Tensor]) -> GradientTransformation:
        def init(params: dict[str, Tensor]) -> SquareState:
            return SquareState(zero(), {name: torch.zeros_like(value) for name, value in params.items()})

        def update(updates: dict[str, Tensor], state: SquareState, params: dict[str, Tensor]) -> tuple[Any, Any]:
            decay = hypers["decay"]
            square = {name: decay * state.square[name] + (1 - decay) * g * g for name, g in updates.items()}
            moved = {name: rule(g, square[name], hypers) for name, g in updates.items()}
            return moved, SquareState(state.num_steps + 1, square)

        return GradientTransformation(init, update)

    return make


def with_update(update: Callable[..., Any], init: Callable[..., Any] = lambda params: {}) -> Callable[..., Any]:
    """A transformation from `update(hypers, updates, state, params)`."""
    return lambda hypers: GradientTransformation(init, lambda *given: update(hypers, *given))


def descent(hypers: dict[str, Tensor], updates: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: -hypers["lr"] * g for name, g in updates.items()}


def adam(hypers: dict[str, Tensor]) -> GradientTransformation:
    return optim.adam(hypers["lr"], b1=hypers["b1"], b2=hypers["b2"], eps=hypers["eps"], weight_decay=hypers["decay"])


RIGHT: dict[str, tuple[Any, dict[str, float], Any]] = {
    "a user's own": (by_rule(), HYPERS, None),
    "sgd": (lambda hypers: optim.sgd(hypers["lr"]), {"lr": 0.1}, lambda p: torch.optim.SGD(p, 0.1)),
    "sgd, nesterov": (
        lambda hypers: optim.sgd(
            hypers["lr"], momentum=hypers["momentum"], nesterov=True, weight_decay=hypers["decay"]
        ),
        {"lr": 0.1, "momentum": 0.8, "decay": 0.05},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    ),
    "adam": (
        adam,
        {"lr": 0.05, "b1": 0.8, "b2": 0.99, "eps": 1e-3, "decay": 0.05},
        lambda p: torch.optim.Adam(p, 0.05, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.05),
    ),
    "adam, at its defaults": (
        adam,
        {"lr": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "decay": 0.0},
        lambda p: torch.optim.Adam(p),
    ),
}


@pytest.mark.parametrize("row", RIGHT)
def test_what_is_right_is_accepted(row: str) -> None:
    make, hypers, reference = RIGHT[row]
    report = check_transformation(make, hypers=hypers, reference=reference)
    assert report.error <= 1e-6
    assert {of.of for of in report.rows} >= {f"hyper-parameter {name!r}" for name in hypers} | {
        "initial parameters", "data",
    }  # fmt: skip
    assert report.row("lr", 20).gradient_norm > 1e-3
    assert all(each.finite_difference_error <= 5e-7 for each in report.rows)
    assert (report.reference_error is None) == (reference is None)
    assert max(report.forward_error, report.strategies_error) <= 1e-10


def test_the_rows_are_every_hyper_parameter_alone_and_all_that_goes_in() -> None:
    report = check_transformation(by_rule(), hypers=HYPERS, num_steps=(2, 7))
    names = ["hyper-parameter 'lr'", "hyper-parameter 'decay'", "hyper-parameter 'eps'", "initial parameters", "data",
             "initial state"]  # fmt: skip
    expected = [(name, steps, 1) for steps in (2, 7) for name in names] + [(name, 2, 2) for name in names]
    assert [(row.of, row.num_steps, row.order) for row in report.rows] == expected
    assert min(row.gradient_norm for row in report.rows) > 1e-6
    assert "second derivative, hyper-parameter 'eps', 2 steps" in str(report)
    with pytest.raises(UsageError, match=r"no row of 'decai'.*'decay'"):
        report.row("decai", 2)


def test_a_transformation_without_hyper_parameters_and_a_part_of_an_optimizer_are_taken_as_they_are() -> None:
    of_a_whole = check_transformation(optim.sgd(0.1), num_steps=[3])
    of_a_part = check_transformation(optim.trace(0.9), num_steps=[3], is_whole=False)
    assert [row.of for row in of_a_whole.rows] == ["initial parameters", "data"] * 2
    assert [row.of for row in of_a_part.rows] == ["initial parameters", "data", "initial state"] * 2


def test_a_sign_has_no_derivative_by_data_and_its_kinks_are_redrawn() -> None:
    def update(hypers, updates, state, params):
        return {name: -hypers["lr"] * g.sign() for name, g in updates.items()}, state

    report = check_transformation(with_update(update), hypers={"lr": 0.02}, num_steps=[5])
    assert report.row("data", 5).gradient_norm == report.row("data", 5).error == 0
    assert report.row("lr", 5).gradient_norm > 1e-3


def test_kinks_are_redrawn_and_counted() -> None:
    def sawtooth(g: Tensor) -> Tensor:  # its slope jumps at every 0.0005
        return g + ((g * 1000) - (g * 1000).round()).abs() / 2000

    def update(hypers, updates, state, params):
        return {name: -hypers["lr"] * sawtooth(g) for name, g in updates.items()}, state

    report = check_transformation(with_update(update), hypers={"lr": 0.1}, num_steps=[5], num_directions=4)
    assert sum(row.num_redrawn for row in report.rows) > 0
    assert "redrawn" in str(report)


def test_own_parameters_and_tensors_for_hyper_parameters() -> None:
    params = {"a.w": torch.ones(3, 2, dtype=D), "b": torch.zeros(2, 2, 2, dtype=D)}
    rates = {f"lr.{name}": torch.full_like(value, 0.1) for name, value in params.items()}
    make = with_update(
        lambda h, updates, state, p: ({name: -h[f"lr.{name}"] * g for name, g in updates.items()}, state)
    )
    report = check_transformation(make, hypers=rates, params=params, num_steps=[5])
    assert report.row("lr.a.w", 5).gradient_norm > 1e-4


# Each wrong in one thing, with words of the sentence that tells it.


def _in_place(hypers, updates, state, params):
    for name, g in updates.items():
        state[name].mul_(0.9).add_(g)
    return {name: -hypers["lr"] * value.clone() for name, value in state.items()}, state


def _gradients_in_place(hypers, updates, state, params):
    return {name: g.mul_(-hypers["lr"].item()) for name, g in updates.items()}, state


def _emptied(hypers, updates, state, params):
    return {name: -hypers["lr"] * updates.pop(name) for name in params}, state


def _counting_in_python() -> Callable[..., Any]:
    calls = [0]

    def update(hypers, updates, state, params):
        calls[0] += 1
        return {name: -hypers["lr"] * g / calls[0] for name, g in updates.items()}, state

    return with_update(update)


def _anchored_outside(hypers: dict[str, Tensor]) -> GradientTransformation:
    anchor: dict[str, Tensor] = {}

    def init(params):
        anchor.update(params)
        return {}

    def update(updates, state, params):
        return {name: -hypers["lr"] * (g + params[name] - anchor[name]) for name, g in updates.items()}, state

    return GradientTransformation(init, update)


def _number_of_steps(hypers, updates, state, params):
    return {name: -hypers["lr"] * g / (state["num_steps"] + 1) for name, g in updates.items()}, {
        "num_steps": state["num_steps"] + 1
    }


def _branching(hypers, updates, state, params):
    norm = sum(g.square().sum() for g in updates.values())
    return {name: -hypers["lr"] * (g if norm < 1 else g / norm) for name, g in updates.items()}, state


def _noisy(hypers, updates, state, params):
    return {name: -hypers["lr"] * (g + 0.01 * torch.randn_like(g)) for name, g in updates.items()}, state


def _without_scalars(hypers, updates, state, params):
    return {name: -hypers["lr"] * g for name, g in updates.items() if g.dim()}, state


def _of_normalised(hypers, updates, state, params):
    total = sum(g.square().sum() for g in updates.values())
    return {name: -hypers["lr"] * g / total.sqrt() for name, g in updates.items()}, state


def _mean_of_rows(hypers, updates, state, params):
    return {name: -hypers["lr"] * (g.mean(dim=-1) if g.dim() else g) for name, g in updates.items()}, state


def _faster_without_grad(hypers, updates, state, params):
    power = 1.0 if torch.is_grad_enabled() else 1.1
    return {name: -(hypers["lr"] ** power) * g for name, g in updates.items()}, state


def _rounding(digits: float, *, straight_through: bool) -> Rule:
    def rule(g, square, hypers):
        rounded = (g * digits).round() / digits
        return -hypers["lr"] * (g + (rounded - g).detach() if straight_through else rounded)

    return rule


class _Tanh(torch.autograd.Function):
    """Right but for what a subclass says otherwise."""

    generate_vmap_rule = True
    slope, slope_of_slope, forward_slope = 1.0, 1.0, 1.0

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @classmethod
    def derivative(cls, x):
        value = 1 - x.tanh().square()
        return value * cls.slope if cls.slope_of_slope else value.detach()


class _Right(_Tanh):
    @staticmethod
    def backward(ctx, grad):
        return grad * _Right.derivative(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * _Right.derivative(ctx.saved_tensors[0])


class _WrongFirst(_Tanh):
    slope = 1.001

    @staticmethod
    def backward(ctx, grad):
        return grad * _WrongFirst.derivative(ctx.saved_tensors[0])


class _WrongSecond(_Tanh):
    slope_of_slope = 0.0

    @staticmethod
    def backward(ctx, grad):
        return grad * _WrongSecond.derivative(ctx.saved_tensors[0])


class _WrongForward(_Tanh):
    @staticmethod
    def backward(ctx, grad):
        return grad * _Right.derivative(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * 1.001 * _Right.derivative(ctx.saved_tensors[0])


class _NoForward(_Tanh):
    @staticmethod
    def backward(ctx, grad):
        return grad * _Right.derivative(ctx.saved_tensors[0])


class _WrongBatch(_Right):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x):
        return (x.tanh() + 1e-6 if in_dims[0] is not None else x.tanh()), in_dims[0]


def through(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    return with_update(
        lambda hypers, updates, state, params: (
            {name: -hypers["lr"] * function.apply(g) for name, g in updates.items()}, state,
        )
    )  # fmt: skip


def zeros_like(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in params.items()}


def detached_in_a_chain(hypers: dict[str, Tensor]) -> GradientTransformation:
    """Right alone, where `fused` is called; as the first of a chain its `update` has no derivative."""
    rule = optim.sgd(hypers["lr"])

    def update(updates: dict[str, Tensor], state: Any, params: dict[str, Tensor]) -> tuple[Any, Any]:
        changed, state = rule.update(updates, state, params)
        return {name: value.detach() for name, value in changed.items()}, state

    return GradientTransformation(rule.init, update, rule.fused)


FAULTS: dict[str, tuple[Any, str]] = {
    "returns no pair": (with_update(lambda h, u, s, p: descent(h, u)), "update returned dict: expected"),
    "returns a list": (with_update(lambda h, u, s, p: ([*descent(h, u).values()], s)), "the updates are a list"),
    "no derivative in a chain": (detached_in_a_chain, "derivative of step.*differs by .* from that of update"),
    "a scalar left out": (with_update(_without_scalars), "there is no update of 'scale'"),
    "a name of its own": (
        with_update(lambda h, u, s, p: ({**descent(h, u), "weights": u["weight"]}, s)),
        "an update, and no parameter, of 'weights'",
    ),
    "another shape": (with_update(_mean_of_rows), r"update of 'weight' is float64\[2\] on cpu.*float64\[2, 3\]"),
    "another dtype in float32": (
        with_update(lambda h, u, s, p: ({name: -0.1 * g.double() for name, g in u.items()}, s)),
        r"update of 'weight' is float64\[2, 3\] on cpu, and the parameter is float32",
    ),
    "a Python count": (
        with_update(_number_of_steps, lambda params: {"num_steps": 0}),
        r"state\['num_steps'\] is a int.*torch.int64",
    ),
    "a count that becomes a float": (
        with_update(lambda h, u, s, p: (descent(h, u), {"n": s["n"] + 1.0}), lambda params: {"n": zero()}),
        r"state\['n'\] became float32\[\] on cpu in update 1, after int64",
    ),
    "a state that grows": (
        with_update(lambda h, u, s, p: (descent(h, u), {**s, f"step{len(s)}": zero()})), "changed the structure"
    ),
    "a state that can not be saved": (
        with_update(lambda h, u, s, p: (descent(h, u), s), lambda params: {"a.b": zero(), "a": {"b": zero()}}),
        "can not be saved.*two tensors",
    ),
    "uphill": (with_update(lambda h, u, s, p: ({n: h["lr"] * g for n, g in u.items()}, s)), "goes uphill.*Negate it"),
    "a state written in place": (
        with_update(_in_place, zeros_like), r"update wrote into its input argument\[1\]\['weight'\]",
    ),
    "gradients written in place": (
        with_update(_gradients_in_place), r"update wrote into its input argument\[0\]\['weight'\]",
    ),
    "gradients taken out": (with_update(_emptied), "update added or removed entries of a dict"),
    "a count in Python": (_counting_in_python(), "another result when it is called again.*count"),
    "a draw from the global generator": (with_update(_noisy), "another result when it is called again.*generator"),
    "the start kept outside": (_anchored_outside, "two loops that take turns"),
    "another step": (
        lambda hypers: optim.sgd(hypers["lr"])._replace(
            fused=lambda grads, state, params: optim.sgd(hypers["lr"] * 1.001).step(grads, state, params)
        ),
        r"step is not params \+ updates.*step\[0\]\['weight'\]",
    ),
    "a branch on a value": (with_update(_branching), "torch.vmap of update raised RuntimeError.*torch.where"),
    "a number taken out of a hyper-parameter": (
        with_update(lambda h, u, s, p: ({n: -h["lr"].item() * g for n, g in u.items()}, s)),
        "torch.vmap of update with a batch of hyper-parameters raised RuntimeError.*item",
    ),
    "another value for a batch": (through(_WrongBatch), r"is not the loop over them: result\[0\]\['weight'\] differs"),
    "a root with an infinite derivative": (
        by_rule(lambda g, square, h: -h["lr"] * g / (square.sqrt() + h["eps"])),
        "the derivative by gradients is nan where all gradients are zero, at the first step.*torch.where",
    ),
    "a norm of nothing": (with_update(_of_normalised), "its value the result is nan where all gradients are zero"),
    "a root out of the graph": (
        by_rule(lambda g, square, h: -h["lr"] * g / (square + h["eps"]).sqrt().detach()),
        "(?s)hyper-parameter 'decay', 5 steps: 0 in reverse mode.*nothing flows back at all.*initial state",
    ),
    "a part out of the graph": (
        by_rule(lambda g, square, h: scaled(g, square, h) - h["lr"].detach() * 0.1 * g),
        "(?s)2 of 12 derivatives are wrong.*hyper-parameter 'lr', 5 steps.*a part of it is lost.*'lr', 20 steps",
    ),
    "another value without grad": (with_update(_faster_without_grad), "another one than without grad.*requires_grad"),
    "a straight-through rounding": (
        by_rule(_rounding(1.0, straight_through=True)), "(?s)data, 5 steps.*does not depend on it.*straight-through",
    ),
    "a slope off by a thousandth": (through(_WrongFirst), "(?s)derivatives are wrong.*initial parameters, 5 steps"),
    "a second derivative that is lost": (through(_WrongSecond), "(?s)second derivative, initial parameters"),
    "a forward derivative that is wrong": (through(_WrongForward), "forward mode and reverse mode differ"),
    "no forward derivative": (through(_NoForward), "the forward derivative by .* raised"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_told(fault: str) -> None:
    make, words = FAULTS[fault]
    with pytest.raises(AssertionError, match=words):
        check_transformation(make, hypers=HYPERS)


def test_a_function_with_all_its_derivatives_is_accepted() -> None:
    check_transformation(through(_Right), hypers={"lr": 0.1}, num_steps=[5])


def test_another_reference_is_told_with_its_place() -> None:
    def check(reference: Any) -> float | None:
        hypers = {"lr": 0.05, "b1": 0.9, "b2": 0.99, "eps": 1e-3, "decay": 0.0}
        return check_transformation(adam, hypers=hypers, num_steps=[1], reference=reference).reference_error

    assert check(lambda p: torch.optim.Adam(p, 0.05, betas=(0.9, 0.99), eps=1e-3)) < 1e-13
    with pytest.raises(AssertionError, match="it is not Adam: on a quadratic, step 1 leaves 'weight'"):
        check(lambda p: torch.optim.Adam(p, 0.05, betas=(0.9, 0.99), eps=1.0001e-3))
    with pytest.raises(AssertionError, match=r"it is not Adam: on .*, step 2"):
        check(lambda p: torch.optim.Adam(p, 0.05, betas=(0.9, 0.990001), eps=1e-3))
    with pytest.raises(UsageError, match="reference returned list"):
        check(lambda p: [])
    assert torch.get_default_dtype() == torch.float32


def test_strategies_that_disagree_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "Stepwise", FirstOrder)
    with pytest.raises(AssertionError, match=r"strategies differ.* params\.weight with Stepwise\(\)"):
        check_transformation(optim.sgd(0.1), num_steps=[3])


WRONG_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "no transformation": (lambda: check_transformation(lambda hypers: None), "make returned NoneType"),
    "hypers that can not reach it": (lambda: check_transformation(optim.sgd(0.1), hypers={"lr": 0.1}), "lambda hypers"),
    "keywords": (lambda: check_transformation(optim.sgd, hypers={"lr": 0.1}), r"lambda hypers: make\(\*\*hypers\)"),
    "a text": (lambda: check_transformation("sgd", hypers={"lr": 0.1}), "make is a str"),
    "float32": (lambda: check_transformation(optim.sgd(0.1), params={"w": torch.ones(2)}), r"value\.double\(\)"),
    "no parameters": (lambda: check_transformation(optim.sgd(0.1), params={}), "params is empty"),
    "no steps": (lambda: check_transformation(optim.sgd(0.1), num_steps=[]), "nothing to certify"),
    "half a step": (lambda: check_transformation(optim.sgd(0.1), num_steps=[0.5]), "0.5, but each must be"),
    "kinks everywhere": (
        lambda: check_transformation(by_rule(_rounding(1e4, straight_through=False)), hypers=HYPERS, max_redrawn=3),
        "kinks everywhere",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_what_can_not_be_checked_is_refused(call: str) -> None:
    function, words = WRONG_CALLS[call]
    with pytest.raises(UsageError, match=words):
        function()
