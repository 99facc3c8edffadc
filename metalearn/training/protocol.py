"""The protocol card: what somebody else needs to know before they compare a number with ours."""

import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn.training.experiment import Experiment, Source
from metalearn.types import Tensors


def protocol_card(
    experiment: Experiment,
    *,
    source: Source,
    split: str,
    meta: Tensors,
    device: torch.device,
    num_inner_steps: int,
    checkpoint: str,
    meta_steps_done: int,
    wall_time: float,
) -> dict[str, Any]:
    """The card of one measurement as plain data.

    Args:
        experiment: what was run.
        source: of the episodes that were measured.
        split: their split.
        meta: what was learned.
        device: where.
        num_inner_steps: at the measurement.
        checkpoint: which one was measured, in words.
        meta_steps_done: those of the checkpoint.
        wall_time: in seconds, over all the parts of a resumed run.
    """
    settings, algorithm = experiment.settings, experiment.algorithm
    inner_lr = _plain(getattr(algorithm, "inner_lr", None))
    card = dict(source.protocol()) | {
        "split": split,
        "algorithm": type(algorithm).__name__,
        "metagrad": repr(experiment.strategy),
        "execution": repr(experiment.execution),
        "inner_steps_train": getattr(algorithm, "num_inner_steps", None),
        "inner_steps_test": num_inner_steps,
        "inner_optimizer": _name(getattr(algorithm, "inner_optimizer", None)),
        "inner_lr_train": inner_lr,
        "inner_lr_test": inner_lr,
        **model_card(experiment.module),
        "num_meta_parameters": sum(value.numel() for value in meta.values()),
        "meta_batch_size": settings.batch_size,
        "meta_steps": settings.num_steps,
        **_outer(experiment.config.get("meta", {})),
        "checkpoint": checkpoint,
        "meta_steps_of_checkpoint": meta_steps_done,
        "meta_gradient_clip": settings.clip,
        "validation_episodes": settings.val_episodes if settings.validates else 0,
        "seed": settings.seed,
        "episodes_seed": settings.seed,
        "versions": versions(),
        "device": device_name(device),
        "num_threads": torch.get_num_threads(),
        "wall_time_seconds": round(wall_time, 1),
    }
    train = dict(experiment.source.protocol())
    at_training = {name: value for name, value in train.items() if card.get(name) != value}
    return card | ({"training_task": at_training} if at_training else {})


def model_card(module: nn.Module) -> dict[str, Any]:
    """The model's name, its filters if it has any, its normalisation policy, and what it says of itself."""
    policies = {policy for policy in map(_policy, module.modules()) if policy}
    filters, details = _filters(module), getattr(module, "protocol", None)
    return {
        "model": type(module).__name__,
        **({} if filters is None else {"filters": filters}),
        **({"model_details": _plain(details())} if callable(details) else {}),
        "normalisation": " + ".join(sorted(policies)) or "none",
        "transductive": _SET_STATISTICS in policies,
    }


def versions() -> dict[str, str]:
    """Of Python, torch and this package."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "metalearn": _own_version()}


def device_name(device: torch.device) -> str:
    """The device with the name of its hardware: "cuda:0 (NVIDIA …)", "cpu (AMD …)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    name = _processor() if device.type == "cpu" else platform.machine()
    return f"{device} ({name})" if name else str(device)


_SET_STATISTICS = "batch norm, statistics of the current set"
_RUNNING_STATISTICS = "batch norm, running statistics at test"


def _policy(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _RUNNING_STATISTICS if module.track_running_stats else _SET_STATISTICS
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return "instance norm"
    if isinstance(module, nn.LayerNorm):
        return "layer norm"
    if isinstance(module, nn.GroupNorm):
        return "group norm"
    return None


def _filters(module: nn.Module) -> int | None:
    convolutions = [part for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd)]
    return convolutions[-1].out_channels if convolutions else None


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("metalearn-torch")
    except PackageNotFoundError:
        return "not installed (run from a checkout)"


def _processor() -> str:
    # platform.processor() is empty, or just the architecture, on most Linux systems.
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _outer(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {f"meta_{name}": meta[name] for name in ("optimizer", "lr", "schedule") if name in meta}


def _name(make: Any) -> str | None:
    """How a factory is called: "sgd", or "sgd(momentum=0.9)" for a partial of it."""
    if isinstance(make, partial):
        given = [*map(repr, make.args), *(f"{name}={value!r}" for name, value in make.keywords.items())]
        return f"{_name(make.func)}({', '.join(given)})"
    return None if make is None else str(getattr(make, "__name__", repr(make)))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str, type(None))) else repr(value)
