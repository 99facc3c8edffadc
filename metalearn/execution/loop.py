"""Tasks one after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from metalearn import tree
from metalearn.execution.base import Execution, count_tasks
from metalearn.types import Examples, Present


@dataclass(frozen=True, kw_only=True)
class Loop(Execution):
    """One task after another: the least memory, and the fastest for convolutions on a CPU."""

    def run(self, function: Callable[[Any], Any], episodes: Any) -> Iterator[Any]:
        """See `Execution.run`; pieces of one task."""
        for index in range(count_tasks(episodes)):
            task = tree.entry(episodes, index)
            result = function(pytree.tree_map_only(tuple, _trimmed, task, is_leaf=_is_padded))
            yield tree.map_tensors(lambda leaf: leaf.unsqueeze(0), result)


def _is_padded(nest: Any) -> bool:
    return isinstance(nest, tuple) and len(nest) == 3 and isinstance(nest[2], Present)


def _trimmed(examples: Examples) -> Examples:
    """A task's set without its padding, which only tasks that run side by side need. Real rows come first."""
    inputs, targets, present = examples  # type: ignore[misc]
    if present.examples is None:
        return examples
    count = int(present.examples.sum())
    return inputs[:count], targets[:count], Present(None, present.outputs)
