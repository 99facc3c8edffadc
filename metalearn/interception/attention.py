"""Attention by the kernel that has a second derivative."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.interception.call import Call
from metalearn.interception.draws import no_keyed_form


def _attention(
    call: Call, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    *args: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    if dropout_p:
        raise no_keyed_form(F.scaled_dot_product_attention)
    with sdpa_kernel(SDPBackend.MATH):  # the only backend with a second derivative
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, *args, **kwargs)


def _multi_head_attention(call: Call, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    # It drops and attends inside one torch function.
    result: tuple[Tensor, Tensor | None] = call.inside(F.multi_head_attention_forward, *args, **kwargs)
    return result


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
}
