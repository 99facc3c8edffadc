"""State in safetensors files: tensors and names, no code in them, written whole or not at all."""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.files import write_atomically
from metalearn.types import Tensors

_FORMAT = "metalearn-state"
_VERSION = 1
_PLAIN_FILE = "metalearn.state.read_state_dict reads a plain safetensors file"


@dataclass(frozen=True)
class Saved:
    """What a file of `save` holds.

    Attributes:
        params: the parameters, in their order.
        buffers: the buffers, and the random key.
        more: the other groups, by the names that `save` was given.
    """

    params: Tensors
    buffers: Tensors
    more: dict[str, Tensors] = field(default_factory=dict)


def save(
    path: str | os.PathLike[str],
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    **more: Mapping[str, Tensor],
) -> None:
    """Writes state to one safetensors file, in which tensors are called `params/…`, `buffers/…` and `<group>/…`.

    A file that was there is replaced in one step once the new one is whole.

    Args:
        path: the file.
        params: by name.
        buffers: by name.
        **more: other groups of tensors by name, such as `opt_state=named(opt_state)`.

    Raises:
        UsageError: what is given is no dict of tensors, a group's name has a slash, a tensor can not be saved (sparse,
            say), or the file can not be written.
    """
    for group in more:
        if "/" in group:  # params={"x/a": …} and a group "params/x" would be one entry
            raise UsageError(f"the group {group!r} has a slash in its name: in a file that separates group and name.")
    groups = {"params": params, "buffers": buffers, **more}
    for group, tensors in groups.items():
        _check_tensors(tensors, what=f"{group}=")
    flat = {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}
    # The names in order: safetensors sorts them.
    order = {group: list(tensors) for group, tensors in groups.items()}
    metadata = {"format": _FORMAT, "version": str(_VERSION), "groups": json.dumps(order)}
    _write(Path(path), flat, metadata)


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Saved:
    """Reads what `save` wrote.

    Args:
        path: the file.
        device: where the tensors are to be.

    Raises:
        UsageError: it is not there, damaged, not a file of `save`, or of a newer version.
    """
    file = Path(path)
    tensors, metadata = _read(file, device)
    if metadata.get("format") != _FORMAT:
        raise UsageError(f"{file} is not a file of metalearn.state.save. {_PLAIN_FILE}.")
    if metadata.get("version") != str(_VERSION):
        raise UsageError(
            f"{file} has the format version {metadata.get('version')}; this version of metalearn reads {_VERSION}."
        )
    try:
        order = json.loads(metadata["groups"])
        groups = {group: {name: tensors[f"{group}/{name}"] for name in names} for group, names in order.items()}
        return Saved(groups.pop("params"), groups.pop("buffers"), groups)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is incomplete ({type(error).__name__}: {error}). Save it again.") from None


def write_state_dict(path: str | os.PathLike[str], state_dict: Mapping[str, Any]) -> None:
    """Writes a state dict to a plain safetensors file, which any reader of them takes; tied tensors under each name.

    Args:
        path: the file; replaced in one step.
        state_dict: of `to_state_dict`, or of any module.

    Raises:
        UsageError: it holds what is no tensor (a module's extra state), or the file can not be written.
    """
    _check_tensors(state_dict, what="the state dict", fix="leave it out, a safetensors file holds tensors alone")
    _write(Path(path), state_dict, {"format": "pt"})


def read_state_dict(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Tensors:
    """Reads a plain safetensors file, for `from_state_dict` or a module's `load_state_dict`.

    Args:
        path: the file.
        device: where the tensors are to be.

    Raises:
        UsageError: it is not there, damaged, or a file of `save`.
    """
    tensors, metadata = _read(Path(path), device)
    if metadata.get("format") == _FORMAT:
        raise UsageError(f"{path} is a file of metalearn.state.save: read it with metalearn.state.load.")
    return tensors


def _check_tensors(tensors: Any, *, what: str, fix: str = "metalearn.state.named makes that of any nest") -> None:
    if not isinstance(tensors, Mapping):
        raise UsageError(f"{what} is of type {type(tensors).__name__}, expected a dict of tensors by name: {fix}.")
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise UsageError(f"{what} has {name!r} of type {type(value).__name__}, expected tensors by name: {fix}.")


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    storable = {name: _storable(name, value) for name, value in tensors.items()}
    try:
        content = safetensors.torch.save(storable, metadata)
    except (SafetensorError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise UsageError(f"safetensors can not hold this state: {' '.join(str(error).split())}") from None
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"{path} can not be written ({error.strerror or error}).") from None


def _read(path: Path, device: torch.device | str) -> tuple[Tensors, dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}.") from None
    except OSError as error:
        raise UsageError(f"{path} can not be read ({error.strerror or error}).") from None
    except SafetensorError as error:
        fix = " torch.load(…, weights_only=True) reads one of torch.save." if zipfile.is_zipfile(path) else ""
        cause = " ".join(str(error).split())
        raise UsageError(f"{path} is not a safetensors file, or damaged ({cause}).{fix}") from None
    return tree.to(tensors, _device(device)), metadata


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        cause = str(error).partition("\n")[0].rstrip(".")
        raise UsageError(f"device={str(device)!r} can not be used here ({cause}). 'cpu' always can.") from None


def _storable(name: str, value: Tensor) -> Tensor:
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise UsageError(
            f"{name!r} belongs to a torch.func transform (vmap, grad) that is going on: return it from there, and save "
            "it outside."
        )
    if value.is_meta:
        raise UsageError(f"{name!r} is on the meta device, without numbers, and can not be saved: make it first.")
    if value.layout != torch.strided:
        raise UsageError(f"{name!r} is of layout {value.layout}, which safetensors can not hold: save .to_dense().")
    # Copies: safetensors refuses tensors that share memory, as tied ones do.
    return value.detach().to("cpu", copy=True).contiguous()
