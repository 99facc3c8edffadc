"""Where a meta-gradient explodes: told with the inner step, when it is no number or much larger than it was."""

import statistics
from collections import deque
from dataclasses import dataclass, field

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.metagrad import trace
from metalearn.training.laboratory import Laboratory
from metalearn.training.state import TrainState

_JUMP = 100.0
"""By what factor over the median of the last records a gradient's norm is told."""

_TRACED = 8
"""So many tasks of a meta-batch are looked into, at most."""


@dataclass
class Watch:
    """Sees the norm of the meta-gradient from record to record."""

    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def jumped(self, norm: float) -> bool:
        """Whether a norm is far above those seen before it."""
        before = list(self._norms)
        self._norms.append(norm)
        return len(before) >= 5 and norm > _JUMP * statistics.median(before)


def where_it_explodes(laboratory: Laboratory, state: TrainState) -> str | None:
    """What is wrong in the meta-batch that a state is about to train on, with the inner step; None if nothing is found.

    It goes through the first tasks, one after the other: a cost that only a run in trouble has.
    """
    settings = laboratory.experiment.settings
    first = state.batches * settings.batch_size
    indices = range(first, first + min(settings.batch_size, _TRACED))
    episodes = laboratory.train_source.episodes("train", indices, seed=settings.seed)
    problem = laboratory.train_problem(state.buffers, state.step)
    for index in range(len(indices)):
        try:
            found = trace(problem, state.meta, tree.entry(episodes, index))
        except (UsageError, RuntimeError):  # what the strategy in use can do, a trace may not be able to
            return None
        told = found.told()
        if told is not None:
            return f"in task {index + 1} of {settings.batch_size} {told}"
    return None
