"""Norms that keep running statistics: which modules they are, and how a skeleton's are told what to do with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from metalearn.functional.ownership import batched_zero
from metalearn.types import Statistics

STATISTICS: tuple[Statistics, ...] = get_args(Statistics)

Places = Mapping[tuple[int, str], str]
"""The name of the tensor at each place of a module: `(id of the submodule, attribute) -> name`."""


@dataclass(frozen=True)
class Norms:
    """The norms of a module whose statistics are a matter of policy.

    Attributes:
        statistics: the names of the buffers of those that keep running statistics.
        untracked: the names of batch norms that keep none, and so always take the statistics of the set at hand.
        over_examples: whether any takes statistics over the examples of a set (an instance norm does not).
    """

    statistics: tuple[str, ...]
    untracked: tuple[str, ...]
    over_examples: bool


def norms_of(module: nn.Module, names: Places) -> Norms:
    """The norms of a module, or of a skeleton of it.

    A user's own class counts as one where it has buffers called `running_mean` and `running_var`.
    """
    keeping = [part for part in module.modules() if _keeps_statistics(part, names)]
    untracked = tuple(
        name or type(part).__name__
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and not _keeps_statistics(part, names)
    )
    statistics = [names.get((id(part), attribute)) for part in keeping for attribute in part._buffers]
    return Norms(
        statistics=tuple(dict.fromkeys(name for name in statistics if name is not None)),
        untracked=untracked,
        over_examples=bool(untracked) or any(not isinstance(part, _InstanceNorm) for part in keeping),
    )


def put_norms(skeleton: nn.Module, names: Places, statistics: Statistics) -> None:
    """Sets the modes of the norms of a skeleton, and of them alone; not for a user's module, which it would change.

    These are the flags that torch's own norms go by, and so subclasses of them with a forward of their own.
    """
    for part in skeleton.modules():
        if _keeps_statistics(part, names):
            part.__dict__["training"] = statistics != "running"
            if hasattr(part, "track_running_stats"):
                part.__dict__["track_running_stats"] = statistics != "set"


class CumulativeNorm(_BatchNorm):
    """The batch norm of torch, with `momentum=None` (a cumulative average) also where tasks run side by side.

    torch's own takes `float(num_batches_tracked)`, which no tensor of several tasks has.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The result is torch's."""
        counter, mean = self.num_batches_tracked, self.running_mean
        tracks = self.training and self.track_running_stats and self.momentum is None
        if not tracks or counter is None or mean is None or batched_zero(counter) is None:
            return _BatchNorm.forward(self, input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        counter.add_(1)
        weight_of_last: Any = counter.to(torch.promote_types(mean.dtype, torch.float32)).reciprocal()
        return F.batch_norm(
            input, mean, self.running_var, self.weight, self.bias, True, weight_of_last, self.eps
        )  # fmt: skip


def own_forms(cls: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Further bases, and attributes, of the class of a skeleton of such a module.

    A base that comes after the class and before `_BatchNorm`, where a subclass's `super().forward` finds it too. A
    synchronised batch norm is a batch norm: processes have tasks of their own, whose sets nobody is to mix.
    """
    if not (isinstance(cls, type) and issubclass(cls, _BatchNorm)) or issubclass(cls, CumulativeNorm):
        return (), {}
    synchronised = getattr(cls, "forward", None) is nn.SyncBatchNorm.forward
    return (CumulativeNorm,), {"forward": CumulativeNorm.forward} if synchronised else {}


def _keeps_statistics(part: nn.Module, names: Places) -> bool:
    return all((id(part), attribute) in names and attribute in part._buffers for attribute in _RUNNING)


_RUNNING = ("running_mean", "running_var")
