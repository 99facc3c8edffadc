"""That a transformation is a function of its arguments: nothing written, nothing hidden, one way like the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.optim import GradientTransformation
from metalearn.testing.transformations.subject import Subject, after_steps, paths, told, unequal, walk
from metalearn.types import Tensors

_EXACT = 1e-12


def check_purity(subject: Subject) -> None:
    """Raises AssertionError unless init, update and step are functions of their arguments and leave them alone."""
    optimizer = subject.alone()
    _require_untouched("init", lambda params: optimizer.init(params), (subject.params,))
    state = after_steps(subject, optimizer, 2)
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
    alone = [walk(subject.alone(), subject, params, 4)[1] for params in (subject.params, others)]
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
