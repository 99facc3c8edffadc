"""Normalisation: exact second derivatives, statistics by policy, and statistics over the real rows of padded inputs."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.functional.interception.call import Call


def _weight_norm(call: Call, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # torch's own has a wrong second derivative (relative error 0.4 on torch 2.13); this is what it computes.
    axes = [axis for axis in range(v.dim()) if axis != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    normed: Tensor = g * v / v.square().sum(axes, keepdim=True).sqrt()
    return normed


def _batch_norm(
    call: Call,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm with the statistics that the call asks for, those of a set over its real rows."""
    if call.statistics == "set":
        training, running_mean, running_var = True, None, None
    elif call.statistics is not None:
        if running_mean is None or running_var is None:
            raise UsageError(
                f"normalising({call.statistics!r}) needs running statistics, but a batch norm keeps none: build it "
                "with track_running_stats=True."
            )
        training = call.statistics == "tracked"
    if training and call.rows is not None:
        return _batch_norm_of_rows(call.rows, x, running_mean, running_var, weight, bias, momentum, eps)
    if training and isinstance(momentum, Tensor):  # torch's kernels take a number
        with torch.no_grad():
            _update(running_mean, running_var, *_moments(x, [0, *range(2, x.dim())]), momentum)
        running_mean, running_var, momentum = None, None, 0.0
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)  # type: ignore[arg-type]


def _batch_norm_of_rows(
    rows: Tensor,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | Tensor,
    eps: float,
) -> Tensor:
    _check_rows(rows, x, what="batch norm")
    given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # as torch's kernels sum up half precision
    axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    real = rows.reshape(-1, *[1] * (x.dim() - 1))
    count = rows.sum() * math.prod(x.shape[2:])
    mean = torch.where(real, x, 0.0).sum(axes) / count
    centred = x - mean.reshape(shape)
    variance = torch.where(real, centred, 0.0).square().sum(axes) / count
    with torch.no_grad():
        _update(running_mean, running_var, mean, variance * count / (count - 1).clamp_min(1), momentum)
    normed = centred * (variance + eps).rsqrt().reshape(shape)
    normed = normed if weight is None else normed * weight.reshape(shape)
    return (normed if bias is None else normed + bias.reshape(shape)).to(given)


def _instance_norm(
    call: Call,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance norm with the statistics that the call asks for, where it tracks any; those of real rows are tracked."""
    if running_mean is not None and call.statistics is not None:
        use_input_stats = call.statistics != "running"
    if use_input_stats and call.statistics == "set":
        running_mean, running_var = None, None
    if use_input_stats and running_mean is not None and call.rows is not None:
        _check_rows(call.rows, x, what="instance norm")
        with torch.no_grad():
            real, count = call.rows[:, None], call.rows.sum()
            moments = _moments(x, list(range(2, x.dim())))
            mean, variance = (torch.where(real, each, 0.0).sum(0) / count for each in moments)
            _update(running_mean, running_var, mean, variance, momentum)
        running_mean, running_var = None, None
    return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """The mean and the unbiased variance, summed up in float32 at least."""
    variance, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), axes)
    return mean, variance


def _update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float | Tensor,
) -> None:
    # Without grad, as in torch's kernels: running statistics are constants.
    for running, current in ((running_mean, mean), (running_var, variance)):
        if running is not None:
            running.mul_(1 - momentum).add_(momentum * current)


def _check_rows(rows: Tensor, x: Tensor, *, what: str) -> None:
    if len(x) != len(rows):
        raise UsageError(
            f"a {what} sees {len(x)} rows of a padded set of {len(rows)} examples, so that real and padded "
            "rows can not be told apart in it. Keep examples as rows, or give all episodes one size."
        )


def _torch_batch_norm(
    call: Call, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    cudnn: bool = True,
) -> Tensor:  # fmt: skip
    return _batch_norm(call, x, mean, var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    call: Call, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, momentum: float,
    eps: float, cudnn: bool = True,
) -> Tensor:  # fmt: skip
    return _instance_norm(call, x, mean, var, weight, bias, use_input_stats, momentum, eps)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.instance_norm: _torch_instance_norm,
}
