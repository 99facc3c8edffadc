"""What happens to torch functions inside a call of a functional model.

A `TorchFunctionMode` around the call sees each torch function before it runs.

- Functions that draw are replaced with keyed ones (`metalearn.random`); those without a replacement yet are refused,
  because their numbers would come from hidden state: another value in a recomputation, none under vmap.
- Functions whose second derivative is wrong or missing in torch are replaced with exact ones.
- Batch norm of padded inputs takes its statistics over the real rows.
- A use of the module's own tensor instead of the state passed in (a closure, say) is refused: it would silently get no
  gradient.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from metalearn import random
from metalearn.errors import UsageError


class Interception(TorchFunctionMode):
    """Within it, torch's random functions draw from `key`; `next_key` is the key after the draws made so far.

    `foreign` are tensors that must not be used, the name of each by its id. `rows` says which rows of the model's
    inputs are real, bool `[example]`; None for all.
    """

    def __init__(self, key: Tensor | None, *, foreign: Mapping[int, str], rows: Tensor | None = None) -> None:
        super().__init__()
        self._key = key
        self.rows = rows
        self._foreign = foreign
        self._num_draws = 0

    @property
    def next_key(self) -> Tensor:
        """The key for whoever draws next: a counter, advanced by one a draw."""
        if self._key is None:
            raise UsageError("there is no key: pass buffers['rng']")
        return self._key + self._num_draws if self._num_draws else self._key

    def draw(self) -> Tensor:
        """A key that no other draw gets."""
        if self._key is None:
            raise UsageError(
                "this model draws random numbers, but buffers has no 'rng' entry. Pass "
                "buffers={**buffers, 'rng': metalearn.random.key(seed)}, or use model.eval() if only training draws."
            )
        key = self._key + self._num_draws
        self._num_draws += 1
        return key

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for arg in args:
            if id(arg) in self._foreign:
                raise UsageError(
                    f"forward uses the module's own {self._foreign[id(arg)]!r}, not what was passed in: a function or "
                    "object kept by the module refers to it past the module. Reach it through `self` in forward."
                )
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None:
            return replacement(self, *args, **(kwargs or {}))
        if func in _REFUSED and _REFUSED[func](args, kwargs or {}):
            raise _no_keyed_form(func)
        return func(*args, **(kwargs or {}))


def _drop(
    draws: Interception,
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
    draws: Interception,
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


def _mask(draws: Interception, x: Tensor, p: float, mask_dims: int | None) -> Tensor:
    """1 where a value is kept, `[...]` like x; with mask_dims = d the last d axes share one draw (whole channels)."""
    shape = list(x.shape)
    if mask_dims is not None:
        shape[len(shape) - mask_dims :] = [1] * mask_dims
    return random.bernoulli(draws.draw(), 1.0 - p, shape).to(x.dtype)


def _channel_drop(spatial_dims: int) -> Callable[..., Tensor]:
    def drop(draws: Interception, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _drop(draws, x, p, training, inplace, mask_dims=spatial_dims)

    return drop


def _feature_alpha_drop(
    draws: Interception, x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha_drop(draws, x, p, training, inplace, mask_dims=x.dim() - 2)


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(draws: Interception, x: Tensor, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return draw(draws.draw(), x.shape, dtype=dtype or x.dtype)

    return drawn


def _shaped(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(draws: Interception, *size: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return draw(draws.draw(), tuple(kwargs.get("size", shape)), dtype=dtype or torch.get_default_dtype())

    return drawn


def _bernoulli(draws: Interception, x: Tensor, p: float | None = None, **kwargs: Any) -> Tensor:
    drawn: Tensor = random.uniform(draws.draw(), x.shape) < (x if p is None else p)
    return drawn.to(x.dtype)


def _weight_norm(draws: Interception, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # torch's own has a wrong second derivative (relative error 0.4 on torch 2.13); this is what it computes.
    axes = [axis for axis in range(v.dim()) if axis != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    normed: Tensor = g * v / v.square().sum(axes, keepdim=True).sqrt()
    return normed


def _batch_norm(
    call: Interception,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm with the statistics of the real rows; of all rows, torch's own."""
    if call.rows is None or not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if len(x) != len(call.rows):
        raise UsageError(
            f"a batch norm sees {len(x)} rows of a padded set of {len(call.rows)} examples, so that real and padded "
            "rows can not be told apart in it. Keep examples as rows, or give all episodes one size."
        )
    axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    real = call.rows.reshape(-1, *[1] * (x.dim() - 1))
    count = call.rows.sum() * math.prod(x.shape[2:])
    mean = torch.where(real, x, 0.0).sum(axes) / count
    centred = x - mean.reshape(shape)
    variance = torch.where(real, centred, 0.0).square().sum(axes) / count
    if running_mean is not None and running_var is not None:
        unbiased = variance.detach() * count / (count - 1).clamp_min(1)
        running_mean.mul_(1 - momentum).add_(momentum * mean.detach())
        running_var.mul_(1 - momentum).add_(momentum * unbiased)
    normed = centred * (variance + eps).rsqrt().reshape(shape)
    normed = normed if weight is None else normed * weight.reshape(shape)
    return normed if bias is None else normed + bias.reshape(shape)


def _attention(draws: Interception, *args: Any, **kwargs: Any) -> Tensor:
    if kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0):
        raise _no_keyed_form(F.scaled_dot_product_attention)
    with sdpa_kernel(SDPBackend.MATH):  # the only backend with a second derivative
        return F.scaled_dot_product_attention(*args, **kwargs)


def _multi_head_attention(draws: Interception, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    # It drops and attends inside one torch function, where the functions it calls are not seen.
    if kwargs.get("training", True) and kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0):
        raise _no_keyed_form(F.multi_head_attention_forward)
    with sdpa_kernel(SDPBackend.MATH):
        return F.multi_head_attention_forward(*args, **kwargs)


def _no_keyed_form(func: Any) -> UsageError:
    return UsageError(
        f"forward calls {func.__name__}, which draws from torch's hidden generator, and metalearn has no keyed "
        "form of it: use torch.rand_like or torch.randn_like there, or model.eval() if only training draws."
    )


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
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
    torch._weight_norm: _weight_norm,
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
}


def _always(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return True


def _rrelu_trains(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("training", args[3] if len(args) > 3 else False))


_REFUSED: dict[Any, Callable[[tuple[Any, ...], Mapping[str, Any]], bool]] = {
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
