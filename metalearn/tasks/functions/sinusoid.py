"""Regression of sine waves of random amplitude and phase: the first experiment of the MAML paper."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.counts import Count
from metalearn.tasks.functions.families import SineWaves, is_number
from metalearn.tasks.functions.regression import Regression


class Sinusoid(Regression):
    r"""Sine waves to regress from a few points.

    .. math:: y = A \sin(x - \varphi), \quad A \sim U(0.1, 5), \ \varphi \sim U(0, \pi), \ x \sim U(-5, 5)

    The splits are unrelated streams of the same waves.

    Attributes:
        shots: support points a task.
        query_shots: query points a task; MAML takes as many as shots.
        amplitude: the range of amplitudes.
        phase: the range of phases, in radians.
        x_range: the range of inputs.

    Example:
        >>> Sinusoid(shots=5).episodes("train", range(25)).support[0].shape
        torch.Size([25, 5, 1])

    Reference:
        Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.1; the phase is subtracted as in the authors' code.
    """

    name = "sinusoid"
    ahead = 16

    def __init__(
        self,
        *,
        shots: Count = 10,
        query_shots: int = 10,
        amplitude: Sequence[float] = (0.1, 5.0),
        phase: Sequence[float] = (0.0, math.pi),
        x_range: Sequence[float] = (-5.0, 5.0),
    ) -> None:
        """A source of waves from these ranges.

        Args:
            shots: support points a task, or the lowest and highest number.
            query_shots: query points a task.
            amplitude: lowest and highest amplitude.
            phase: lowest and highest phase, in radians.
            x_range: lowest and highest input.

        Raises:
            UsageError: for a count below 1, or a range that is not two numbers in order.
        """
        for name, bounds in (("amplitude", amplitude), ("phase", phase)):
            if is_number(bounds):
                raise UsageError(f"`{name}` must be two numbers in order, such as [0.1, 5.0], got {bounds!r}.")
        waves = SineWaves(amplitude, phase)
        self.amplitude, self.phase = waves.amplitude, waves.phase
        super().__init__(waves, shots=shots, query_shots=query_shots, x_range=x_range)

    def protocol(self) -> dict[str, Any]:
        """The ranges and the counts, as plain data."""
        card = super().protocol()
        names = ("dataset", "amplitude", "phase", "x_range", "shots", "query_shots")
        return {name: card[name] for name in names}

    def _function_keys(self, keys: Tensor) -> Tensor:
        # The waves were always drawn from the episode's own key: published results are of these episodes.
        return keys
