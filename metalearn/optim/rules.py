"""An optimizer from its rule for the entries of a tensor: hyper-parameters, decay and speed are the same for all.

A rule is a function of a tensor's gradient, its value and its slots of state; it is written once, in plain operations.
Where it treats every entry alike, small parameters are laid end to end and go through it as one vector: then a step
costs a handful of operations and not a handful for each parameter, and so does its derivative.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation, check_names, zero_count
from metalearn.optim.hypers import Hypers, Value
from metalearn.optim.joining import fitting, pieces
from metalearn.optim.numerics import add_scaled, as_it_was, as_real, has_history, is_readable, wide
from metalearn.types import Tensors

_PER_ENTRY = {"lr", "weight_decay"}
"""What may differ from entry to entry also where the rest is computed of a tensor as a whole."""

Slots: TypeAlias = tuple[Tensor, ...]
"""The state of one tensor: the fields of the optimizer's state after `num_steps`, in order."""

Start: TypeAlias = "Callable[[Step, Tensor], Tensor]"
"""What a slot begins with, of the parameter's shape or another."""


@dataclass(frozen=True)
class Step:
    """What a rule knows of a step besides tensors.

    Attributes:
        number: 1 for the first step; an int where it can be known without waiting for a device, else an int64 scalar.
        values: the hyper-parameters' values: a number for all entries, or a tensor that fits the rule's tensors.
        like: a tensor of the dtype and on the device that the rule computes in.
    """

    number: int | Tensor
    values: Mapping[str, Value]
    like: Tensor

    def __getitem__(self, name: str) -> Value:
        """A hyper-parameter, to compute with entries."""
        return self.entries(self.values[name])

    def exact(self, name: str) -> Value:
        """A hyper-parameter, a tensor in double; for what is computed once a step and not for every entry."""
        value = self.values[name]
        return wide(value, self.like.device) if isinstance(value, Tensor) else float(value)

    @property
    def count(self) -> Value:
        """The number of the step for arithmetic with `exact` values: a float, or a tensor in double."""
        return wide(self.number, self.like.device) if isinstance(self.number, Tensor) else float(self.number)

    def entries(self, value: Value) -> Value:
        """A value to compute with entries, which keep their dtype."""
        return value.to(self.like.dtype) if isinstance(value, Tensor) else value


class Rule(NamedTuple):
    """How an optimizer moves one tensor.

    Attributes:
        move: `(step, gradient, param, *slots) -> (update, slots)`; the update is added to the parameter.
        slots: what each slot of state begins with, by the name of its field.
        is_entrywise: every entry is treated alike and alone, so that tensors may be joined.
        is_light: it is of so few operations that joining pays only where no derivative is asked.
        is_direction: what it calls an update is a direction of ascent, to be taken `-lr` times.
        least_axes: how many axes a parameter has to have.
    """

    move: Callable[..., tuple[Tensor, Slots]]
    slots: Mapping[str, Start] = {}
    is_entrywise: bool = True
    is_light: bool = False
    is_direction: bool = False
    least_axes: int = 0


def zeros(step: Step, param: Tensor) -> Tensor:
    """A slot that begins with zeros."""
    return torch.zeros_like(param)


