"""Values: equal to a torch.optim over many steps, and finite with their derivatives where gradients are zero."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.inner import adapt
from metalearn.testing.transformations.subject import Subject, loss_of, regression, told
from metalearn.types import Tensors

Reference = Callable[[list[Tensor]], torch.optim.Optimizer]
NUM_REFERENCE_STEPS = 100
_EQUAL = 1e-12
_NUM_UNROLLED = 3


def reference_error(subject: Subject, reference: Reference) -> float:
    """The largest difference to a torch.optim over 100 steps of several problems; raises AssertionError above 1e-12."""
    with default_dtype(torch.float64):
        return max(_distance(subject, reference, name, grads_of) for name, grads_of in _problems(subject).items())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Some of torch's optimizers make their state in the default dtype, whatever that of the parameters is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


Gradients = Callable[[Tensors, int], Tensors]
"""Parameters and the number of the step -> gradients."""


def _problems(subject: Subject) -> dict[str, Gradients]:
    data, noises = regression(subject)[0], _noises(subject)

    def quadratic(params: Tensors) -> Tensor:
        flat = tree.to_vector(params)
        curvatures = torch.linspace(0.05, 1.0, len(flat), dtype=flat.dtype, device=flat.device)
        return 0.5 * (curvatures * flat.square()).sum() + 0.1 * flat.sum().square() / len(flat)

    def valley(params: Tensors) -> Tensor:
        flat = tree.to_vector(params)
        # The logarithm, so that no rate is too large for it.
        return torch.log1p(((1 - flat) ** 2).sum() + 2 * ((flat[1:] - flat[:-1] ** 2) ** 2).sum())

    def noise(params: Tensors, step: int) -> Tensors:
        return tree.from_vector(noises[step], params)

    def of(loss: Callable[[Tensors], Tensor]) -> Gradients:
        return lambda params, step: torch.func.grad(loss)(params)

    return {
        "a quadratic": of(quadratic),
        "a curved valley": of(valley),
        "a regression": of(lambda params: loss_of(params, {}, data)),
        "noise with zeros in it": noise,
        "gradients that are all zero": lambda params, step: tree.map_tensors(torch.zeros_like, params),
    }


def _noises(subject: Subject) -> Tensor:
    """Gradients of so many steps, `[step, size]`: half of the entries are zero, and in every tenth step all are."""
    size = sum(value.numel() for value in subject.params.values())
    like = next(iter(subject.params.values())).new_empty(NUM_REFERENCE_STEPS, size)
    drawn = subject.draw({"value": like, "kept": like}, 6)
    every_tenth = torch.arange(NUM_REFERENCE_STEPS, device=like.device) % 10 == 9
    is_zero = (drawn["kept"] < 0) | every_tenth[:, None]
    return torch.where(is_zero, torch.zeros_like(like), drawn["value"])


def _distance(subject: Subject, reference: Reference, problem: str, grads_of: Gradients) -> float:
    ours, params = subject.alone(), subject.params
    theirs = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimizer, state, largest = reference(list(theirs.values())), ours.init(params), 0.0
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"reference returned {type(optimizer).__name__}: expected a torch.optim.Optimizer.")
    for step in range(NUM_REFERENCE_STEPS):
        # Both take the gradients at the reference's parameters: at each one's own, a curved loss doubles the last bit
        # from step to step.
        grads = grads_of(tree.detach(theirs), step)
        params, _, state = ours.step(grads, state, params)
        for name, value in grads.items():
            theirs[name].grad = value.clone()
        optimizer.step()
        for name, value in theirs.items():
            wide = value.detach()
            error = ((params[name] - wide).abs() / wide.abs().clamp_min(1.0)).max().item()
            largest = max(largest, error)
            if not error <= _EQUAL:
                raise AssertionError(
                    f"it is not {type(optimizer).__name__}: on {problem}, step {step + 1} leaves {name!r} at another "
                    f"value by {error:.1e} (tolerance {_EQUAL:.0e}). Likely cause: "
                    + ("another default, or " if step == 0 else "a state that is decayed or counted otherwise, or ")
                    + "another place of eps, of the bias correction or of the weight decay."
                )
    return largest


def check_singular_points(subject: Subject) -> None:
    """Raises AssertionError unless values, first and second derivatives are finite where gradients are zero."""
    optimizer, zeros = subject.optimizer(), tree.map_tensors(torch.zeros_like, subject.params)
    with_zeros = {name: _first_half_zero(value) for name, value in subject.draw(subject.params, 8).items()}
    for where, grads in (("all gradients are zero", zeros), ("some gradients are zero", with_zeros)):
        fresh = optimizer.init(subject.params)
        worn = fresh
        for _ in range(_NUM_UNROLLED):
            _, worn = optimizer.update(grads, worn, subject.params)
        for age, state in (("at the first step", fresh), ("after three such steps", worn)):
            _require_finite_update(subject, grads, state, subject.params, f"where {where}, {age}")
    fresh = optimizer.init(zeros)
    _require_finite_update(subject, with_zeros, fresh, zeros, "where all parameters are zero, at the first step")
    _require_finite_update(subject, zeros, fresh, zeros, "where all parameters and gradients are zero")
    for where, share in (("every entry is dead", 1.0), ("half of the entries are dead", 0.5)):
        _require_finite_unroll(subject, share, f"through three inner steps in which {where}")


def _first_half_zero(value: Tensor) -> Tensor:
    flat = value.flatten()
    is_first = torch.arange(len(flat), device=flat.device) < (len(flat) + 1) // 2
    return torch.where(is_first, torch.zeros_like(flat), flat).view(value.shape)


def _require_finite_update(subject: Subject, grads: Tensors, state: Any, params: Tensors, where: str) -> None:
    leaves, closed = tree.opened(state)
    floats = [leaf for leaf in leaves if leaf.is_floating_point()]

    def outputs(point: Tensors) -> Tensor:
        moved = iter(tree.select(point, "state.").values())
        now = closed(next(moved) if leaf.is_floating_point() else leaf for leaf in leaves)
        optimizer = subject.optimizer(tree.select(point, "hyper."))
        result = optimizer.update(tree.select(point, "gradient."), now, tree.select(point, "parameter."))
        return torch.cat([leaf.flatten() for leaf in tree.tensors(result) if leaf.is_floating_point()])

    point = {
        **tree.prefixed(grads, "gradient."),
        **tree.prefixed(params, "parameter."),
        **{f"state.{index}": leaf for index, leaf in enumerate(floats)},
        **tree.prefixed(subject.hypers, "hyper."),
    }
    _require_finite(outputs, point, where, subject)


def _require_finite_unroll(subject: Subject, share: float, where: str) -> None:
    (x, y), query = regression(subject)
    dead = torch.arange(x.shape[1], device=x.device) < share * x.shape[1]

    def outputs(point: Tensors) -> Tensor:
        seen = torch.where(dead, torch.zeros_like(x), point["data.x"])
        adapted = adapt(
            loss_of, tree.select(point, "parameter."), {}, (seen, y), num_inner_steps=_NUM_UNROLLED,
            optimizer=subject.optimizer(tree.select(point, "hyper.")),
        )  # fmt: skip
        return loss_of(adapted.params, {}, query)[None]

    point = {
        **tree.prefixed(subject.params, "parameter."), "data.x": x, **tree.prefixed(subject.hypers, "hyper."),
    }  # fmt: skip
    _require_finite(outputs, point, where, subject)


_KINDS = {"gradient": "gradients", "parameter": "parameters", "state": "state", "data": "data"}


def _require_finite(function: Callable[[Tensors], Tensor], point: Tensors, where: str, subject: Subject) -> None:
    """Of the values, their gradient in a random direction, and that gradient's in another."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in point.items()}
    with told(f"the derivative {where}", "an operation without a (second) derivative."):
        values = function(leaves)
        _require({"the result": values}, "its value", where)
        first = _grads(values * subject.draw({"": values}, 9)[""], leaves)
        _require(first, "the derivative by", where)
        weights = subject.draw(first, 10)
        second = _grads(torch.cat([(first[name] * weights[name]).flatten() for name in first]), leaves)
        _require(second, "the second derivative by", where)


def _grads(values: Tensor, leaves: Tensors) -> Tensors:
    if not values.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    grads = torch.autograd.grad(
        values.sum(), list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, grads, strict=True))


def _require(named: Tensors, what: str, where: str) -> None:
    for name, value in named.items():
        if value.isfinite().all():
            continue
        kind, _, rest = name.partition(".")
        wrong = f"hyper-parameter {rest!r}" if kind == "hyper" else _KINDS.get(kind, name)
        raise AssertionError(
            f"{what} {wrong} is {_first_not_finite(value)} {where}. Likely cause: a square root, norm, power or "
            "division at zero; its derivative is infinite there, and infinity times zero is NaN. Select with "
            "torch.where before it (a harmless input) and after it (the value that it should have)."
        )


def _first_not_finite(value: Tensor) -> float:
    return value.detach()[~value.detach().isfinite()].flatten()[0].item()
