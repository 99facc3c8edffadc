"""Plug-ins that fail: whose fault it was, its own traceback without ours, and wrong returns found at once.

A user's task source, model, algorithm or loss runs deep inside this library and torch. What it raises becomes a
`PluginError`: one line that says which method failed and why, and the part of the traceback that lies in the user's
own code. Nothing is wrapped around a step but a `try`. Of every batch the shapes, dtypes and labels are looked at; all
values are for the first batch of a split, and for one that a step failed on.
"""

import contextlib
import itertools
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import PluginError, UsageError
from metalearn.functional import FunctionalModel
from metalearn.tasks.checks import attribute_findings, batch_findings, protocol_problem
from metalearn.types import Episodes


@dataclass(frozen=True)
class GuardedSource:
    """A task source whose failures are told as its own, and whose batches are checked.

    Everything else of it is reached through this object as if it were not there.

    Attributes:
        source: the task source.
        dtype: of the inputs, that of the model.
        checked: the splits of which a batch has been looked at in every respect; later ones are given a cheap look.
    """

    source: Any
    dtype: torch.dtype
    checked: set[str]

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # while a copy is being made there is none yet
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def splits(self) -> tuple[str, ...]:
        """The source's splits."""
        return tuple(self.source.splits)

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """What the source returns; `PluginError` for what is no batch of episodes."""
        with blamed(f"{_name_of(self.source)}.episodes({split!r}, …)", plugin=self.source):
            episodes: Episodes = self.source.episodes(split, indices, seed=seed)
        self.check_batch(split, indices, episodes, values=split not in self.checked)
        self.checked.add(split)
        return episodes

    def check_batch(
        self, split: str, indices: Sequence[int] | Tensor, episodes: Episodes, *, values: bool = True
    ) -> None:
        """Looks at a batch of `split`, with or without the values of its inputs and targets.

        Raises:
            PluginError: it is not what episodes have to be; nothing of the user's raised, so it has no traceback.
        """
        found = batch_findings(self.source, episodes, num_tasks=len(indices), dtype=self.dtype, values=values)
        # A query class without a support example is odd, and `check_task` says so; it can be trained on.
        findings = [each for each in found if each.check != "classes"]
        if findings:
            which = f" At episodes {_shown(indices)}." if split in self.checked else ""
            raise PluginError(
                f"{_name_of(self.source)}.episodes({split!r}, …): {findings[0]}{_others(findings)}{which} "
                "(metalearn.testing.check_task tells more.)"
            )

    @contextlib.contextmanager
    def suspected(self, split: str, indices: Sequence[int] | Tensor, episodes: Episodes) -> Iterator[None]:
        """Where the block fails on these episodes, they are looked at before anything else is blamed.

        Raises:
            PluginError: the episodes are not what they have to be.
        """
        try:
            yield
        except Exception as error:
            try:
                self.check_batch(split, indices, episodes)
            except PluginError as finding:
                raise finding from error
            except RuntimeError:  # a device that failed in the block answers nothing any more
                raise error from None
            raise

    def to(self, device: torch.device | str) -> "GuardedSource":
        """The same source on `device`."""
        with blamed(f"{_name_of(self.source)}.to({str(device)!r})", plugin=self.source):
            moved = self.source.to(device)
        if moved is None:
            raise UsageError(f"{_name_of(self.source)}.to(device) returned None. Return the source on that device.")
        if type(moved) is not type(self.source):
            raise UsageError(
                f"{_name_of(self.source)}.to(device) returned a {_name_of(moved)}, so what {_name_of(self.source)} "
                "overrides would be lost. Write type(self)(…), or change a copy.copy(self), in `to`."
            )
        return GuardedSource(moved, self.dtype, self.checked)

    def protocol(self) -> dict[str, Any]:
        """What the source says of itself; `UsageError` where it is no plain data."""
        with blamed(f"{_name_of(self.source)}.protocol()", plugin=self.source):
            card = self.source.protocol()
        reason = protocol_problem(card)
        if reason:
            raise UsageError(
                f"{_name_of(self.source)}.protocol() returned what JSON can not hold ({reason}). Return a dict of "
                "plain numbers, texts, lists and dicts."
            )
        return dict(card)


