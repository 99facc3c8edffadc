"""Whether a task source goes where it is sent: into another process, to another device, onto the protocol card."""

import pickle
from collections.abc import Mapping
from typing import Any

import torch

from metalearn import tree
from metalearn.tasks.checks import Finding, protocol_problem
from metalearn.testing.determinism import Draws, close, equal
from metalearn.types import Episodes

_FEW = range(2)


def pickling_finding(source: Any, draws: Draws, batches: Mapping[str, Episodes]) -> Finding | None:
    """A source that can not be sent to another process, or is another one there."""
    fix = (
        "Define the class at the top of a module, and keep no lambda, open file, lock or generator as an attribute "
        "(or leave it out in __getstate__)."
    )
    try:
        copy = pickle.loads(pickle.dumps(source))
    except Exception as error:
        return Finding("pickling", f"it can not be pickled ({type(error).__name__}: {error}).", fix)
    split, reference = next(iter(batches.items()))
    found = draws(split, _FEW, source=copy)
    if not all(equal(reference, task, found, task) for task in _FEW):
        return Finding("pickling", f"after pickling, the episodes of {split!r} are other ones.", fix)
    return None


def device_findings(source: Any, draws: Draws, batches: Mapping[str, Episodes]) -> list[Finding]:
    """What is wrong with `to`, on the CPU and on CUDA where there is one."""
    names = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = (_device_finding(source, draws, batches, torch.device(name)) for name in names)
    return [each for each in found if each is not None]


def _device_finding(source: Any, draws: Draws, batches: Mapping[str, Episodes], device: torch.device) -> Finding | None:
    split, reference = next(iter(batches.items()))
    try:
        moved = source.to(device)
    except Exception as error:
        text = f"to({device.type!r}) raised {type(error).__name__}: {error}."
        return Finding("devices", text, "Return the source itself if it has no tensors.")
    if not callable(getattr(moved, "episodes", None)):
        text = f"to({device.type!r}) returned {'None' if moved is None else f'a {type(moved).__name__}'}."
        return Finding(
            "devices", text, "Return a task source: `self` if it has no tensors, else a copy.copy with them moved."
        )
    if type(moved) is not type(source):
        text = (
            f"to({device.type!r}) returned a {type(moved).__name__}, so what {type(source).__name__} overrides is lost."
        )
        return Finding("devices", text, "Write type(self)(…), or change a copy.copy(self), in `to`.")
    found = draws(split, _FEW, source=moved)
    elsewhere = {leaf.device.type for leaf in tree.tensors(found)} - {device.type}
    if elsewhere:
        text = f"after to({device.type!r}) there are tensors on {', '.join(sorted(elsewhere))} in the episodes."
        return Finding("devices", text, "Return every tensor on that device, the key too.")
    if not all(close(reference, task, found, task) for task in _FEW):
        text = f"after to({device.type!r}) the episodes of {split!r} are other ones."
        return Finding("devices", text, "Draw with metalearn.random: its bits are the same on every device.")
    return None


def protocol_finding(source: Any) -> Finding | None:
    """A protocol that can not be written to results.json."""
    fix = "Return a dict of plain numbers, texts, lists and dicts: int(…) of a tensor, list(…) of an array."
    try:
        problem = protocol_problem(source.protocol())
    except Exception as error:
        return Finding("protocol", f"protocol() raised {type(error).__name__}: {error}.", fix)
    return Finding("protocol", f"protocol() returned what JSON can not hold ({problem}).", fix) if problem else None
