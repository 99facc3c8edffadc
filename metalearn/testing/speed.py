"""How long sampling takes, alone and beside a meta-step of Conv-4."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from metalearn import losses, tree
from metalearn.algorithms import MAML
from metalearn.errors import UsageError
from metalearn.execution import Loop
from metalearn.functional import functionalize
from metalearn.metagrad import Unrolled
from metalearn.models import Conv4
from metalearn.testing.determinism import Draws

_MOST_SHARE = 0.03
_MOST_MILLISECONDS = 5.0
_REPEATS = 3
_LEAST_WAITING = 1.0  # milliseconds an episode


@dataclass(frozen=True)
class Speed:
    """The time that sampling takes.

    Attributes:
        milliseconds: of one episode, in a batch: the processor's, and the time that it waits.
        share: that time as a part of the meta-step's; `None` unless the inputs are images that Conv-4 takes.
        waiting: the part of `milliseconds` in which the processor had nothing to do; 0 where it is so little that the
            machine may just have been busy with something else.
    """

    milliseconds: float
    share: float | None
    waiting: float

    def warnings(self) -> list[str]:
        """What is slow, with the fix."""
        if self.waiting:
            minutes = self.waiting * 25_000 / 60_000
            return [f"Sampling waits {self.waiting:.1f} ms an episode (for a disk, a network, a sleep): {minutes:.1f} "
                    "minutes for 1,000 meta steps of 25 tasks. Read the data once, and keep them in memory or in a "
                    "memory-mapped file."]  # fmt: skip
        fix = "Draw all tasks of a batch at once with tensor operations, and do what is the same for all of them once."
        if self.share is not None and self.share > _MOST_SHARE:
            return [f"Sampling takes {self.share:.0%} of the time of a Conv-4 meta-step (wanted: 3% at most). {fix}"]
        if self.share is None and self.milliseconds > _MOST_MILLISECONDS:
            minutes = self.milliseconds * 25_000 / 60_000
            return [f"Sampling takes {self.milliseconds:.0f} ms an episode: {minutes:.1f} minutes for 1,000 meta steps "
                    f"of 25 tasks. {fix}"]  # fmt: skip
        return []


def measure_speed(draws: Draws, split: str) -> Speed:
    """The time of an episode of `split`, the shortest of a few batches."""
    timed = [_times(lambda: draws.unchecked(split)) for _ in range(_REPEATS)]
    busy = min(busy for busy, _ in timed) / draws.num_episodes
    # Of each batch, and the least of them: another process may take the processor away for a while.
    waiting = min(wall - busy for busy, wall in timed) / draws.num_episodes
    waiting = waiting if waiting > max(_LEAST_WAITING, 2 * busy) else 0.0
    step = _meta_step(draws, split)
    return Speed(busy + waiting, None if step is None else (busy + waiting) / step, waiting)


def _meta_step(draws: Draws, split: str) -> float | None:
    """Milliseconds of one task's part of a MAML step of Conv-4, where it takes the inputs."""
    source = draws.source
    try:
        module = Conv4(input_shape=tuple(source.input_shape), num_outputs=source.num_outputs)
    except UsageError:
        return None
    loss = losses.cross_entropy if source.kind == "classification" else losses.mean_squared_error
    model, maml = functionalize(module), MAML(loss=loss, inner_lr=0.1)
    meta, episodes = maml.init(model), tree.to(draws(split, range(1)), "cpu")
    gradient = Loop().value_and_grad(Unrolled(), maml.problem(model))
    gradient(meta, episodes)  # the first call sets kernels up
    return min(_times(lambda: gradient(meta, episodes))[0] for _ in range(_REPEATS))


def _times(action: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of the processor, and of the clock on the wall."""
    busy, wall = time.process_time(), time.perf_counter()
    action()
    return 1000 * (time.process_time() - busy), 1000 * (time.perf_counter() - wall)
