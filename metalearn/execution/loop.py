"""Tasks one after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.utils import _pytree as pytree

from metalearn import tree
from metalearn.execution.base import Execution, count_tasks
from metalearn.types import Examples, Present


@dataclass(frozen=True, kw_only=True)
class Loop(Execution):
    """One task after another: the least memory, and the fastest for convolutions on a CPU."""

    at_once: ClassVar[bool] = False

    def parts(self, episodes: Any) -> Iterator[Any]:
        """See `Execution.parts`; one task each, without its padding."""
        for index in range(count_tasks(episodes)):
            yield pytree.tree_map_only(tuple, _trimmed, tree.entry(episodes, index), is_leaf=_is_padded)

    def over_tasks(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """See `Execution.over_tasks`."""
        return lambda task: tree.map_tensors(lambda leaf: leaf.unsqueeze(0), function(task))


def _is_padded(nest: Any) -> bool:
    return isinstance(nest, tuple) and len(nest) == 3 and isinstance(nest[2], Present)


def _trimmed(examples: Examples) -> Examples:
    """A task's set without its padding, which only tasks that run side by side need. Real rows come first."""
    inputs, targets, present = examples  # type: ignore[misc]
    if present.examples is None:
        return examples
    count = int(present.examples.sum())
    return inputs[:count], targets[:count], Present(None, present.outputs)
