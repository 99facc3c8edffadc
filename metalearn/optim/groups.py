"""Transformations of some parameters, or at some steps, and other ones for the others."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from metalearn.errors import UsageError, closest, did_you_mean
from metalearn.optim.base import EmptyState, GradientTransformation, check_names, check_parts, check_state, zero_count
from metalearn.optim.numerics import constant_in_compiled
from metalearn.optim.wrapping import chosen, following, nothing
from metalearn.patterns import fits, fitting_any, near
from metalearn.types import Tensors

Which: TypeAlias = str | Iterable[str] | Callable[[str], bool]
"""Which parameters: a pattern (`"features.*"`), several (`["*.weight", "!head.*"]`), or a function of a name."""


class MaskedState(NamedTuple):
    """The state of `masked`.

    Attributes:
        inner: the state of the inner transformation, for its parameters alone.
    """

    inner: Any


class PartitionState(NamedTuple):
    """The state of `partition`.

    Attributes:
        groups: the state of each transformation, by its name or pattern.
    """

    groups: dict[str, Any]


class ConditionalState(NamedTuple):
    """The state of `only_if`.

    Attributes:
        num_steps: int64 scalar, the number of steps so far, with and without the inner transformation.
        inner: the state of the inner transformation, which counts its own steps.
    """

    num_steps: Tensor
    inner: Any


def masked(transformation: GradientTransformation, which: Which) -> GradientTransformation:
    """A transformation of some parameters; the updates of the others pass as they are.

    In front of an optimizer, that is what leaves biases without weight decay. A whole optimizer is better given to
    `partition`: what passes here is the gradient itself, and would be added to the other parameters.

    Args:
        transformation: what sees these parameters, their updates, and nothing else.
        which: a pattern of names, several, or a function `name -> bool`.

    Raises:
        UsageError: (when parameters are seen) a pattern fits no name, or the function is true for none.

    Example:
        >>> from metalearn.optim import add_decayed_weights, chain, sgd
        >>> optimizer = chain(masked(add_decayed_weights(0.5), "!*bias"), sgd(1.0))
        >>> params = {"weight": torch.ones(1), "bias": torch.ones(1)}
        >>> optimizer.step({"weight": torch.ones(1), "bias": torch.ones(1)}, optimizer.init(params), params)[1]
        {'weight': tensor([-1.5000]), 'bias': tensor([-1.])}
    """
    check_parts("masked", transformation)
    choose = _choosing(which)

    def init(params: Tensors) -> MaskedState:
        return MaskedState(transformation.init(_only(choose(params), params)))

    def step(updates: Tensors, state: MaskedState, params: Tensors) -> tuple[Tensors, Tensors, MaskedState]:
        check_names(updates, params)
        check_state(state, MaskedState)
        names = choose(params)
        moved, changed, inner = transformation.step(_only(names, updates), state.inner, _only(names, params))
        return (
            {name: moved[name] if name in names else value + updates[name] for name, value in params.items()},
            {name: changed[name] if name in names else value for name, value in updates.items()},
            MaskedState(inner),
        )

    return following(init, step)


def freeze(which: Which = "*") -> GradientTransformation:
    """Some parameters stay: their updates become zero, and the others' pass as they are.

    It belongs at the end of a chain: before it, weight decay or momentum would still move what is frozen. With
    `partition` no state is held for what is frozen: `partition({"features.*": freeze(), "*": adam()})`.

    Args:
        which: a pattern of names, several, or a function `name -> bool`; by default all.

    Raises:
        UsageError: (when parameters are seen) a pattern fits no name, or the function is true for none.
    """
    choose = _choosing(which)

    def init(params: Tensors) -> EmptyState:
        choose(params)
        return EmptyState()

    def step(updates: Tensors, state: EmptyState, params: Tensors) -> tuple[Tensors, Tensors, EmptyState]:
        check_names(updates, params)
        check_state(state, EmptyState)
        names = choose(params)
        changed = {name: torch.zeros_like(value) if name in names else value for name, value in updates.items()}
        moved = {name: value if name in names else value + updates[name] for name, value in params.items()}
        return moved, changed, state

    return following(init, step)


def partition(transformations: Mapping[str, GradientTransformation]) -> GradientTransformation:
    """Another transformation for another group of parameters, each with its own state and count of steps.

    A parameter belongs to its own name, else to the first pattern that it fits, so that `"*"` comes last.

    Args:
        transformations: by parameter name or pattern.

    Raises:
        UsageError: (when parameters are seen) a parameter fits nothing, a pattern but `"*"` fits no parameter, or none
            that does not belong to one before it.

    Example:
        >>> from metalearn.optim import adam, sgd
        >>> optimizer = partition({"head.*": sgd(1.0), "*": adam(0.25)})
        >>> params = {"body.weight": torch.ones(1), "head.weight": torch.ones(1)}
        >>> grads = {"body.weight": torch.full((1,), 2.0), "head.weight": torch.full((1,), 2.0)}
        >>> optimizer.step(grads, optimizer.init(params), params)[1]
        {'body.weight': tensor([-0.2500]), 'head.weight': tensor([-2.])}
    """
    _check_parts(transformations)
    transformations = dict(transformations)

    def init(params: Tensors) -> PartitionState:
        groups = _grouped(transformations, params)
        return PartitionState({of: part.init(_only(groups[of], params)) for of, part in transformations.items()})

    def step(updates: Tensors, state: PartitionState, params: Tensors) -> tuple[Tensors, Tensors, PartitionState]:
        check_names(updates, params)
        check_state(state, PartitionState)
        groups = _grouped(transformations, params)
        moved: Tensors = {}
        changed: Tensors = {}
        states = {}
        for of, part in transformations.items():
            names = groups[of]
            their, own, states[of] = part.step(_only(names, updates), state.groups[of], _only(names, params))
            moved.update(their)
            changed.update(own)
        return {name: moved[name] for name in params}, {name: changed[name] for name in updates}, PartitionState(states)

    return following(init, step)


def only_if(
    transformation: GradientTransformation, condition: Callable[[Tensor], Tensor | bool]
) -> GradientTransformation:
    """A transformation that acts at some steps only; at the others parameters and its state stay as they are.

    So `torch.optim` treats a parameter whose grad is None: the momentum stays, and the count of steps lags behind.

    Args:
        transformation: what acts.
        condition: from the number of steps so far (int64 scalar, 0 at the first) to a bool scalar.

    Raises:
        UsageError: (at a step) the condition returns something else.

    Example:
        >>> from metalearn.optim import sgd
        >>> every_other = only_if(sgd(1.0, momentum=0.5), lambda num_steps: num_steps % 2 == 0)
        >>> optimizer = partition({"head.*": sgd(1.0), "*": every_other})
    """
    check_parts("only_if", transformation)
    if not callable(condition):
        raise UsageError(f"the condition of only_if is {condition!r}, expected a function of the number of steps.")

    def init(params: Tensors) -> ConditionalState:
        return ConditionalState(zero_count(params), transformation.init(params))

    def step(updates: Tensors, state: ConditionalState, params: Tensors) -> tuple[Tensors, Tensors, ConditionalState]:
        check_names(updates, params)
        check_state(state, ConditionalState)
        moved, changed, inner = chosen(
            _checked(condition(state.num_steps)),
            lambda: transformation.step(updates, state.inner, params),
            (params, nothing(updates), state.inner),
        )
        return moved, changed, ConditionalState(state.num_steps + 1, inner)

    return following(init, step)


def _only(names: Collection[str], named: Tensors) -> Tensors:
    return {name: value for name, value in named.items() if name in names}


def _choosing(which: Which) -> Callable[[Tensors], set[str]]:
    """From parameters to the names of those that are meant."""
    if isinstance(which, Mapping) or not (isinstance(which, Iterable) or callable(which)):
        raise UsageError(f"{which!r} is no choice of parameters: give patterns of names, or a function of a name.")
    if not callable(which):
        patterns = (which,) if isinstance(which, str) else tuple(which)  # a generator is empty at the second step
        if not patterns:
            raise UsageError("no parameter is chosen: give a pattern of names, or a function of a name.")
        return lambda params: set(_fitting(patterns, tuple(params)))

    def choose(params: Tensors) -> set[str]:
        names = {name for name in params if which(name)}
        if params and not names:
            raise UsageError(f"the function of names is true for none of the {len(params)}. {closest('', params)}")
        return names

    return choose


@constant_in_compiled
def _fitting(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(fitting_any(patterns, names)))


def _grouped(patterns: Iterable[str], params: Tensors) -> dict[str, set[str]]:
    """The names of the parameters that belong to each name or pattern."""
    found = _assigned(tuple(patterns), tuple(params))
    return {pattern: set(names) for pattern, names in found}


@constant_in_compiled
def _assigned(patterns: tuple[str, ...], params: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    groups: dict[str, set[str]] = {pattern: set() for pattern in patterns}
    for name in params:
        of = name if name in groups else next((pattern for pattern in groups if fits(pattern, name)), None)
        if of is None:
            raise UsageError(
                f"{name!r} belongs to no group of the partition. {did_you_mean(name, groups)} Add it, or '*' as the "
                "last for the rest; partition({…, '*': freeze()}) leaves it as it is."
            )
        groups[of].add(name)
    for pattern, names in groups.items():
        if not names and pattern != "*":
            _refuse_empty(pattern, groups, params)
    return tuple((pattern, tuple(sorted(names))) for pattern, names in groups.items())


def _refuse_empty(pattern: str, groups: Mapping[str, set[str]], params: Collection[str]) -> None:
    if pattern.startswith("!"):
        raise UsageError(f"a partition has no {pattern!r}: give those it leaves out first, and then '*'.")
    taken = next((name for name in params if fits(pattern, name)), None)
    if taken is None:
        raise UsageError(
            f"the partition's {pattern!r} fits none of the {len(params)} parameters. {near(pattern, params)}"
        )
    owner = next(of for of, names in groups.items() if taken in names)
    raise UsageError(
        f"the partition's {pattern!r} gets nothing: the first pattern that fits counts, and {owner!r} before it takes "
        f"{taken!r}. Put {pattern!r} in front."
    )


def _check_parts(transformations: Mapping[str, GradientTransformation]) -> None:
    if not isinstance(transformations, Mapping) or not transformations:
        raise UsageError(
            "partition takes a dict from names or patterns to optimizers: {'head.*': sgd(0.1), '*': adam()}."
        )
    for pattern, part in transformations.items():
        if not isinstance(pattern, str) or not isinstance(part, GradientTransformation):
            raise UsageError(
                f"the partition has {type(part).__name__} for {pattern!r}: expected a GradientTransformation such as "
                "sgd(0.1), for a parameter's name or a pattern."
            )


def _checked(condition: object) -> Tensor | bool:
    if isinstance(condition, bool):
        return condition
    if isinstance(condition, Tensor) and condition.dtype == torch.bool and condition.dim() == 0:
        return condition
    got = f"{condition.dtype}{list(condition.shape)}" if isinstance(condition, Tensor) else repr(condition)
    raise UsageError(f"the condition of only_if returned {got}: expected a bool scalar, such as num_steps >= 10.")