def guard(source: Any, *, dtype: torch.dtype = torch.float32) -> GuardedSource:
    """`source` with its failures told as its own.

    Raises:
        UsageError: it lacks what a task source needs.
    """
    if isinstance(source, GuardedSource):
        return source
    findings = attribute_findings(source)
    if findings:
        raise UsageError(f"{_name_of(source)} is no task source yet: {findings[0]}{_others(findings)}")
    return GuardedSource(source, dtype, set())


@contextlib.contextmanager
def blamed(call: str | None = None, *, plugin: Any = None) -> Iterator[None]:
    """Turns what a plug-in raised in the block into a `PluginError`; our own errors and signals pass through.

    Args:
        call: what was called, if that is known; else the traceback says it.
        plugin: whose method was called. One of this library's own is not blamed for raising: that is our defect, and
            its whole traceback is wanted.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # `exit()` in a plug-in would end the run as if it were done
        guilty = _guilty_call(error)
        if call is not None and plugin is not None and not _is_ours(type(plugin).__module__):
            guilty = call
        if guilty is None:
            raise
        raise PluginError(f"{call or guilty} raised {in_a_line(error)}", own_traceback(error)) from error


def own_traceback(error: BaseException) -> str:
    """The traceback from the first frame of a user's own on, without the frames of this library and of torch.

    Empty where there is no such frame: a module of torch's own was called with what it does not take.
    """
    shown = traceback.TracebackException.from_exception(error)
    own = [frame.f_code.co_filename for frame in _frames(error.__traceback__) if _may_be_a_users(frame)]
    each: traceback.TracebackException | None = shown
    while each is not None:
        each.stack = traceback.StackSummary.from_list(_kept(list(each.stack), own))
        each = each.__cause__ or each.__context__
    return "".join(shown.format()).rstrip() if own or isinstance(error, SyntaxError) else ""


def in_a_line(error: BaseException) -> str:
    """The error's type and text in one line, and what to do where that is known."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    if isinstance(error, RuntimeError) and "vmap" in text:
        shown += " (Tasks run under vmap here; execution.tasks=loop takes any code.)"
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


_LONGEST = 300
_OURS = str(Path(__file__).resolve().parents[1])
_CUT = (_OURS, str(Path(torch.__file__).parent), "<frozen importlib", contextlib.__file__)
"""Where files begin whose frames are never shown."""

_LIBRARIES = {
    *sys.stdlib_module_names, "PIL", "filelock", "functorch", "hydra", "learn2learn", "matplotlib", "metalearn",
    "numpy", "omegaconf", "pandas", "pyarrow", "rich", "safetensors", "tensorboard", "torch", "torchvision", "wandb",
    "yaml",
} - {"__main__"}  # fmt: skip
"""What this library itself calls: a failure that begins there is not a plug-in's."""


def _guilty_call(error: BaseException) -> str | None:
    """The method of a plug-in that failed: a model's forward, or the first frame that may be a user's own."""
    frames = list(_frames(error.__traceback__))
    for frame, inside in itertools.pairwise(frames):
        module = inside.f_locals.get("self")
        if frame.f_code is FunctionalModel.__call__.__code__ and isinstance(module, torch.nn.Module):
            return None if _is_ours(type(module).__module__) else f"{type(module).__name__}.forward(…)"
    for frame in filter(_may_be_a_users, frames):
        owner = frame.f_locals.get("self")
        return f"{frame.f_code.co_name}(…)" if owner is None else f"{type(owner).__name__}.{frame.f_code.co_name}(…)"
    return None


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _may_be_a_users(frame: FrameType) -> bool:
    name, filename = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
    return name.partition(".")[0] not in _LIBRARIES and not filename.startswith(_CUT)


def _kept(frames: list[traceback.FrameSummary], own: Sequence[str]) -> list[traceback.FrameSummary]:
    begin = next((position for position, frame in enumerate(frames) if frame.filename in own), len(frames))
    return [frame for frame in frames[begin:] if not frame.filename.startswith(_CUT)]


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "metalearn"


def _name_of(plugin: Any) -> str:
    return type(plugin).__name__


def _shown(indices: Sequence[int] | Tensor) -> str:
    numbers = [int(index) for index in indices]
    return f"{numbers[0]} … {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _others(findings: Sequence[Any]) -> str:
    return "" if len(findings) == 1 else f" And {len(findings) - 1} more."
