"""Checkpoints: the tensors as safetensors, the rest as JSON, and no code anywhere.

A checkpoint is a folder with `state.json` and the tensor file that it names, with its SHA-256. The tensor file is
written first and under a name of its own (a part of its digest), and `state.json` is replaced by a rename: that is the
moment at which the new checkpoint counts. A crash before it leaves the old one, after it the new one.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError, did_you_mean
from metalearn.files import write_atomically
from metalearn.training.nests import decode, encode
from metalearn.training.run_directory import CHECKPOINTS
from metalearn.types import Tensors

_FORMAT = "metalearn-checkpoint"
_VERSION = 1
_STATE = "state.json"
_OPTIMIZER = "optimizer/"
_CARRY = "carry/"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run needs to go on, or to be measured.

    Attributes:
        step: the meta steps done.
        meta: the meta-parameters.
        buffers: the model's buffers, as merged over the tasks so far.
        optimizer: the outer optimizer's `state_dict()`; `None` in a checkpoint that is only to be measured.
        loop: the loop's own numbers (best validation so far, running sums ...), plain data.
        config: the experiment's configuration, plain data.
        carry: the leaves of what the strategy goes on from, if it is amid an episode; `None` otherwise.
    """

    step: int
    meta: Tensors
    buffers: Tensors
    optimizer: dict[str, Any] | None = None
    loop: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    carry: list[Any] | None = None


def save_checkpoint(checkpoint: Checkpoint, folder: str | os.PathLike[str]) -> None:
    """Writes `checkpoint` to `folder`; what was there stays valid until the new one is whole.

    Raises:
        UsageError: the folder can not be written, or the state of the optimizer or the strategy holds what is neither
            tensor nor plain data.
    """
    folder = Path(folder)
    try:
        optimizer, optimizer_tensors = encode(checkpoint.optimizer, _OPTIMIZER)
    except TypeError as error:
        raise UsageError(f"the outer optimizer's state is not saveable: {error}. Use another meta.optimizer.") from None
    try:
        carry, carry_tensors = encode(checkpoint.carry, _CARRY)
    except TypeError as error:
        raise UsageError(
            f"the strategy's carry is not saveable: {error}. Keep tensors and plain values in it."
        ) from None
    named = tree.prefixed(checkpoint.meta, "meta/") | tree.prefixed(checkpoint.buffers, "buffers/")
    named |= optimizer_tensors | carry_tensors
    content = safetensors.torch.save({name: _storable(value) for name, value in named.items()})
    digest = hashlib.sha256(content).hexdigest()
    file_name = f"tensors-{digest[:16]}.safetensors"
    state = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": checkpoint.step,
        # The names in order: safetensors sorts them, and an optimizer knows its parameters by position alone.
        "tensors": {"file": file_name, "sha256": digest, "names": list(named)},
        "loop": dict(checkpoint.loop),
        "optimizer": optimizer,
        "carry": carry,
        "config": dict(checkpoint.config),
    }
    try:
        write_atomically(folder / file_name, content)
        write_atomically(folder / _STATE, json.dumps(state, indent=1).encode())
        for stale in folder.glob("tensors-*.safetensors"):
            if stale.name != file_name:
                stale.unlink()
    except OSError as error:
        raise UsageError(
            f"the checkpoint {folder} can not be written ({error.strerror or error}); the one before it is untouched."
        ) from None


def load_checkpoint(folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads what `save_checkpoint` wrote; data only, nothing in it is executed.

    Raises:
        UsageError: it is not there, not ours, of a newer format, or damaged; the text names the file and the reason.
    """
    folder = Path(folder)
    state = _read_state(folder / _STATE)
    try:
        path = folder / Path(state["tensors"]["file"]).name
        unordered = _read_tensors(path, digest=state["tensors"]["sha256"], device=device)
        tensors = {name: unordered[name] for name in state["tensors"]["names"]}
        return Checkpoint(
            step=int(state["step"]),
            meta=tree.select(tensors, "meta/"),
            buffers=tree.select(tensors, "buffers/"),
            optimizer=decode(state["optimizer"], tensors),
            carry=decode(state.get("carry"), tensors),
            loop=dict(state["loop"]),
            config=dict(state["config"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise _unreadable(folder / _STATE, f"it is incomplete: {type(error).__name__} {error}") from None


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, from itself, from its `state.json`, or from a run directory (its best, else last).

    Raises:
        UsageError: there is none.
    """
    given = Path(path)
    folder = given.parent if given.name == _STATE else given
    for candidate in (
        folder,
        folder / CHECKPOINTS / "best",
        folder / CHECKPOINTS / "last",
        folder / "best",
        folder / "last",
    ):
        if (candidate / _STATE).is_file():
            return candidate
    what = "holds no checkpoint" if given.exists() else "is not there"
    raise UsageError(f"{given} {what}: expected a run directory with {CHECKPOINTS}/best or {CHECKPOINTS}/last in it.")


def check_fits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, path: Path, what: str) -> None:
    """Refuses tensors that are not those of the experiment at hand.

    Raises:
        UsageError: a name is missing or foreign, or a shape or dtype differs.
    """
    hint = "Is it a checkpoint of another model, task or algorithm?"
    for name in expected.keys() - found.keys():
        near = did_you_mean(name, found) if found else ""
        raise UsageError(f"{path} does not fit: it has no {what} {name!r}. {hint} {near}".rstrip())
    for name in found.keys() - expected.keys():
        raise UsageError(f"{path} does not fit: its {what} {name!r} has no place in this experiment. {hint}")
    for name, value in expected.items():
        got, wanted = found[name], value
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise UsageError(
                f"{path} does not fit: its {what} {name!r} is {got.dtype} {tuple(got.shape)}, this experiment's "
                f"{wanted.dtype} {tuple(wanted.shape)}. {hint}"
            )


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint at {path.parent} (no {_STATE} in it).") from None
    except OSError as error:
        raise _unreadable(path, str(error.strerror or error)) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"it is not JSON: {error}") from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise _unreadable(path, "it is not one of metalearn's")
    if state.get("version") != _VERSION:
        raise _unreadable(
            path, f"its format version is {state.get('version')!r}; this version of metalearn reads {_VERSION}"
        )
    return state


def _read_tensors(path: Path, *, digest: str, device: torch.device | str) -> Tensors:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, str(error.strerror or error)) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise _unreadable(path, "its content is not what was written (cut short, changed or damaged)")
    try:
        return tree.to(dict(safetensors.torch.load(content)), device)
    except SafetensorError as error:
        raise _unreadable(path, f"it is not a safetensors file: {error}") from None


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(f"the checkpoint {path} can not be read: {reason}. Use another checkpoint, or train again.")


def _storable(value: Tensor) -> Tensor:
    # Copies: safetensors refuses tensors that share storage, as two meta-parameters of one buffer may.
    return value.detach().to("cpu", copy=True).contiguous()
