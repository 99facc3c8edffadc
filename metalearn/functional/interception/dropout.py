"""Dropouts and random slopes, with the draws taken from a key."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import random
from metalearn.functional.interception import keyed
from metalearn.functional.interception.call import Call
from metalearn.functional.ownership import vmap_levels


def _drop(
    call: Call,
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mask_dims: int | None = None,
) -> Tensor:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return x
    dropped = x * 0.0 if p == 1.0 else x * (_mask(call, x, p, mask_dims) / (1.0 - p))
    return _written(x, dropped) if inplace else dropped


def _alpha_drop(
    call: Call,
    x: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    mask_dims: int | None = None,
) -> Tensor:
    """Alpha dropout keeps a SELU network's mean 0 and variance 1 (Klambauer et al. 2017, arXiv:1706.02515)."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return x
    if p == 1.0:
        dropped = x * 0.0
    else:
        saturation = -1.7580993408473766
        scale = ((1 - p) * (1 + p * saturation**2)) ** -0.5
        mask = _mask(call, x, p, mask_dims)
        dropped = (x * mask + saturation * (1 - mask)) * scale - scale * p * saturation
    return _written(x, dropped) if inplace else dropped


def _written(x: Tensor, value: Tensor) -> Tensor:
    """What a function in place returns."""
    if vmap_levels(value) <= vmap_levels(x):
        return x.copy_(value)
    # Tasks that share x draw their own numbers, and torch can not write these into it. What is returned is right all
    # the same; whoever reads x again must not get the old values.
    x.fill_(torch.nan)
    return value


def _mask(call: Call, x: Tensor, p: float, mask_dims: int | None) -> Tensor:
    """1 where a value is kept, `[...]` like x; with mask_dims = d the last d axes share one draw (whole channels)."""
    shape = list(x.shape)
    if mask_dims is not None:
        shape[len(shape) - mask_dims :] = [1] * mask_dims
    return random.bernoulli(call.draw(), 1.0 - p, shape).to(x.device, x.dtype)


def _channel_drop(spatial_dims: int) -> Callable[..., Tensor]:
    def drop(call: Call, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _drop(call, x, p, training, inplace, mask_dims=spatial_dims)

    return drop


def _feature_drop(call: Call, x: Tensor, p: float, train: bool) -> Tensor:
    return _drop(call, x, p, train, mask_dims=x.dim() - 2)


def _feature_alpha_drop(call: Call, x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    return _alpha_drop(call, x, p, training, inplace, mask_dims=x.dim() - 2)


def _native_drop(call: Call, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0.0:
        return x, torch.ones_like(x, dtype=torch.bool)
    mask = random.bernoulli(call.draw(), 1.0 - p, x.shape).to(x.device)
    return x * (mask / (1.0 - p) if p < 1.0 else mask).to(x.dtype), mask


def _inplace(drop: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def dropped(call: Call, x: Tensor, p: float, train: bool) -> Tensor:
        return _written(x, drop(call, x, p, train))

    return dropped


def _rrelu(
    call: Call, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """A slope for every negative value (Xu et al. 2015, arXiv:1505.00853); torch's has no rule for vmap."""
    if training:
        drawn = keyed.uniform(call.draw(), x.shape, dtype=x.dtype).to(x.device)
        rectified = torch.where(x <= 0, x * (lower + (upper - lower) * drawn), x)
    else:
        rectified = F.leaky_relu(x, (lower + upper) / 2)
    return _written(x, rectified) if inplace else rectified


def _rrelu_(call: Call, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    return _rrelu(call, x, lower, upper, training, True)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.dropout: _drop,
    F.dropout1d: _channel_drop(1),
    F.dropout2d: _channel_drop(2),
    F.dropout3d: _channel_drop(3),
    F.alpha_dropout: _alpha_drop,
    F.feature_alpha_dropout: _feature_alpha_drop,
    torch.dropout: _drop,
    torch.dropout_: _inplace(_drop),
    torch.alpha_dropout: _alpha_drop,
    torch.alpha_dropout_: _inplace(_alpha_drop),
    torch.feature_dropout: _feature_drop,
    torch.feature_dropout_: _inplace(_feature_drop),
    torch.feature_alpha_dropout: _feature_alpha_drop,
    torch.feature_alpha_dropout_: _inplace(_feature_alpha_drop),
    torch.native_dropout: _native_drop,
    F.rrelu: _rrelu,
    torch.rrelu: _rrelu,
    torch.rrelu_: _rrelu_,
}
