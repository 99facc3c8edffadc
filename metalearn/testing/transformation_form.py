"""What a transformation has to be before its derivatives are looked at: its form, its purity, its work under vmap."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.optim import GradientTransformation
from metalearn.state import from_named, named
from metalearn.testing.transformation_subject import Subject, kind, paths, told, unequal
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


def check_purity(subject: Subject) -> None:
    """Raises AssertionError unless init, update and step are functions of their arguments and leave them alone."""
    optimizer = subject.alone()
    _require_untouched("init", lambda params: optimizer.init(params), (subject.params,))
    state = _after(subject, optimizer, 2)
    inputs = (subject.draw(subject.params, 2, 7), state, subject.params)
    _require_untouched("update", lambda *given: optimizer.update(*given), inputs)
    _require_untouched("step", lambda *given: optimizer.step(*given), inputs)
    _require_same_step(optimizer, inputs)
    _require_same_with_history(optimizer, inputs)
    _require_nothing_hidden(subject)
    _require_same_slope(subject)


def _require_untouched(what: str, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    given = tree.tensors(inputs)
    copies, versions = [value.clone() for value in given], [value._version for value in given]
    names, where = _names(inputs), paths(inputs, what)
    first = function(*inputs)
    if names != _names(inputs):
        raise AssertionError(f"{what} added or removed entries of a dict that it was given: return a new dict.")
    for (path, value), copy, version in zip(where.items(), copies, versions, strict=True):
        if value._version != version or not torch.equal(value, copy):
            raise AssertionError(
                f"{what} wrote into its input {path.replace(what, 'argument', 1)}: inputs must stay as they are, or "
                "the graph of the steps before is lost. Likely cause: an in-place operation (add_, mul_, copy_, +=)."
            )
    difference = unequal(function(*inputs), first, "result", tolerance=0.0)
    if difference is not None:
        raise AssertionError(
            f"{what} gives another result when it is called again with the same inputs ({difference}). Likely cause: "
            "a count or a cache kept in Python, or a draw from the global generator; the state is the place for a "
            "count and for a key of metalearn.random."
        )


def _names(inputs: tuple[Any, ...]) -> list[str]:
    return list(paths(inputs, ""))


def _require_same_slope(subject: Subject) -> None:
    """Where a step is a function of its own, it has the derivative of the update that a chain would take."""
    if subject.alone().fused is None:
        return
    weights, grads = subject.draw(subject.params, 2, 21), subject.draw(subject.params, 2, 22)

    def moved(through_step: bool, given: tuple[Tensors, Tensors, Tensors]) -> Tensor:
        hypers, grads, params = given
        optimizer = subject.alone(hypers)
        state = optimizer.init(params)
        for _ in range(2):
            if through_step:
                params, _, state = optimizer.step(grads, state, params)
            else:
                updates, state = optimizer.update(grads, state, params)
                params = {name: value + updates[name] for name, value in params.items()}
        return torch.stack([(weights[name] * value).sum() for name, value in params.items()]).sum()

    given = (subject.hypers, grads, subject.params)
    by_step, by_update = (torch.func.grad(partial(moved, way))(given) for way in (True, False))
    difference = unequal(by_step, by_update, "the derivative of step", tolerance=1e-10)
    if difference is not None:
        raise AssertionError(
            f"{difference} from that of update, by (hyper-parameters, gradients, parameters). Likely cause: a "
            ".detach() or .item() in one of them; alone an optimizer goes through `fused`, in a chain through `update`."
        )


def _require_same_step(optimizer: GradientTransformation, inputs: tuple[Tensors, Any, Tensors]) -> None:
    updates, state = optimizer.update(*inputs)
    expected = {name: value + updates[name] for name, value in inputs[2].items()}
    result = optimizer.step(*inputs)
    difference = unequal(result, (expected, updates, state), "step", tolerance=_EXACT)
    if difference is not None:
        raise AssertionError(
            f"step is not params + updates, updates, state of update: {difference}. Likely cause: `fused` computes "
            "something else; leave it out."
        )


def _require_same_with_history(optimizer: GradientTransformation, inputs: tuple[Tensors, Any, Tensors]) -> None:
    """What is fast where no derivative is asked has to be the same where one is."""
    leaves = tree.map_tensors(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x, inputs)
    with told("update of tensors that require grad", "a write in place into a leaf of the graph."):
        got = tree.detach(optimizer.step(*leaves))
    with torch.no_grad():
        difference = unequal(got, optimizer.step(*inputs), "step", tolerance=_EXACT)
    if difference is not None:
        raise AssertionError(
            f"a step on tensors that require grad is another one than without grad: {difference}. Likely cause: a "
            "branch on requires_grad or torch.is_grad_enabled() that computes something else."
        )


def _require_nothing_hidden(subject: Subject) -> None:
    """Two loops that take turns have to end where each ends by itself, and so has one from before another's init."""
    others = {name: value + 1 for name, value in subject.params.items()}
    alone = [_steps(subject.alone(), subject, params, 4)[1] for params in (subject.params, others)]
    optimizer = subject.alone()
    states = [optimizer.init(subject.params), optimizer.init(others)]
    updates: list[Any] = [None, None]
    for step in range(4):
        for loop, params in enumerate((subject.params, others)):
            updates[loop], states[loop] = optimizer.update(subject.draw(params, 4, step), states[loop], params)
    difference = unequal(list(zip(updates, states, strict=True)), alone, "loops", tolerance=_EXACT)
    if difference is not None:
        raise AssertionError(
            f"two loops that take turns with one transformation end elsewhere than each by itself ({difference}). "
            "Likely cause: something is kept outside the state (a count, a cache, an attribute)."
        )


def _steps(optimizer: GradientTransformation, subject: Subject, params: Tensors, count: int) -> tuple[Any, Any]:
    """The state after so many updates at the same parameters, and the last updates with it."""
    state, result = optimizer.init(params), None
    for step in range(count):
        updates, state = optimizer.update(subject.draw(params, 4, step), state, params)
        result = (updates, state)
    return state, result


def _after(subject: Subject, optimizer: GradientTransformation, count: int) -> Any:
    return _steps(optimizer, subject, subject.params, count)[0]


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
    states = tree.joined([_after(subject, subject.alone(), 1 + 2 * row) for row in rows], torch.stack)
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