def from_rule(
    rule: Rule,
    state_type: Callable[..., Any],
    hypers: Hypers,
    *,
    decoupled: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    r"""The transformation that follows a rule.

    Args:
        rule: what happens to one tensor.
        state_type: the NamedTuple of the state: `num_steps`, then a dict by parameter name for each slot of the rule.
        hypers: the rule's hyper-parameters. One called `weight_decay` is seen to here: it adds $\lambda\theta$ to the
            gradient.
        decoupled: the decay is taken off the parameter instead, $\theta \leftarrow \theta - \eta\lambda\theta$, beside
            the update; needs a hyper-parameter `lr`.
        maximize: climb. As in torch.optim the decay still shrinks.
    """
    # Methods and no functions in here: torch.compile can not define one whose annotations are subscripted.
    following = _Following(rule, state_type, hypers, decoupled=decoupled, maximize=maximize)
    return GradientTransformation(following.init, following.update, following.step)


@dataclass(frozen=True)
class _Following:
    rule: Rule
    state_type: Callable[..., Any]
    hypers: Hypers
    decoupled: bool = False
    maximize: bool = False

    def init(self, params: Tensors) -> Any:
        count = zero_count(params)
        now = self.hypers.check(params, count)
        slots: dict[str, Tensors] = {name: {} for name in self.rule.slots}
        for name, param in params.items():
            self._check_param(name, param)
            real = as_real(param)
            values = {hyper: fitting(now.of(hyper, name), param) for hyper in now.values}
            self._check_numbers(values, name)
            step = Step(0, values, real)
            for slot, start in self.rule.slots.items():
                slots[slot][name] = as_it_was(start(step, real), param)
        return self.state_type(count, **slots)

    def _check_numbers(self, values: Mapping[str, Value], of: str) -> None:
        """Where a tensor is treated as a whole, what is computed of the whole has one value for it."""
        for name, value in values.items():
            is_an_entry = isinstance(value, Tensor) and value.dim() > 0
            if is_an_entry and not self.rule.is_entrywise and name not in _PER_ENTRY:
                raise UsageError(
                    f"{name} for {of!r} has a value an entry, and this optimizer treats a parameter as a whole: give "
                    "one number for it."
                )

    def _check_param(self, name: str, param: Tensor) -> None:
        if not (param.is_floating_point() or param.is_complex()):
            raise UsageError(f"{name!r} is {param.dtype}, which has no gradient: leave it among the buffers.")
        if param.dim() < self.rule.least_axes:
            raise UsageError(
                f"{name!r} has shape {list(param.shape)}, and this optimizer takes parameters of at least "
                f"{self.rule.least_axes} axes. Give it to another one, metalearn.optim.partition({{{name!r}: "
                "metalearn.optim.adamw(1e-3), '*': …}), or adapt the others alone (adapted='*.weight' of an algorithm)."
            )
        if param.is_complex() and not self.rule.is_entrywise:
            raise UsageError(f"{name!r} is complex, and this optimizer takes real parameters only, as torch's.")

    def update(self, updates: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Any]:
        return self.step(updates, state, params)[1:]

    def step(self, grads: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Tensors, Any]:
        check_names(grads, params)
        count, *slots = self._checked(state, params)
        now = self.hypers.at(count)
        number = int(count) + 1 if is_readable(count) else count + 1
        moved: Tensors = {}
        updates: Tensors = {}
        after: list[Tensors] = [{} for _ in slots]
        by_name = any(now.has_names(name) for name in now.values)
        for_all = {} if by_name else {name: now.of(name, "") for name in now.values}
        for piece in pieces(params, joined=self._joins(grads)):
            values = {name: piece.value(now, name) for name in now.values} if by_name else for_all
            if by_name:
                self._check_numbers(values, piece.names[0])
            step = Step(number, values, piece.of(params))
            found = self._move(step, piece.of(grads), *(piece.of(slot) for slot in slots))
            for into, tensor in zip((moved, updates, *after), found, strict=True):
                into.update(piece.parts(tensor))
        ordered = [{name: named[name] for name in params} for named in (moved, updates, *after)]
        return ordered[0], ordered[1], self.state_type(count + 1, *ordered[2:])

    def _joins(self, grads: Tensors) -> bool:
        return self.rule.is_entrywise and not (self.rule.is_light and has_history(*grads.values()))

    def _move(self, step: Step, gradient: Tensor, *slots: Tensor) -> tuple[Tensor, ...]:
        """The parameter after the step, the update, and the slots."""
        param = step.like
        decay = step["weight_decay"] if "weight_decay" in step.values else 0.0
        is_decayed = isinstance(decay, Tensor) or decay != 0
        if self.maximize:
            gradient = -gradient
        if is_decayed and not self.decoupled:
            gradient = add_scaled(gradient, param, decay)
        update, slots = self.rule.move(step, gradient, param, *slots)
        if self.rule.is_direction:
            # As torch.optim rounds: once, where a sum of parameter and update would be rounded twice.
            return add_scaled(param, update, -step["lr"]), -step["lr"] * update, *slots
        if not is_decayed or not self.decoupled:
            return param + update, update, *slots
        shrink = step["lr"] * decay
        # As torch.optim rounds: first the parameter shrinks, then it moves.
        return param * (1 - shrink) + update, add_scaled(update, param, -shrink), *slots

    def _checked(self, state: Any, params: Tensors) -> Any:
        fields = ("num_steps", *self.rule.slots)
        if getattr(state, "_fields", None) != fields:
            raise UsageError(
                f"the optimizer's state is a {type(state).__name__}, expected one of {', '.join(fields)}: it is that "
                "of another optimizer. Begin with optimizer.init(params)."
            )
        for field in self.rule.slots:
            slot = getattr(state, field)
            if slot.keys() != params.keys():
                name = min(slot.keys() ^ params.keys())
                raise UsageError(
                    f"the optimizer's state is that of other parameters: {name!r} is in only one of `{field}` and the "
                    "parameters. Begin with optimizer.init(params)."
                )
            for name, value in slot.items() if self.rule.is_entrywise else ():
                if value.shape != params[name].shape or value.dtype != params[name].dtype:
                    got, expected = (f"{each.dtype} of shape {list(each.shape)}" for each in (value, params[name]))
                    raise UsageError(
                        f"the optimizer's state is that of other parameters: `{field}` has {got} for {name!r}, which "
                        f"is {expected}. Begin with optimizer.init(params)."
                    )
        return state
