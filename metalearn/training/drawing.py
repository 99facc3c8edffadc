"""The meta-batches of a run: drawn one by one or, where a source has it so, some at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from metalearn import tree
from metalearn.training.guard import GuardedSource
from metalearn.types import Episodes


@dataclass
class MetaBatches:
    """Batch b has the episodes b * size … (b + 1) * size - 1 of a split; there is no position in a stream.

    A source may say that `ahead` batches can be drawn at once (`metalearn.tasks.TaskSource`): the next ones are then
    kept until they are asked for. What is drawn is the same, as an episode is a pure function of its index.

    Attributes:
        source: of the episodes.
        size: tasks a batch.
        seed: of the episodes.
        split: of the source.
    """

    source: GuardedSource
    size: int
    seed: int
    split: str = "train"
    _kept: dict[int, Episodes] = field(default_factory=dict, init=False)

    def indices(self, batch: int) -> range:
        """Of a batch's episodes."""
        return range(batch * self.size, (batch + 1) * self.size)

    def __call__(self, batch: int, *, last: int | None = None) -> Episodes:
        """The episodes of a batch; `last` is the last one that will be asked for, and none is drawn after it.

        Raises:
            PluginError: what the source returned is no batch of episodes.
        """
        kept = self._kept.get(batch)
        if kept is None:
            count = 1 if last is None else max(1, min(ahead_of(self.source.source), last - batch + 1))
            indices = range(batch * self.size, (batch + count) * self.size)
            drawn = self.source.episodes(self.split, indices, seed=self.seed)
            if count == 1:
                return drawn
            self._kept = dict(enumerate(_parts(drawn, self.size), start=batch))
            kept = self._kept[batch]
        elif batch - 1 in self._kept:
            del self._kept[batch - 1]  # a batch may be asked for several times, but not after the next one
        return kept


def ahead_of(source: Any) -> int:
    """How many meta-batches a source lets be drawn at once; 1 where a subclass has other episodes than who said so."""
    kinds = type(source).__mro__
    said, drawn = (next((at for at, kind in enumerate(kinds) if name in vars(kind)), None) for name in _BOTH)
    return int(source.ahead) if said is not None and drawn is not None and said <= drawn else 1


_BOTH = ("ahead", "episodes")


def _parts(episodes: Episodes, size: int) -> Iterator[Episodes]:
    tensors, closed = tree.opened(episodes)
    for part in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True):
        # Copies: compiled code may ask where in memory its inputs begin.
        yield closed(tensor.clone() for tensor in part)
