"""Attention with a second derivative, and with dropout that is drawn from a key."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.functional.interception.call import Call


def _attention(
    call: Call, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    if not dropout_p:
        return _attended(query, key, value, attn_mask, is_causal, scale, enable_gqa)[0]
    dtype = torch.promote_types(query.dtype, torch.float32)  # as torch, which rounds half precision at the end alone
    query, key, values = query.to(dtype), key.to(dtype), value.to(dtype)
    # Without features to mix it gives just the weights.
    weights = _attended(query, key, values[..., :0], attn_mask, is_causal, scale, enable_gqa)[1]
    if enable_gqa:
        values = values.repeat_interleave(query.shape[-3] // values.shape[-3], -3)
    dropped: Tensor = call.inside(F.dropout, weights, p=dropout_p, training=True)
    return (dropped @ values).to(value.dtype)


def _attended(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output `[..., query, feature]` and the weights `[..., query, key]`."""
    # The only one of torch's kernels with a second derivative. By its own name, because the switch between kernels is
    # global: threads that call models would undo each other's choice.
    result: tuple[Tensor, Tensor] = torch._scaled_dot_product_attention_math(
        query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return result


def _multi_head_attention(call: Call, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    # It drops and attends inside one torch function.
    result: tuple[Tensor, Tensor | None] = call.inside(F.multi_head_attention_forward, *args, **kwargs)
    return result


def _no_nested_tensors(call: Call, *args: Any) -> bool:
    # nn.TransformerEncoder asks whether it may take its path without gradients; vmap can not run the question.
    return False


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    torch._nested_tensor_from_mask_left_aligned: _no_nested_tensors,
}
