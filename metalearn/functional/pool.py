"""The skeletons of a module that no call uses, and what calls have taught about its forward."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from metalearn.functional.norms import norms_of
from metalearn.functional.skeleton import Skeleton
from metalearn.types import Statistics

INPUTS = "the inputs"
"""Stands for the inputs among the names that forward writes into."""


@dataclass
class Writes:
    """What forward was seen to write into, so that only that has to be copied before a call.

    Attributes:
        known: whether there was a call yet; before the first one, anything may be.
        names: state that forward changes in place, and `INPUTS`.
        shared: whether forward writes tasks' values into tensors that it makes itself, or into parameters: under vmap
            these then need a task axis from the start.
        apart: whether parameters need one too: forward writes into what it makes of them.
        differentiates: whether forward takes derivatives itself.
        reshaped: state that forward gives other shapes.
    """

    known: bool = False
    names: set[str] = field(default_factory=set)
    shared: bool = False
    apart: bool = False
    differentiates: bool = False
    reshaped: set[str] = field(default_factory=set)

    def may_write(self, name: str) -> bool:
        """Whether a call has to be protected against writes into this."""
        return not self.known or name in self.names


class SkeletonPool:
    """Free skeletons of one module in one mode; list.append and list.pop are atomic.

    The first one is made when the module is functionalized, and the others after it: what happens to the module later
    (another mode, other tensors) does not matter.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[tuple[int, str], str],
        training: bool | None,
        *,
        statistics: Statistics | None = None,
        overlaps: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.training = training
        self.statistics = statistics
        self.overlaps = overlaps
        self.writes = Writes()
        self._template = Skeleton(module, names, training=training, statistics=statistics)
        self._free: list[Skeleton] = []
        self.norms = norms_of(self._template.root, self._template.names)
        self.held = self.norms.statistics if statistics in ("set", "running") else ()
        self.root_trains = bool(self._template.root.training)
        self._by_statistics: dict[Statistics | None, SkeletonPool] = {statistics: self}
        self.without: dict[str, Any] = {}  # models without a part: an algorithm asks for the same one in every task
        self._by_mode: dict[bool, SkeletonPool] = {}  # so that model.eval() in a loop learns once what forward writes

    @property
    def own_modes(self) -> dict[str, bool]:
        """Whether each part of the module was in training mode when it was functionalized."""
        root = self._by_statistics[None]._template.root
        return {name: bool(part.training) for name, part in root.named_modules()}

    def in_mode(self, *, training: bool) -> "SkeletonPool":
        """A pool for the same module in training or in evaluation mode."""
        base = self._by_statistics[None]
        if training not in base._by_mode:
            pool = base._like(training, None)
            pool._by_mode = base._by_mode
            base._by_mode[training] = pool
        return base._by_mode[training].normalising(self.statistics)

    def normalising(self, statistics: Statistics | None) -> "SkeletonPool":
        """A pool for the same module in the same mode, with other statistics in its norms; None: as the mode says."""
        if statistics not in self._by_statistics:
            pool = self._by_statistics[None]._like(None, statistics)
            pool.training, pool.root_trains = self.training, self.root_trains
            pool._by_statistics = self._by_statistics
            self._by_statistics[statistics] = pool
        return self._by_statistics[statistics]

    def _like(self, training: bool | None, statistics: Statistics | None) -> "SkeletonPool":
        pool = SkeletonPool(
            self._template.root, self._template.names, training, statistics=statistics, overlaps=self.overlaps
        )
        pool.writes.reshaped = self.writes.reshaped  # what the other mode returns may come in here
        return pool

    def take(self) -> Skeleton:
        """A skeleton that no other call uses."""
        try:
            return self._free.pop()
        except IndexError:
            return Skeleton(self._template.root, self._template.names, training=None)

    def give_back(self, skeleton: Skeleton) -> None:
        """Makes a skeleton available again."""
        self._free.append(skeleton)
