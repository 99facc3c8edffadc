"""execution.json in the run directory: from which meta step on its meta-gradients are compiled, or why they are not."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from metalearn.training.kept import read_kept, write_kept

EXECUTION = "execution.json"


@dataclass(frozen=True, kw_only=True)
class Switched:
    """A strategy whose meta-gradients were run by compiled code.

    Attributes:
        strategy: its text; most runs have one.
        since: the first meta step of that, counted from 0.
        until: the meta step from which they were run as they are again; None for none.
        compile_seconds: tracing and compiling in the run's own process, from the cache where that was filled before.
        ahead_seconds: the process that filled the cache beside the run; None where there was none.
        relative_error: how far the first compiled gradient was from the eager one, in norm.
        bound: how far it could have been.
    """

    strategy: str
    since: int
    until: int | None = None
    compile_seconds: float
    ahead_seconds: float | None = None
    relative_error: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class StaysEager:
    """A strategy whose meta-gradients are run as they are.

    Attributes:
        strategy: its text.
        reason: why, in a line.
        for_good: whether a resumed run leaves it at that; else it tries again, as what was missing may be there then.
        at: the meta step at which that was found out.
    """

    strategy: str
    reason: str
    for_good: bool
    at: int = 0


@dataclass(frozen=True, kw_only=True)
class ExecutionRecord:
    """How the meta-gradients of a run are run.

    Attributes:
        execution: the execution's text.
        compiled: "pieces" or "whole".
        torch: its version, when this was last written.
        switch_at: as asked for.
        switched: what is compiled.
        eager: what is not.
        measured: the candidates, where the execution was chosen by measurement.
    """

    execution: str
    compiled: str | None
    torch: str = str(torch.__version__)
    switch_at: int | None = None
    switched: tuple[Switched, ...] = ()
    eager: tuple[StaysEager, ...] = ()
    measured: Mapping[str, Any] | None = None

    def entry(self, strategy: str) -> Switched | None:
        """What is known of a strategy that is compiled."""
        return next((each for each in self.switched if each.strategy == strategy), None)

    def with_entry(self, entry: Switched) -> "ExecutionRecord":
        """With this strategy compiled, whatever was known of it."""
        switched = (*(each for each in self.switched if each.strategy != entry.strategy), entry)
        eager = tuple(each for each in self.eager if each.strategy != entry.strategy)
        return replace(self, switched=switched, eager=eager, torch=str(torch.__version__))

    def with_eager(self, entry: StaysEager) -> "ExecutionRecord":
        """With this strategy left as it is."""
        eager = (*(each for each in self.eager if each.strategy != entry.strategy), entry)
        return replace(self, eager=eager, torch=str(torch.__version__))

    def write(self, folder: Path) -> None:
        """Writes execution.json, whole or not at all."""
        write_kept(folder / EXECUTION, asdict(self))


def read_record(folder: Path) -> ExecutionRecord | None:
    """What execution.json says; None where there is none.

    Raises:
        UsageError: it can not be read.
    """
    if not (folder / EXECUTION).exists():
        return None
    return read_kept(
        folder / EXECUTION,
        _parsed,
        holds="from which meta step on this run is compiled",
        fix="Start a new run.",
    )


def execution_card(checkpoint: Path) -> dict[str, Any]:
    """What the protocol card says of the run that a checkpoint lies in; nothing where all of it ran as it is."""
    record = read_record(checkpoint.parent.parent)
    if record is None:
        return {}
    compiled = [
        {name: value for name, value in asdict(each).items() if name in _ON_THE_CARD and value is not None}
        for each in record.switched
    ]
    card: dict[str, Any] = {"compiled": compiled, "compiled_by": f"torch {record.torch}"} if compiled else {}
    if record.eager:
        card["not_compiled"] = [{"strategy": each.strategy, "reason": each.reason} for each in record.eager]
    return card | ({"execution_chosen_by": f"measurement, kept in {EXECUTION}"} if record.measured else {})


_ON_THE_CARD = ("strategy", "since", "until", "relative_error")


def _parsed(found: dict[str, Any]) -> ExecutionRecord:
    record = {each.name: found[each.name] for each in fields(ExecutionRecord)}
    record["switched"] = tuple(Switched(**each) for each in record["switched"])
    record["eager"] = tuple(StaysEager(**each) for each in record["eager"])
    return ExecutionRecord(**record)
