"""The numbers of a meta step: on the device for as long as nobody reads them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.metagrad import Outcome
from metalearn.types import Tensors


@dataclass
class Numbers:
    """The meta-loss, the metrics averaged over tasks and the norm of the meta-gradient.

    Attributes:
        scalars: by name, where they were computed.
        copy: of all of them for the host, float64 `[number]`, that may still be on its way; None where they are there.
        copied: the event after which the copy is there.
    """

    scalars: Tensors
    copy: Tensor | None = None
    copied: Any = None
    _read: dict[str, float] | None = field(default=None, init=False)

    @staticmethod
    def of(outcome: Outcome) -> "Numbers":
        """Those of a meta-gradient; one transfer from the device instead of one a number, and no wait for it."""
        named = {
            "loss": outcome.value.detach(),
            **{name: task.detach().double().mean() for name, task in outcome.aux.metrics.items()},
            "grad_norm": tree.norm(outcome.grads).detach(),
        }
        if outcome.value.device.type == "cpu":
            return Numbers(named)
        values = torch.stack([scalar.double() for scalar in named.values()]).to("cpu", non_blocking=True)
        if not outcome.value.is_cuda:
            return Numbers(named, values)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return Numbers(named, values, copied)

    @property
    def norm(self) -> float | Tensor:
        """The norm of the gradient: a number once it has been read, until then a scalar on the device."""
        return self.scalars["grad_norm"] if self._read is None else self._read["grad_norm"]

    def read(self) -> dict[str, float]:
        """The numbers by name. Waits for the device to have computed these, not for what was launched after them."""
        if self._read is None:
            if self.copied is not None:
                self.copied.synchronize()
            values = [scalar.item() for scalar in self.scalars.values()] if self.copy is None else self.copy.tolist()
            self._read = dict(zip(self.scalars, values, strict=True))
        return self._read
