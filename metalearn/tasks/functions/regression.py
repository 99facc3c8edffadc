"""Regression of functions drawn from a family: sine waves, Gaussian processes, a Python function, or a mixture."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource, check_count, episode_keys
from metalearn.tasks.counts import Count, span
from metalearn.tasks.functions.families import FunctionFamily, Range, checked_range, family_card, is_number
from metalearn.tasks.functions.families_by_name import FAMILIES, build_family
from metalearn.tasks.functions.user_function import UserFunction, name_of
from metalearn.tasks.seeded import borrowed_generators
from metalearn.types import Episodes, Examples, Present

_TRIAL_TASKS = 16
_DRAW = (
    "What differs between tasks has to be a parameter with a range (parameters={name: [low, high]}), or be drawn by"
    " metalearn.random from the keys of a family's `draw`; not by torch.rand or numpy."
)
_MIX = "Compute along the axes of points and inputs (dim=1 and dim=2) and never over dim=0, which is the tasks."


class Regression(TaskSource):
    r"""Functions to regress from a few points: :math:`y = f(x) + \varepsilon` with :math:`f` drawn from a family.

    The inputs are uniform on `x_range`, the noise is normal. The splits are unrelated streams of the same functions.

    Attributes:
        family: where the functions come from (`metalearn.tasks.FunctionFamily`).
        shots: support points a task, the most there can be.
        query_shots: query points a task.
        x_range: lowest and highest input.
        noise: the standard deviation of what is added to the targets.

    Example:
        >>> source = Regression("gaussian_process", kernel="matern52", length_scale=(0.5, 2.0), shots=(3, 8))
        >>> inputs, targets, present = source.episodes("train", range(25)).support
        >>> inputs.shape, int(present.examples.sum(1).min()), int(present.examples.sum(1).max())
        (torch.Size([25, 8, 1]), 3, 8)
    """

    name = "regression"
    kind: Literal["classification", "regression"] = "regression"
    splits = ("train", "val", "test")

    def __init__(
        self,
        family: FunctionFamily | str = "sinusoid",
        *,
        shots: Count = 10,
        query_shots: int = 10,
        x_range: Sequence[float] = (-5.0, 5.0),
        input_dim: int = 1,
        noise: float = 0.0,
        amplitude: Range | None = None,
        phase: Range | None = None,
        kernel: str | None = None,
        length_scale: Range | None = None,
        scale: Range | None = None,
        tolerance: float | None = None,
        function: Callable[..., Tensor] | str | None = None,
        parameters: Mapping[str, Any] | None = None,
        families: Sequence[Any] | None = None,
    ) -> None:
        """A source of functions of this family.

        Args:
            family: `"sinusoid"`, `"gaussian_process"`, `"function"` or `"mixture"`, or a family of your own: an object
                with `draw` and `values` as in `metalearn.tasks.FunctionFamily`.
            shots: support points a task, or the lowest and highest number: each task then has its own, and the support
                set a third entry, `metalearn.types.Present`.
            query_shots: query points a task.
            x_range: lowest and highest input, alike in every dimension.
            input_dim: how many numbers an input is.
            noise: the standard deviation of the noise on support and query targets.
            amplitude: of `sinusoid`, see `SineWaves`.
            phase: of `sinusoid`, in radians.
            kernel: of `gaussian_process`, see `GaussianProcess`.
            length_scale: of `gaussian_process`, in units of x.
            scale: of `gaussian_process`, in units of y.
            tolerance: of `gaussian_process`, the largest error of a covariance in units of the variance.
            function: of `function`, a Python function or `"module.name"` of one, see `UserFunction`.
            parameters: of `function`, a range for each of its parameters.
            families: of `mixture`, a list of names, or of mappings with `family`, its parameters, and its `weight`.

        Raises:
            UsageError: for an unknown family, a parameter that belongs to another one, a count below 1, a range that is
                not two numbers in order, or a family that does not give values `[task, point, output]`.
        """
        self._span = span("shots", shots, minimum=1)
        self.shots = self._span.high
        self.query_shots = check_count("query_shots", query_shots)
        if is_number(x_range):
            raise UsageError(f"`x_range` must be two numbers in order, such as [-5.0, 5.0], got {x_range!r}.")
        self.x_range = checked_range("x_range", x_range)
        self.input_shape = (check_count("input_dim", input_dim),)
        if not is_number(noise) or not 0 <= noise < float("inf"):
            raise UsageError(f"`noise` must be a standard deviation of at least 0, got {noise!r}.")
        self.noise = float(noise)
        self.device = torch.device("cpu")
        of_sinusoid = {"amplitude": amplitude, "phase": phase}
        of_process = {"kernel": kernel, "length_scale": length_scale, "scale": scale, "tolerance": tolerance}
        of_others = {"function": function, "parameters": parameters, "families": families}
        options = {**of_sinusoid, **of_process, **of_others}
        given = {name: value for name, value in options.items() if value is not None}
        self.family = self._family(family, given)
        self.num_outputs = self._count_outputs()
        self._refuse_impure()

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`: inputs and targets float32 `[task, point, ...]`."""
        keys = self._keys(split, indices, seed)
        low, high = self.x_range
        shape = (self.shots + self.query_shots, *self.input_shape)
        points = low + (high - low) * random.uniform(random.fold_in(keys, 2), shape)
        targets = self._values(keys, points)
        if self.noise:
            targets = targets + self.noise * random.normal(random.fold_in(keys, 4), targets.shape[1:])
        return Episodes(
            support=self._support(keys, points[:, : self.shots], targets[:, : self.shots]),
            query=(points[:, self.shots :], targets[:, self.shots :]),
            key=random.fold_in(keys, 3),
        )

    def true_function(self, split: str, indices: Sequence[int] | Tensor, x: Tensor, *, seed: int = 0) -> Tensor:
        """The functions of these episodes without sampling and noise, for pictures.

        Args:
            split: as for `episodes`.
            indices: as for `episodes`, `[task]`.
            x: inputs that broadcast against `[task, point, input]`: `[point, input]`, or other ones for every task.
            seed: as for `episodes`.

        Returns:
            The values at `x`, `[task, point, output]`.
        """
        keys = self._keys(split, indices, seed)
        return self._values(keys, x.to(self.device).expand(len(keys), *x.shape[-2:]))

    def to(self, device: torch.device | str) -> "Regression":
        """The same source with its episodes on `device`."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def protocol(self) -> dict[str, Any]:
        """The family with its parameters, the ranges and the counts, as plain data."""
        return {
            "dataset": self.name,
            **family_card(self.family),
            "x_range": list(self.x_range),
            "input_dim": self.input_shape[0],
            "noise": self.noise,
            "shots": self._span.plain(),
            "query_shots": self.query_shots,
        }

    def _family(self, family: FunctionFamily | str, given: dict[str, Any]) -> FunctionFamily:
        common = {"x_range": self.x_range, "input_dim": self.input_shape[0]}
        if isinstance(family, str):
            return build_family(family, given, common=common)
        if not isinstance(family, FunctionFamily) or isinstance(family, type):
            raise UsageError(
                f"`family` must be one of {', '.join(FAMILIES)}, or an object with the methods `draw` and `values`, got"
                f" {family!r}."
            )
        if given:
            raise UsageError(f"`{next(iter(given))}` goes to the family itself where it is an object, here {family!r}.")
        return family

    def _count_outputs(self) -> int:
        """The outputs of the family, seen at a few points; so that its mistakes are told at once."""
        keys = random.key(torch.arange(2))
        low, high = self.x_range
        x = torch.linspace(low, high, 3)[:, None].expand(2, 3, self.input_shape[0])
        values = self._values(keys, x)
        if not isinstance(values, Tensor) or values.dim() != 3 or values.shape[:2] != x.shape[:2]:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(
                f"{type(self.family).__name__}.values returned {got} for x {list(x.shape)}, expected a tensor"
                f" [task, point, output], here [2, 3, output]."
            )
        return values.shape[-1]

    def _refuse_impure(self) -> None:
        """Calls the family again and for a part of the tasks: episode i must be the same one whenever it is drawn."""
        keys = random.key(torch.arange(_TRIAL_TASKS))
        low, high = self.x_range
        x = low + (high - low) * random.uniform(random.fold_in(keys, 1), (3, *self.input_shape))
        with borrowed_generators() as seed:
            seed(0)
            first = self._values(keys, x)
            for number in range(1, 4):  # another state of the generators each time, as a coin may fall alike twice
                seed(number)
                if not _alike(self._values(keys, x), first):
                    raise UsageError(_impure(self.family, "other values for a task when it is called again", _DRAW))
            half = slice(None, None, 2)
            if not _alike(self._values(keys[half], x[half]), first[half]):
                raise UsageError(
                    _impure(self.family, "other values for a task when other tasks are in the batch", _MIX)
                )

    def _keys(self, split: str, indices: Sequence[int] | Tensor, seed: int) -> Tensor:
        return episode_keys(split, indices, seed=seed, splits=self.splits, device=self.device)

    def _values(self, keys: Tensor, x: Tensor) -> Tensor:
        return self.family.values(self.family.draw(self._function_keys(keys)), x)

    def _function_keys(self, keys: Tensor) -> Tensor:
        # A key of its own, so that whatever a family folds in, its draws have nothing to do with the points.
        return random.fold_in(keys, 0)

    def _support(self, keys: Tensor, points: Tensor, targets: Tensor) -> Examples:
        if self._span.is_fixed:
            return points, targets
        shots = self._span.draw(random.fold_in(keys, 5))
        used = torch.arange(self.shots, device=keys.device) < shots[:, None]
        every_output = torch.ones(len(keys), self.num_outputs, dtype=torch.bool, device=keys.device)
        return points * used[..., None], targets * used[..., None], Present(used, every_output)


def _alike(values: Tensor, others: Tensor) -> bool:
    # A batch of another size may be summed in another order.
    scale = float(others.abs().max()) if others.numel() else 0.0
    return torch.allclose(values, others, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)


def _impure(family: Any, what: str, fix: str) -> str:
    name = name_of(family.function) if isinstance(family, UserFunction) else type(family).__name__
    return f"{name} gives {what}. {fix}"
