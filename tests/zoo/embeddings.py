"""Embeddings, bags of them, and what works with distances."""

import torch
from torch import Tensor, nn

from tests.zoo.rows import Row, below, given, normal

TOKENS = given(below(7, 4, 5))


class Tagged(nn.Module):
    """A bag of embeddings with offsets, as text classifiers have it."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(7, 4, mode=mode), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens.flatten(), torch.tensor([0, 3, 3, 9])).tanh())


def _embedded(embedding: nn.Module) -> nn.Sequential:
    return nn.Sequential(embedding, nn.Tanh(), nn.Linear(4, 2))


def _padding_held(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The padding's vector is used and has no gradient: for torch it is a constant."""
    weight = params["0.weight"]
    with torch.no_grad():
        held = weight[2:3].clone()
    return {**params, "0.weight": torch.cat([weight[:2], held, weight[3:]])}


ROWS = {
    "embedding": Row(lambda: _embedded(nn.Embedding(7, 4)), TOKENS),
    "embedding, padding_idx": Row(
        lambda: _embedded(nn.Embedding(7, 4, padding_idx=2)), TOKENS, start=_padding_held, replay=True
    ),
    "embedding, max_norm": Row(lambda: _embedded(nn.Embedding(7, 4, max_norm=1.0)), TOKENS, replay=True),
    "embedding, sparse": Row(lambda: _embedded(nn.Embedding(7, 4, sparse=True)), TOKENS),
    **{
        f"embedding bag, {mode}": Row(lambda mode=mode: _embedded(nn.EmbeddingBag(7, 4, mode=mode)), TOKENS)
        for mode in ("sum", "mean", "max")
    },
    **{
        f"embedding bag, {mode}, offsets": Row(lambda mode=mode: Tagged(mode), TOKENS)
        for mode in ("sum", "mean", "max")
    },
    **{
        f"embedding bag, {mode}, padding_idx": Row(
            lambda mode=mode: _embedded(nn.EmbeddingBag(7, 4, mode=mode, padding_idx=2)), TOKENS
        )
        for mode in ("sum", "mean", "max")
    },
    "embedding bag, weighted": Row(
        lambda: nn.EmbeddingBag(7, 4, mode="sum"), given(below(7, 4, 5), per_sample_weights=normal(4, 5))
    ),
}
