"""Attention and transformers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.rows import Row, given, normal, padding

X = normal(2, 4, 4)
CAUSAL = torch.triu(torch.full((4, 4), -torch.inf, dtype=torch.float64), 1)


class SelfAttention(nn.Module):
    """Calls torch's attention itself."""

    def __init__(self, *, num_heads: int = 2, key_heads: int = 2, dropout: float = 0.0, **options) -> None:
        super().__init__()
        self.dropout = dropout
        self.query, self.rest = nn.Linear(4, 2 * num_heads), nn.Linear(4, 4 * key_heads)
        self.options = options

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (-1, 2)).transpose(1, 2)
            for part in (self.query(x), *self.rest(x).chunk(2, -1))
        )  # fmt: skip
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, **self.options)


def _attention(*args, **kwargs) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(4, 2, *args, **kwargs)


def _encoder(**kwargs) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **{"dropout": 0.0, **kwargs})
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(4), enable_nested_tensor=False)


def _decoder(**kwargs) -> nn.Module:
    layer = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True, **{"dropout": 0.0, **kwargs})
    return nn.TransformerDecoder(layer, 2)


SELF = given(X)
ROWS = {
    "sdpa": Row(SelfAttention, SELF),
    "sdpa, causal": Row(lambda: SelfAttention(is_causal=True), SELF),
    "sdpa, scaled": Row(lambda: SelfAttention(scale=0.3), SELF),
    "sdpa, mask": Row(SelfAttention, given(X, mask=normal(4, 4))),
    "sdpa, boolean mask": Row(SelfAttention, given(X, mask=lambda generator: CAUSAL == 0)),
    "sdpa, grouped queries": Row(lambda: SelfAttention(num_heads=4, enable_gqa=True), SELF),
    "sdpa, dropout": Row(lambda: SelfAttention(dropout=0.3), SELF, draws=True),
    "attention": Row(lambda: _attention(batch_first=True), given(X, X, X)),
    "attention, time first, no weights": Row(_attention, given(X, X, X, need_weights=False)),
    "attention, no weights, evaluation": Row(
        lambda: _attention(batch_first=True), given(X, X, X, need_weights=False), training=False
    ),
    "attention, a weight a head": Row(_attention, given(X, X, X, average_attn_weights=False)),
    "attention, own key and value sizes": Row(
        lambda: _attention(kdim=3, vdim=5, batch_first=True), given(X, normal(2, 5, 3), normal(2, 5, 5))
    ),
    "attention, no bias": Row(lambda: _attention(bias=False), given(X, X, X)),
    "attention, key and value bias": Row(lambda: _attention(add_bias_kv=True, add_zero_attn=True), given(X, X, X)),
    "attention, mask": Row(
        _attention, given(normal(4, 2, 4), normal(4, 2, 4), normal(4, 2, 4), attn_mask=normal(4, 4))
    ),
    "attention, causal": Row(
        lambda: _attention(batch_first=True),
        given(X, X, X, attn_mask=lambda generator: CAUSAL, is_causal=True, need_weights=False),
    ),
    "attention, padding": Row(lambda: _attention(batch_first=True), given(X, X, X, key_padding_mask=padding(2, 4))),
    "attention, dropout": Row(lambda: _attention(dropout=0.3), given(X, X, X), draws=True),
    "attention, dropout, no weights": Row(
        lambda: _attention(dropout=0.3), given(X, X, X, need_weights=False), draws=True
    ),
    "transformer encoder": Row(_encoder, SELF),
    "transformer encoder, evaluation": Row(_encoder, SELF, training=False),
    "transformer encoder, norm first, gelu": Row(lambda: _encoder(norm_first=True, activation="gelu"), SELF),
    "transformer encoder, dropout": Row(lambda: _encoder(dropout=0.2), SELF, draws=True),
    "transformer encoder, padding": Row(_encoder, given(X, src_key_padding_mask=padding(2, 4))),
    "transformer encoder, padding, evaluation": Row(
        _encoder, given(X, src_key_padding_mask=padding(2, 4)), training=False
    ),
    "transformer encoder, causal": Row(_encoder, given(X, mask=lambda generator: CAUSAL, is_causal=True)),
    "transformer decoder": Row(_decoder, given(X, normal(2, 3, 4))),
    "transformer decoder, dropout": Row(lambda: _decoder(dropout=0.2), given(X, normal(2, 3, 4)), draws=True),
    "transformer decoder, causal": Row(
        _decoder, given(X, normal(2, 3, 4), tgt_mask=lambda generator: CAUSAL, tgt_is_causal=True)
    ),
    "transformer": Row(lambda: nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True), given(normal(2, 3, 4), X)),
}
