"""Regression of sine waves of random amplitude and phase: the first experiment of the MAML paper."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource, check_count, episode_keys
from metalearn.types import Episodes


class Sinusoid(TaskSource):
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
    kind: Literal["classification", "regression"] = "regression"
    input_shape = (1,)
    num_outputs = 1
    splits = ("train", "val", "test")

    def __init__(
        self,
        *,
        shots: int = 10,
        query_shots: int = 10,
        amplitude: Sequence[float] = (0.1, 5.0),
        phase: Sequence[float] = (0.0, math.pi),
        x_range: Sequence[float] = (-5.0, 5.0),
    ) -> None:
        """A source of waves from these ranges.

        Args:
            shots: support points a task.
            query_shots: query points a task.
            amplitude: lowest and highest amplitude.
            phase: lowest and highest phase, in radians.
            x_range: lowest and highest input.

        Raises:
            UsageError: for a count below 1, or a range that is not two numbers in order.
        """
        self.shots = check_count("shots", shots)
        self.query_shots = check_count("query_shots", query_shots)
        self.amplitude = _checked_range("amplitude", amplitude)
        self.phase = _checked_range("phase", phase)
        self.x_range = _checked_range("x_range", x_range)
        self.device = torch.device("cpu")

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`: inputs and targets float32 `[task, point, 1]`."""
        keys = self._keys(split, indices, seed)
        points = _uniform(random.fold_in(keys, 2), self.x_range, (self.shots + self.query_shots, 1))
        values = self._waves(keys, points)
        support, query = slice(None, self.shots), slice(self.shots, None)
        return Episodes(
            support=(points[:, support], values[:, support]),
            query=(points[:, query], values[:, query]),
            key=random.fold_in(keys, 3),
        )

    def true_function(self, split: str, indices: Sequence[int] | Tensor, x: Tensor, *, seed: int = 0) -> Tensor:
        """The waves of these episodes without sampling, for pictures.

        Args:
            split: as for `episodes`.
            indices: as for `episodes`, `[task]`.
            x: inputs that broadcast against `[task, point, 1]`: `[point, 1]`, or other ones for every task.
            seed: as for `episodes`.

        Returns:
            The values at `x`, `[task, point, 1]`.
        """
        return self._waves(self._keys(split, indices, seed), x.to(self.device))

    def to(self, device: torch.device | str) -> "Sinusoid":
        """The same source with its episodes on `device`."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def protocol(self) -> dict[str, Any]:
        """The ranges and the counts, as plain data."""
        return {
            "dataset": self.name,
            "amplitude": list(self.amplitude),
            "phase": list(self.phase),
            "x_range": list(self.x_range),
            "shots": self.shots,
            "query_shots": self.query_shots,
        }

    def _keys(self, split: str, indices: Sequence[int] | Tensor, seed: int) -> Tensor:
        return episode_keys(split, indices, seed=seed, splits=self.splits, device=self.device)

    def _waves(self, keys: Tensor, x: Tensor) -> Tensor:
        amplitude = _uniform(random.fold_in(keys, 0), self.amplitude, (1, 1))
        phase = _uniform(random.fold_in(keys, 1), self.phase, (1, 1))
        return amplitude * torch.sin(x - phase)


def _uniform(keys: Tensor, bounds: tuple[float, float], shape: Sequence[int]) -> Tensor:
    low, high = bounds
    return low + (high - low) * random.uniform(keys, shape)


def _checked_range(name: str, bounds: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"`{name}` must be two numbers in order, such as [0.1, 5.0], got {bounds!r}.")
    return low, high
