"""Functions that draw, with the draws taken from a key."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.interception.call import Call


def _drop(
    draws: Call,
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mask_dims: int | None = None,
) -> Tensor:
    # `inplace` saves memory in torch; the result is the same without it.
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    return x * (_mask(draws, x, p, mask_dims) / (1.0 - p))


def _alpha_drop(
    draws: Call,
    x: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    mask_dims: int | None = None,
) -> Tensor:
    """Alpha dropout keeps a SELU network's mean 0 and variance 1 (Klambauer et al. 2017, arXiv:1706.02515)."""
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    saturation = -1.7580993408473766
    scale = ((1 - p) * (1 + p * saturation**2)) ** -0.5
    mask = _mask(draws, x, p, mask_dims)
    dropped: Tensor = (x * mask + saturation * (1 - mask)) * scale - scale * p * saturation
    return dropped


def _mask(draws: Call, x: Tensor, p: float, mask_dims: int | None) -> Tensor:
    """1 where a value is kept, `[...]` like x; with mask_dims = d the last d axes share one draw (whole channels)."""
    shape = list(x.shape)
    if mask_dims is not None:
        shape[len(shape) - mask_dims :] = [1] * mask_dims
    return random.bernoulli(draws.draw(), 1.0 - p, shape).to(x.dtype)


def _channel_drop(spatial_dims: int) -> Callable[..., Tensor]:
    def drop(draws: Call, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _drop(draws, x, p, training, inplace, mask_dims=spatial_dims)

    return drop


def _feature_alpha_drop(
    draws: Call, x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha_drop(draws, x, p, training, inplace, mask_dims=x.dim() - 2)


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(draws: Call, x: Tensor, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return draw(draws.draw(), x.shape, dtype=dtype or x.dtype)

    return drawn


def _shaped(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(draws: Call, *size: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return draw(draws.draw(), tuple(kwargs.get("size", shape)), dtype=dtype or torch.get_default_dtype())

    return drawn


def _bernoulli(draws: Call, x: Tensor, p: float | None = None, **kwargs: Any) -> Tensor:
    drawn: Tensor = random.uniform(draws.draw(), x.shape) < (x if p is None else p)
    return drawn.to(x.dtype)


def no_keyed_form(func: Any) -> UsageError:
    """The error for a function that draws, and that has no replacement here."""
    return UsageError(
        f"forward calls {func.__name__}, which draws from torch's hidden generator, and metalearn has no keyed "
        "form of it: use torch.rand_like or torch.randn_like there, or model.eval() if only training draws."
    )


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.dropout: _drop,
    torch.dropout: _drop,
    F.dropout1d: _channel_drop(1),
    F.dropout2d: _channel_drop(2),
    F.dropout3d: _channel_drop(3),
    F.alpha_dropout: _alpha_drop,
    F.feature_alpha_dropout: _feature_alpha_drop,
    torch.rand_like: _like(random.uniform),
    torch.randn_like: _like(random.normal),
    torch.rand: _shaped(random.uniform),
    torch.randn: _shaped(random.normal),
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
}


def _always(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return True


def _rrelu_trains(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("training", args[3] if len(args) > 3 else False))


REFUSED: dict[Any, Callable[[tuple[Any, ...], Mapping[str, Any]], bool]] = {
    **dict.fromkeys(
        (
            torch.randint, torch.randint_like, torch.randperm, torch.normal, torch.multinomial, torch.poisson,
            Tensor.multinomial, Tensor.bernoulli_, Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.random_,
            Tensor.cauchy_, Tensor.log_normal_, Tensor.geometric_, F.gumbel_softmax,
            F.fractional_max_pool2d_with_indices, F.fractional_max_pool3d_with_indices,
        ),
        _always,
    ),
    F.rrelu: _rrelu_trains,
}  # fmt: skip
