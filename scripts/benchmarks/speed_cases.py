"""The work of the speed benchmark: a meta-batch of synthetic numbers for a model, a case each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.loops import Set, Work
from benchmarks.nets import Recurrent, ResNet12, Transformer
from metalearn.models import MLP, Conv4

REGRESSION, CLASSIFICATION = "mean_squared_error", "cross_entropy"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is computed.

    Attributes:
        model: makes the module.
        shape: of one input.
        ways: the classes; 1 for a regression.
        shots: examples a class in the support set.
        query_shots: and in the query set.
        tasks: of the meta-batch.
        steps: inner steps.
        rate: the inner rate.
        size: of a member of a series, on its horizontal axis.
    """

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ways: int
    shots: int
    query_shots: int
    tasks: int
    steps: int
    rate: float = 0.01
    size: int | None = None

    def work(self, dtype: torch.dtype, device: str = "cpu", *, tasks: int | None = None) -> Work:
        """The meta-batch, from a fixed seed; `tasks` in the place of its own number."""
        torch.manual_seed(0)
        module = self.model().to(device, dtype)
        support, query = (self._set(tasks or self.tasks, shots) for shots in (self.shots, self.query_shots))
        moved = [
            (x.to(device, dtype), y.to(device, dtype if y.is_floating_point() else None)) for x, y in (support, query)
        ]
        return Work(module, REGRESSION if self.ways == 1 else CLASSIFICATION, *moved, self.steps, self.rate)

    def _set(self, tasks: int, shots: int) -> Set:
        inputs = torch.randn(tasks, self.ways * shots, *self.shape)
        if self.ways == 1:
            return inputs, torch.randn(tasks, 1, 1) + torch.sin(inputs + torch.randn(tasks, 1, 1))
        return inputs, self._labels(shots).expand(tasks, -1).contiguous()

    def _labels(self, shots: int) -> Tensor:
        return torch.arange(self.ways).repeat_interleave(shots)


def _sinusoid(steps: int, *, tasks: int = 25, width: int = 40, size: int | None = None) -> Problem:
    return Problem(
        model=lambda: MLP(input_shape=(1,), num_outputs=1, hidden=(width, width)),
        shape=(1,), ways=1, shots=10, query_shots=10, tasks=tasks, steps=steps, size=size,
    )  # fmt: skip


def _omniglot(ways: int, steps: int, tasks: int, downsampling: str, query_shots: int) -> Problem:
    shape = (1, 28, 28)
    return Problem(
        model=lambda: Conv4(input_shape=shape, num_outputs=ways, downsampling=downsampling),
        shape=shape, ways=ways, shots=1, query_shots=query_shots, tasks=tasks, steps=steps,
    )  # fmt: skip


def _omniglots() -> dict[str, Problem]:
    """The query sets of MAML's paper at 20 ways, and of most later work at 5."""
    found = {}
    for ways, steps, query_shots in ((5, 1, 5), (20, 5, 1)):
        for tasks in (16, 32):
            for kind, downsampling in (("strided", "stride"), ("pooled", "pool")):
                found[f"omniglot-{ways}way-{tasks}-{kind}"] = _omniglot(ways, steps, tasks, downsampling, query_shots)
    return found


CASES: dict[str, Problem] = {
    **{f"sinusoid-{steps}": _sinusoid(steps) for steps in (1, 5, 50)},
    **_omniglots(),
    "colour-5shot": Problem(
        model=lambda: Conv4(input_shape=(3, 84, 84), num_outputs=5, filters=32),
        shape=(3, 84, 84), ways=5, shots=5, query_shots=15, tasks=4, steps=5,
    ),
    "resnet12": Problem(
        model=lambda: ResNet12(channels=3, num_outputs=5),
        shape=(3, 32, 32), ways=5, shots=1, query_shots=3, tasks=2, steps=2,
    ),
    "lstm": Problem(
        model=lambda: Recurrent(features=8, hidden=64, num_outputs=5),
        shape=(16, 8), ways=5, shots=5, query_shots=5, tasks=8, steps=3,
    ),
    "transformer": Problem(
        model=lambda: Transformer(features=16, width=64, heads=4, depth=2, tokens=16, num_outputs=5),
        shape=(16, 16), ways=5, shots=5, query_shots=5, tasks=8, steps=3,
    ),
    **{f"tasks-{tasks}": _sinusoid(5, tasks=tasks, size=tasks) for tasks in (1, 10, 100, 1000)},
    **{f"steps-{steps}": _sinusoid(steps, size=steps) for steps in (1, 5, 20, 100, 500)},
    **{f"width-{width}": _sinusoid(5, width=width, size=width) for width in (10, 40, 160, 320, 640)},
}  # fmt: skip


def group_of(case: str) -> str:
    """What a case's name begins with; the members of a series share it."""
    return case.partition("-")[0]


def chosen(names: list[str] | None) -> list[str]:
    """The cases of these names or groups, in the table's order; all for None.

    Raises:
        ValueError: a name that is none.
    """
    if names is None:
        return list(CASES)
    for name in names:
        if not any(name in (case, group_of(case)) for case in CASES):
            groups = dict.fromkeys(group_of(case) for case in CASES)
            raise ValueError(f"{name!r} is no case; there are {', '.join(CASES)}, and the groups {', '.join(groups)}")
    return [case for case in CASES if case in names or group_of(case) in names]
