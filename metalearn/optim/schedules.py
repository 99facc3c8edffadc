"""Hyper-parameters that change from step to step: pure functions of the number of steps done.

Every number in a schedule may be a float, a tensor (and is differentiable then: a learned end point, a learned decay)
or a dict of them by parameter name or pattern; then the schedule's value is a dict too. The value is computed in
double. It is a float where all numbers are floats and the count can be read, so that a step has the bits of
torch.optim's; under vmap and in a compiled step it is a tensor. Where tensors were given it has their dtype.

The count is the optimizer's own: 0 in its first step. Past its end a schedule keeps its last value, because an inner
loop is often longer at test than in training; `exponential` and `step` have no end.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.numerics import is_readable
from metalearn.optim.scheduled import Number, as_schedule, check_length, check_numbers, is_whole, schedule_of, select
from metalearn.types import Hyper, Schedule


def constant(value: Number) -> Schedule:
    """The same value at every step; for `join`."""
    check_numbers(value=value)
    return lambda num_steps: value


def linear(start: Number, end: Number, *, num_steps: float | Tensor) -> Schedule:
    r"""$a + (b - a) \min(t / T, 1)$: from `start` at the first step to `end` after `num_steps` steps, and `end` then.

    As `torch.optim.lr_scheduler.LinearLR`, whose factors are of the rate: `linear(0.1 * lr, lr, num_steps=T)`.

    Args:
        start: $a$.
        end: $b$.
        num_steps: $T$, above 0.

    Raises:
        UsageError: `num_steps` is not above 0, something is no number, two dicts have other names.

    Example:
        >>> schedule = linear(0.0, 1.0, num_steps=4)
        >>> [schedule(torch.tensor(step)) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """

    def formula(count: Tensor, start: Tensor, end: Tensor, total: Tensor) -> Tensor:
        return start + (end - start) * _fraction(count, total)

    check_length("linear", num_steps)
    return schedule_of(formula, start=start, end=end, num_steps=num_steps)


def exponential(start: Number, decay: Number) -> Schedule:
    r"""$a \gamma^t$, without an end: as `torch.optim.lr_scheduler.ExponentialLR`.

    Args:
        start: $a$, the value at the first step.
        decay: $\gamma$, the factor from one step to the next.

    Raises:
        UsageError: something is no number, two dicts have other names.
    """
    return schedule_of(lambda count, start, decay: start * _power(decay, count), start=start, decay=decay)


def cosine(start: Number, num_steps: float | Tensor, *, end: Number = 0.0) -> Schedule:
    r"""$b + (a - b) (1 + \cos(\pi t / T)) / 2$, and `end` after `num_steps` steps.

    As `torch.optim.lr_scheduler.CosineAnnealingLR` in its first `T_max` steps; after them that one goes up again, and
    this one stays at `end`.

    Args:
        start: $a$.
        num_steps: $T$, above 0.
        end: $b$.

    Raises:
        UsageError: `num_steps` is not above 0, something is no number, two dicts have other names.

    Example:
        >>> schedule = cosine(0.5, 10, end=0.25)
        >>> [round(schedule(torch.tensor(step)), 3) for step in (0, 5, 10, 11)]
        [0.5, 0.375, 0.25, 0.25]

    Reference: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5 (without restarts).
    """

    def formula(count: Tensor, start: Tensor, end: Tensor, total: Tensor) -> Tensor:
        return end + (start - end) * (1 + torch.cos(torch.pi * _fraction(count, total))) / 2

    check_length("cosine", num_steps)
    return schedule_of(formula, start=start, end=end, num_steps=num_steps)


def polynomial(start: Number, num_steps: float | Tensor, *, end: Number = 0.0, power: Number = 1.0) -> Schedule:
    r"""$b + (a - b) (1 - t / T)^p$, and `end` after `num_steps` steps: as `torch.optim.lr_scheduler.PolynomialLR`.

    Args:
        start: $a$.
        num_steps: $T$, above 0.
        end: $b$; torch's is 0.
        power: $p$, above 0.

    Raises:
        UsageError: `num_steps` or `power` is not above 0, something is no number, two dicts have other names.
    """
    check_numbers(power=power)
    for each in power.values() if isinstance(power, Mapping) else (power,):
        if not isinstance(each, Tensor) and not each > 0:
            raise UsageError(
                f"power is {each:g}, but must be above 0; constant(value) is a schedule that does not fall."
            )

    def formula(count: Tensor, start: Tensor, end: Tensor, total: Tensor, power: Tensor) -> Tensor:
        left = 1 - _fraction(count, total)
        # The derivative of 0**p by p is log(0), which where() alone would not keep out of the backward pass.
        is_over = left <= 0
        return end + (start - end) * torch.where(is_over, 0.0, torch.where(is_over, 1.0, left) ** power)

    check_length("polynomial", num_steps)
    return schedule_of(formula, start=start, end=end, num_steps=num_steps, power=power)


def step(start: Number, every: int, *, decay: Number = 0.1) -> Schedule:
    r"""$a \gamma^{\lfloor t / k \rfloor}$, without an end: as `torch.optim.lr_scheduler.StepLR`.

    Steps at other places (`MultiStepLR`) are `join([constant(lr), constant(0.1 * lr), …], boundaries)`.

    Args:
        start: $a$, the value in the first `every` steps.
        every: $k$, after so many steps the value is multiplied once more.
        decay: $\gamma$; torch calls it gamma.

    Raises:
        UsageError: `every` is not a whole number of at least 1, something is no number, two dicts have other names.
    """
    if not is_whole(every) or every < 1:
        raise UsageError(f"every is {every!r}, but must be a whole number of steps, at least 1.")
    return schedule_of(
        lambda count, start, decay: start * _power(decay, torch.floor(count / every)), start=start, decay=decay
    )


def warmup(schedule: Hyper, num_steps: int, *, start: Number = 0.0) -> Schedule:
    """Goes from `start` to the first value of a schedule in `num_steps` equal steps, then follows it from its first.

    As torch's `SequentialLR([LinearLR(…), schedule], milestones=[num_steps])`.

    Args:
        schedule: what follows: a schedule, or a value that stays.
        num_steps: the length of the warm-up; 0 for none.
        start: the value at the first step: the rate itself, and no factor. A rate of 0 spends that step on nothing.

    Raises:
        UsageError: `num_steps` is negative or no whole number, something is no number.

    Example:
        >>> schedule = warmup(cosine(1.0, 10), 2)
        >>> [schedule(torch.tensor(step)) for step in (0, 1, 2, 12)]
        [0.0, 0.5, 1.0, 0.0]
    """
    if not is_whole(num_steps) or num_steps < 0:
        raise UsageError(f"num_steps is {num_steps!r}, but a warm-up takes a whole number of steps, 0 or more.")
    check_numbers(start=start)
    follows = as_schedule(schedule)
    if num_steps == 0:
        return follows

    def value(count: Tensor) -> Any:
        rising = linear(start, follows(torch.zeros_like(count)), num_steps=num_steps)(count)
        return select(count < num_steps, rising, follows((count - num_steps).clamp(min=0)))

    return value


def join(schedules: Sequence[Hyper], boundaries: Sequence[int]) -> Schedule:
    """One schedule after another; each counts from the step at which it begins.

    As torch's `SequentialLR`. What happens past the last boundary is for the last schedule to say.

    Args:
        schedules: schedules, or values that stay.
        boundaries: the numbers of steps done at which the second, the third … begins; increasing, one fewer than
            schedules.

    Raises:
        UsageError: the boundaries are of the wrong number, not increasing, or not whole numbers above 0.

    Example:
        >>> schedule = join([0.5, exponential(1.0, 0.5)], [2])
        >>> [schedule(torch.tensor(step)) for step in range(5)]
        [0.5, 0.5, 1.0, 0.5, 0.25]
    """
    if len(boundaries) != len(schedules) - 1:
        raise UsageError(
            f"{len(schedules)} schedules were joined with {len(boundaries)} boundaries: expected one fewer boundary "
            "than schedules, the number of steps done at which each but the first begins."
        )
    begins = [0, *boundaries]
    for before, after in zip(begins, boundaries, strict=False):
        if not is_whole(after) or after <= before:
            raise UsageError(
                f"boundaries are {list(boundaries)}: expected increasing whole numbers, the first above 0."
            )
    parts = [as_schedule(schedule) for schedule in schedules]
    lengths = [end - begin for begin, end in zip(begins, boundaries, strict=False)]

    def value(count: Tensor) -> Any:
        # No schedule is asked for what lies outside of its part, where it may be infinite: 0 * inf would be NaN.
        result = parts[0](count.clamp(max=lengths[0]) if lengths else count)
        for index, begin in enumerate(boundaries, start=1):
            own = (count - begin).clamp(min=0, max=lengths[index] if index < len(lengths) else None)
            result = select(count < begin, result, parts[index](own))
        return result

    return value


def per_step(values: Tensor | Sequence[float | Tensor] | Mapping[str, Tensor | Sequence[float | Tensor]]) -> Schedule:
    """A value of its own for every step, each of them learnable; after the last one, the last one again.

    So a rate that was learned for 5 steps can be used for 20 at test, as MAML++ does with its per-layer per-step rates.

    Args:
        values: a tensor `[num_steps, ...]`, one entry a step; a sequence of numbers or tensors; or a dict of either by
            parameter name or pattern, of any lengths.

    Raises:
        UsageError: a tensor without a first axis, no values at all, or something that is no number.

    Example:
        >>> from metalearn.optim import sgd
        >>> optimizer = sgd(per_step({"head.*": torch.tensor([0.5, 0.1]), "*": torch.tensor([0.01, 0.02])}))
        >>> per_step(torch.tensor([0.5, 0.25]))(torch.tensor(7))
        tensor(0.2500)

    Reference: Antoniou et al. 2019 (MAML++), arXiv:1810.09502, section 4, "LSLR".
    """
    if not isinstance(values, Mapping):
        return _per_step(values)
    parts = {name: _per_step(each) for name, each in values.items()}
    return lambda count: {name: part(count) for name, part in parts.items()}


def _per_step(values: Tensor | Sequence[float | Tensor]) -> Callable[[Tensor], Tensor | float]:
    numbers = values if isinstance(values, Tensor) else _stacked(values)
    if numbers.dim() == 0 or len(numbers) == 0:
        raise UsageError(
            f"per_step was given a tensor of shape {list(numbers.shape)}: expected [num_steps, ...], one value a step."
        )
    are_floats = not isinstance(values, Tensor) and not any(isinstance(value, Tensor) for value in values)

    def value(count: Tensor) -> Tensor | float:
        # Not numbers[count], which waits for a GPU to tell the count.
        at = count.clamp(max=len(numbers) - 1).reshape(1).to(numbers.device)
        found = numbers.index_select(0, at).squeeze(0)
        return found.item() if are_floats and is_readable(found) else found

    return value


def _stacked(values: Any) -> Tensor:
    if not isinstance(values, list | tuple) or not values:
        raise UsageError(
            f"per_step was given {values!r}: expected a tensor [num_steps, ...], or a list, a value a step."
        )
    for each in values:
        check_numbers(values=each)
    # Not torch.tensor(values), which cuts tensors in the list from their history.
    dtypes = [each.dtype for each in values if isinstance(each, Tensor)]
    dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.float64
    return torch.stack([each if isinstance(each, Tensor) else torch.tensor(each, dtype=dtype) for each in values])


def _fraction(count: Tensor, total: Tensor) -> Tensor:
    """How much of a schedule is over, up to 1."""
    return torch.clamp(count / total, max=1.0)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """With a second derivative by the base also where that is 0, as a learned decay may be; torch's is NaN at 0**0."""
    is_zero = exponent == 0
    return torch.where(is_zero, 1.0, base ** torch.where(is_zero, 1.0, exponent))
