"""Transformations of a user's own: some that are right, and a table of faults with the words that each is told in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import optim
from metalearn.optim import GradientTransformation

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


def rounding(digits: float, *, straight_through: bool) -> Rule:
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


class Right(_Tanh):
    @staticmethod
    def backward(ctx, grad):
        return grad * Right.derivative(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * Right.derivative(ctx.saved_tensors[0])


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
        return grad * Right.derivative(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * 1.001 * Right.derivative(ctx.saved_tensors[0])


class _NoForward(_Tanh):
    @staticmethod
    def backward(ctx, grad):
        return grad * Right.derivative(ctx.saved_tensors[0])


class _WrongBatch(Right):
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
        by_rule(rounding(1.0, straight_through=True)), "(?s)data, 5 steps.*does not depend on it.*straight-through",
    ),
    "a slope off by a thousandth": (through(_WrongFirst), "(?s)derivatives are wrong.*initial parameters, 5 steps"),
    "a second derivative that is lost": (through(_WrongSecond), "(?s)second derivative, initial parameters"),
    "a forward derivative that is wrong": (through(_WrongForward), "forward mode and reverse mode differ"),
    "no forward derivative": (through(_NoForward), "the forward derivative by .* raised"),
}  # fmt: skip
