"""The pure functions that every optimizer is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.types import Tensors


class GradientTransformation(NamedTuple):
    """An optimizer, or a part of one: pure functions over dicts of tensors.

    Attributes:
        init: `params -> state`.
        update: `(updates, state, params) -> (updates, state)`; the first updates of a chain are the gradients. Every
            operation is differentiable, also in the state and in the hyper-parameters.
        fused: what `step` does, where rounding once instead of twice gives the bits of torch.optim; None adds the
            updates to the parameters.
    """

    init: Callable[[Tensors], Any]
    update: Callable[[Tensors, Any, Tensors], tuple[Tensors, Any]]
    fused: Callable[[Tensors, Any, Tensors], tuple[Tensors, Tensors, Any]] | None = None

    def step(self, grads: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Tensors, Any]:
        """The next parameters, the updates that lead to them, and the next state.

        The parameters are `params + updates`, but for the last bit, which is that of torch.optim.

        Example:
            >>> from metalearn.optim import sgd
            >>> optimizer, params = sgd(0.25), {"w": torch.tensor(1.0)}
            >>> optimizer.step({"w": torch.tensor(2.0)}, optimizer.init(params), params)[0]
            {'w': tensor(0.5000)}
        """
        if self.fused is not None:
            return self.fused(grads, state, params)
        updates, state = self.update(grads, state, params)
        return apply_updates(params, updates), updates, state


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


class CountState(NamedTuple):
    """The state of a transformation that remembers only how often it ran.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
    """

    num_steps: Tensor


class MeanState(NamedTuple):
    """The state of an optimizer that remembers a mean of the gradients (Lion, Muon).

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        mean: decaying mean of the gradients, by parameter name.
    """

    num_steps: Tensor
    mean: Tensors


def apply_updates(params: Tensors, updates: Tensors) -> Tensors:
    """The parameters after a step: `params + updates`, by name.

    Raises:
        UsageError: the names differ.
    """
    check_names(updates, params)
    return {name: value + updates[name] for name, value in params.items()}


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    """One transformation that applies several in order; its state is the tuple of theirs.

    Example:
        >>> from metalearn.optim import add_decayed_weights, scale_by_learning_rate
        >>> optimizer = chain(add_decayed_weights(1e-4), scale_by_learning_rate(0.1))
        >>> params = {"w": torch.ones(1)}
        >>> updates, _ = optimizer.update({"w": torch.ones(1)}, optimizer.init(params), params)
        >>> round(updates["w"].item(), 5)
        -0.10001
    """
    check_parts("chain", *transformations)
    chained = _Chain(transformations)
    return GradientTransformation(chained.init, chained.update, chained.step if transformations else None)


@dataclass(frozen=True)
class _Chain:
    # Methods, and no functions within `chain`: torch.compile can not define one whose annotations are subscripted.
    parts: tuple[GradientTransformation, ...]

    def init(self, params: Tensors) -> tuple[Any, ...]:
        return tuple(part.init(params) for part in self.parts)

    def update(self, updates: Tensors, state: tuple[Any, ...], params: Tensors) -> tuple[Tensors, tuple[Any, ...]]:
        return _through(self.parts, updates, self._checked(state), params)

    def step(
        self, updates: Tensors, state: tuple[Any, ...], params: Tensors
    ) -> tuple[Tensors, Tensors, tuple[Any, ...]]:
        *first, last = self.parts
        updates, states = _through(first, updates, self._checked(state)[:-1], params)
        params, updates, last_state = last.step(updates, state[-1], params)
        return params, updates, (*states, last_state)

    def _checked(self, state: Any) -> tuple[Any, ...]:
        if type(state) is not tuple or len(state) != len(self.parts):
            raise UsageError(
                f"the state of a chain of {len(self.parts)} is a {type(state).__name__}, expected a tuple of so many: "
                "it is that of another optimizer. Begin with optimizer.init(params)."
            )
        return state


def _through(
    parts: Sequence[GradientTransformation], updates: Tensors, state: tuple[Any, ...], params: Tensors
) -> tuple[Tensors, tuple[Any, ...]]:
    states = []
    for part, part_state in zip(parts, state, strict=True):
        updates, new_state = part.update(updates, part_state, params)
        states.append(new_state)
    return updates, tuple(states)


def stateless(function: Callable[[Tensors, Tensors], Tensors]) -> GradientTransformation:
    """A transformation from a pure `(updates, params) -> updates`."""
    return GradientTransformation(
        lambda params: EmptyState(), lambda updates, state, params: (function(updates, params), state)
    )


def zero_count(params: Tensors) -> Tensor:
    """An int64 zero on the parameters' device.

    Raises:
        UsageError: the parameters are no dict of tensors.
    """
    if not isinstance(params, dict) or not all(isinstance(value, Tensor) for value in params.values()):
        raise UsageError(
            f"params is {_kind(params)}, expected a dict of tensors by name, as functionalize(…).params is."
        )
    device = next(iter(params.values())).device if params else None
    return torch.zeros((), dtype=torch.int64, device=device)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if not isinstance(value, dict) else "a dict of other things than tensors"


def check_parts(owner: str, *parts: Any) -> None:
    """Raises UsageError unless every part is a transformation, for what is made of others."""
    for part in parts:
        if not isinstance(part, GradientTransformation):
            got = getattr(part, "__name__", None) or f"a {type(part).__name__}"
            raise UsageError(
                f"{owner} got {got}, expected a GradientTransformation such as metalearn.optim.sgd(0.1); a learned "
                "optimizer is one once it is called with its meta-parameters."
            )


def check_state(state: Any, expected: type) -> None:
    """Raises UsageError for the state of another optimizer."""
    if not isinstance(state, expected):
        raise UsageError(
            f"the optimizer's state is a {type(state).__name__}, expected {expected.__name__}: it is that of another "
            "optimizer. Begin with optimizer.init(params)."
        )


def check_names(updates: Tensors, params: Tensors) -> None:
    """Raises UsageError unless there is one update for each parameter, of its shape and dtype."""
    if updates.keys() != params.keys():
        _refuse_names(updates, params)
    for name, value in params.items():
        update = updates[name]
        if not isinstance(update, Tensor):
            raise UsageError(
                f"the update for {name!r} is {update!r}, expected a tensor: zeros where there is no gradient, or "
                "metalearn.optim.only_if for a parameter that is to be skipped."
            )
        if update.shape != value.shape or update.dtype != value.dtype:
            got, expected = (f"{each.dtype} of shape {list(each.shape)}" for each in (update, value))
            raise UsageError(f"the update for {name!r} is {got}, and the parameter {expected}: both must be the same.")


def _refuse_names(updates: Tensors, params: Tensors) -> None:
    for given, expected, what in ((updates, params, "parameter"), (params, updates, "update")):
        for name in given:
            if name not in expected:
                raise UsageError(
                    f"{name!r} has no {what}. {did_you_mean(name, expected)} Names must be the same in both."
                )
