"""Updates no larger than a limit: each entry, each tensor, or all of them together."""

from collections.abc import Mapping

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.base import CountState, GradientTransformation, check_names, check_state, zero_count
from metalearn.optim.hypers import Hypers, Value, hyper_parameters
from metalearn.optim.numerics import as_it_was, as_real, norm
from metalearn.optim.transforms import counting, first_count
from metalearn.types import Hyper, Tensors

_TORCH_EPS = 1e-6
"""What `clip_grad_norm_` adds to the norm."""


@hyper_parameters
def clip(limit: Hyper) -> GradientTransformation:
    r"""Keeps every entry in the limits: $u \leftarrow \min(\max(u, -c), c)$, equal to `clip_grad_value_`.

    The derivative is that of the entry where it is inside (or on) the limits, and that of the limit outside.

    Args:
        limit: $c$: a float, a tensor, a dict by parameter name or pattern, or a schedule.

    Raises:
        UsageError: the limit is negative.

    Example:
        >>> from metalearn import optim
        >>> optimizer = optim.chain(clip(0.5), optim.sgd(1.0))
        >>> params = {"w": torch.zeros(3)}
        >>> optimizer.step({"w": torch.tensor([-2.0, 0.25, 1.0])}, optimizer.init(params), params)[0]
        {'w': tensor([ 0.5000, -0.2500, -0.5000])}
    """
    return counting(Hypers({"limit": limit}), lambda value, param, of: _clamped(value, of("limit")))


@hyper_parameters
def clip_by_norm(limit: Hyper) -> GradientTransformation:
    r"""Keeps every tensor's norm in a limit: $u \leftarrow u \min(1, c / (\|u\| + 10^{-6}))$.

    Equal to `clip_grad_norm_` of each parameter alone. The derivative is defined at an update of zero.

    Args:
        limit: $c$: a float, a tensor, a dict by parameter name or pattern, or a schedule.

    Raises:
        UsageError: the limit is negative.
    """
    return counting(
        Hypers({"limit": limit}), lambda value, param, of: _scaled(value, _factor(of("limit"), norm(value)))
    )


@hyper_parameters
def clip_by_global_norm(limit: Hyper) -> GradientTransformation:
    r"""Keeps the norm of all updates together in a limit, and their direction, equal to `clip_grad_norm_`.

    $u \leftarrow u \min(1, c / (\|u\| + 10^{-6}))$ with the norm $\|u\|$ over the entries of all parameters. The
    derivative is defined where all of them are zero.

    Args:
        limit: $c$: a float, a scalar tensor, or a schedule of one; a limit by name is `clip_by_norm`.

    Raises:
        UsageError: the limit is negative, or by name.

    Example:
        >>> params = {"w": torch.zeros(2), "b": torch.zeros(1)}
        >>> updates, _ = (part := clip_by_global_norm(1.0)).update(
        ...     {"w": torch.tensor([2.0, 4.0]), "b": torch.tensor([4.0])}, part.init(params), params
        ... )
        >>> updates["w"], updates["b"]
        (tensor([0.3333, 0.6667]), tensor([0.6667]))

    Reference: Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1 (without the 1e-6).
    """
    hypers = Hypers({"limit": limit})
    _check_is_one(hypers, None)

    def init(params: Tensors) -> CountState:
        _check_is_one(hypers, zero_count(params))
        return first_count(hypers, params)

    def update(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, CountState]:
        check_names(updates, params)
        check_state(state, CountState)
        after = CountState(state.num_steps + 1)
        if not updates:
            return {}, after
        of_all = hypers.at(state.num_steps).of("limit", next(iter(updates)))
        factor = _factor(of_all, _norm_of_all(updates))
        return {name: _scaled(value, factor) for name, value in updates.items()}, after

    return GradientTransformation(init, update)


def _clamped(value: Tensor, limit: Value) -> Tensor:
    if not isinstance(limit, Tensor):
        return as_it_was(torch.clamp(as_real(value), -limit, limit), value)
    if value.is_complex() and limit.dim() > 0:
        limit = limit[..., None]
    limit = limit.to(as_real(value).dtype)
    return as_it_was(torch.clamp(as_real(value), -limit, limit), value)


def _norm_of_all(updates: Tensors) -> Tensor:
    norms = [norm(value) for value in updates.values()]
    return norm(torch.stack([each.to(norms[0].device) for each in norms]))


def _factor(limit: Value, size: Tensor) -> Tensor:
    size = size + _TORCH_EPS
    # Not `limit / size`, which is infinite for a limit that is, and then its slope is NaN.
    least = torch.minimum(size, limit.to(size)) if isinstance(limit, Tensor) else size.clamp(max=limit)
    return least / size


def _scaled(value: Tensor, factor: Tensor) -> Tensor:
    return (value * factor.to(value.device)).to(value.dtype)


def _check_is_one(hypers: Hypers, count: Tensor | None) -> None:
    value = hypers.values["limit"]
    if callable(value) and count is not None:
        value = value(count)
    if isinstance(value, Mapping) or (isinstance(value, Tensor) and value.dim() > 0):
        got = f"a limit for each of {len(value)} names" if isinstance(value, Mapping) else f"shape {list(value.shape)}"
        raise UsageError(
            f"clip_by_global_norm has one limit for all, but got {got}: clip_by_norm takes one a parameter."
        )
