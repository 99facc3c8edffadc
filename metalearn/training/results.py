"""Numbers with their uncertainty, and the protocol card without which they mean nothing."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.files import write_atomically
from metalearn.types import Tensors

USUAL = 600
"""The test episodes of most papers; the rest report 10,000."""


@dataclass(frozen=True)
class Results:
    """What a run or an evaluation found.

    Attributes:
        data: the content of results.json: metrics as `{"mean", "ci95", "num_episodes"}` under `test`, the same after
            every inner step under `test_by_step`, from a random initialisation under `baseline`, and `protocol`. Where
            there are more than 600 episodes, the first 600 alone under `test_first_600`.
        split: which split was measured; it names the first of these entries.
        values: every metric of every episode after 0 … K inner steps, `[task, K + 1]`; not saved.
    """

    data: Mapping[str, Any]
    split: str = "test"
    values: Tensors = field(default_factory=dict, repr=False, compare=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the data as JSON.

        Raises:
            UsageError: the file can not be written.
        """
        try:
            write_atomically(Path(path), (json.dumps(self.data, indent=2, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{path} can not be written ({error.strerror or error}). Choose another folder.") from None

    def summary(self) -> str:
        """The results in a few lines for people."""
        lines = []
        for name, measured in self.data[self.split].items():
            line = f"{self.split} {name}: {describe(measured, percent=name == 'accuracy')}"
            baseline = self.data.get("baseline", {}).get(name)
            if baseline:
                line += f"; from a random initialisation: {describe(baseline, percent=name == 'accuracy')}"
            lines.append(f"{line} ({measured['num_episodes']} episodes)")
            first = self.data.get(f"{self.split}_first_{USUAL}", {}).get(name)
            if first:
                lines.append(f"  the first {USUAL} of them: {describe(first, percent=name == 'accuracy')}")
        return "\n".join(lines)


def summarise(values: Tensor) -> dict[str, Any]:
    """The mean of one value an episode, with the half-width of its 95% interval, 1.96 * std(ddof=1) / sqrt(n).

    A value that is no number (a diverged loss, the deviation of one episode) is `None`, which JSON can hold.

    Example:
        >>> import torch
        >>> summarise(torch.tensor([1.0, 2.0, 3.0, 4.0]))["mean"]
        2.5
    """
    # In float64 on the CPU: the mean of 600 float32 values should not depend on how they were summed.
    exact = values.detach().double().cpu()
    count = exact.numel()
    interval = 1.96 * exact.std(correction=1).item() / math.sqrt(count) if count > 1 else math.nan
    return {"mean": finite_or_none(exact.mean().item()), "ci95": finite_or_none(interval), "num_episodes": count}


def last_step(measured: Tensors) -> dict[str, Any]:
    """The summary of every metric `[task, step]` after the last inner step."""
    return {name: summarise(values[:, -1]) for name, values in measured.items()}


def of_the_first(measured: Tensors, split: str) -> dict[str, Any]:
    """The summaries of the first `USUAL` episodes beside those of more: what most papers report is in a longer test."""
    if not any(len(values) > USUAL for values in measured.values()):
        return {}
    return {f"{split}_first_{USUAL}": last_step({name: values[:USUAL] for name, values in measured.items()})}


def by_step(measured: Tensors) -> dict[str, Any]:
    """The summaries of every metric `[task, step]` after 0, 1, ... inner steps."""
    return {name: [summarise(column) for column in values.unbind(1)] for name, values in measured.items()}


def describe(measured: Mapping[str, Any], *, percent: bool = False) -> str:
    """A measured value for people: "97.1% ± 0.4%" or "0.132 ± 0.013"."""
    mean, interval = measured["mean"], measured["ci95"]
    if mean is None:
        return "not finite"
    shown = f"{100 * mean:.2f}%" if percent else f"{mean:.4g}"
    if interval is None:
        return shown
    return f"{shown} ± {100 * interval:.2f}%" if percent else f"{shown} ± {interval:.2g}"


def finite_or_none(value: float) -> float | None:
    """`value`, or `None` where JSON has no number for it."""
    return value if math.isfinite(value) else None
