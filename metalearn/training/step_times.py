"""How long meta steps take, as they are and compiled."""

import statistics
import time

import torch

_SHORTEST, _WINDOW = 5, 20  # meta steps in a median of their times


class StepTimes:
    """The times of a run's meta steps.

    Attributes:
        is_compiled: of the step that is being done.
    """

    def __init__(self, device: torch.device) -> None:
        # The compiler beside the run takes wall time from it on a busy machine, but no time of its process.
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter
        self._last: tuple[int, float] | None = None
        self._was_compiled = False
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self.is_compiled = False

    def began(self, step: int) -> str | None:
        """Counts the step before; says once, as soon as it is known, what compiling has brought."""
        now = self._clock()
        # The step that changed from one to the other did both.
        if self._last is not None and self._last[0] == step - 1 and self._was_compiled == self.is_compiled:
            self._seconds[self.is_compiled].append(now - self._last[1])
        self._last, self._was_compiled = (step, now), self.is_compiled
        before, after = self._seconds[False][-_WINDOW:], self._seconds[True]
        if len(before) < _SHORTEST or len(after) != _SHORTEST or not self.is_compiled:
            return None
        then, since = statistics.median(before), statistics.median(after)
        how = f"{then / since:.1f} times as fast"
        return f"step {step}: a meta step takes {1e3 * since:.3g} ms, {1e3 * then:.3g} before: {how}"
