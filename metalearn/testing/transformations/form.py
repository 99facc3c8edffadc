"""What a transformation has to be before its derivatives are looked at: its form, its purity, its work under vmap."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.state import from_named, named
from metalearn.testing.transformations.subject import Subject, after_steps, kind, paths, told, unequal
from metalearn.types import Tensors

_EXACT = 1e-12
_NUM_STEPS = 3


def check_form(subject: Subject) -> None:
    """Raises AssertionError unless updates look like the parameters, and the state like itself, in both precisions."""
    for each in (subject, subject.cast(torch.float32)):
        optimizer = each.alone()
        state = optimizer.init(each.params)
        _require_tensors(state)
        _require_saved(state)
        for step in range(_NUM_STEPS):
            result = optimizer.update(each.draw(each.params, 2, step), state, each.params)
            if not isinstance(result, tuple) or len(result) != 2:
                raise AssertionError(f"update returned {type(result).__name__}: expected (updates, state).")
            updates, after = result
            _require_like_parameters(updates, each.params)
            _require_same_form(after, state, step)
            state = after


def _require_tensors(state: Any) -> None:
    for path, leaf in paths(state, "state").items():
        if not isinstance(leaf, Tensor):
            raise AssertionError(
                f"{path} is {kind(leaf)}, and a state may hold tensors alone, in dicts, tuples and named tuples: "
                "vmap, strategies and files would take a number for a constant. Hold a count as torch.zeros((), "
                "dtype=torch.int64), and leave out what there is not."
            )


def _require_saved(state: Any) -> None:
    try:
        again = from_named(named(state), like=state)
    except UsageError as error:
        raise AssertionError(f"the state can not be saved by the names of what it holds: {error}") from error
    difference = unequal(again, state, "state", tolerance=0.0)
    assert difference is None, difference


def _require_like_parameters(updates: Any, params: Tensors) -> None:
    if not isinstance(updates, dict):
        raise AssertionError(f"the updates are {kind(updates)}: expected a dict by parameter name.")
    for lacking, there, what in (
        (params.keys() - updates.keys(), params, "there is no update of"),
        (updates.keys() - params.keys(), updates, "there is an update, and no parameter, of"),
    ):
        for name in there:
            if name in lacking:
                raise AssertionError(
                    f"{what} {name!r}: the names of the updates and of the parameters must be the same. Likely cause: "
                    "a parameter left out by its shape or name; give it its gradient, or zeros."
                )
    for name, value in params.items():
        if kind(updates[name]) != kind(value):
            raise AssertionError(
                f"the update of {name!r} is {kind(updates[name])}, and the parameter is {kind(value)}. Likely cause: a "
                "reduction without keepdim, or arithmetic with a tensor of another dtype: `.to(gradient.dtype)`."
            )


def _require_same_form(after: Any, before: Any, step: int) -> None:
    _require_tensors(after)
    ours, theirs = paths(after, "state"), paths(before, "state")
    if list(ours) != list(theirs) or tree.flatten(after)[1] != tree.flatten(before)[1]:
        changed = sorted(ours.keys() ^ theirs.keys())[:3] or "the order of the names, or a type"
        raise AssertionError(
            f"update {step + 1} changed the structure of the state ({changed}): it must stay the same from step to "
            "step, or loops can not be stacked, compiled or saved. Likely cause: init returns less than update, or a "
            "tuple where update returns a named tuple."
        )
    for path, value in ours.items():
        if kind(value) != kind(theirs[path]):
            raise AssertionError(
                f"{path} became {kind(value)} in update {step + 1}, after {kind(theirs[path])}: shapes, dtypes and "
                "devices of the state must stay. Likely cause: init made it of another dtype or shape than update "
                "does; torch.zeros_like(parameter) has the right one."
            )


def check_direction(subject: Subject) -> None:
    """Raises AssertionError if the first update of a whole optimizer goes uphill."""
    if not subject.is_whole:
        return
    optimizer, grads = subject.alone(), subject.draw(subject.params, 3)
    updates, _ = optimizer.update(grads, optimizer.init(subject.params), subject.params)
    if sum((updates[name] * grads[name]).sum().item() for name in grads) > 0:
        raise AssertionError(
            "the first update goes uphill, along the gradient: a whole optimizer returns what is *added* to the "
            "parameters. Negate it, or end the chain with scale_by_learning_rate(lr); pass is_whole=False for a part "
            "of an optimizer, or for one that maximizes."
        )


def check_vmap(subject: Subject) -> None:
    """Raises AssertionError unless a batch of parameters, states and hyper-parameters runs as a loop over them does."""
    rows = range(3)
    params = tree.joined(
        [{name: value + 0.1 * row for name, value in subject.params.items()} for row in rows], torch.stack
    )
    hypers = tree.joined([subject.hypers for _ in rows], torch.stack)
    grads = tree.joined([subject.draw(subject.params, 5, row) for row in rows], torch.stack)
    # Of different ages: what depends on a count has to depend on each one's own.
    states = tree.joined([after_steps(subject, subject.alone(), 1 + 2 * row) for row in rows], torch.stack)
    for what, function, nest in (
        ("init", lambda nest: subject.alone().init(nest), params),
        ("update", lambda nest: subject.alone().update(*nest), (grads, states, params)),
        ("step", lambda nest: subject.alone().step(*nest), (grads, states, params)),
        (
            "update with a batch of hyper-parameters",
            lambda nest: subject.alone(nest[0]).update(*nest[1:]),
            (hypers, grads, states, params),
        ),
    ):
        _require_vmap_equals_loop(what, function, nest)


def _require_vmap_equals_loop(what: str, function: Callable[[Any], Any], nest: Any) -> None:
    cause = "a Python `if` or `.item()`, `float()`, `bool()` of a tensor's value (torch.where, or keep it a tensor), "
    with told(f"torch.vmap of {what}", f"{cause}or a write into an unbatched tensor."):
        got = tree.vmapped(function, nest)
    expected = tree.joined([function(tree.entry(nest, row)) for row in range(3)], torch.stack)
    difference = unequal(got, expected, "result", tolerance=_EXACT)
    if difference is not None:
        raise AssertionError(
            f"torch.vmap of {what} over a batch of three, with states after 1, 3 and 5 steps, is not the loop over "
            f"them: {difference}. Likely cause: a reduction over the batch axis, or a count that is not in the state."
        )
