"""The protocol card: what somebody else needs to know before they compare a number with ours."""

import platform
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn.algorithms import MAML
from metalearn.functional import functionalize
from metalearn.normalisation import Normalisation
from metalearn.state import describe
from metalearn.training.experiment import Experiment, Source, TrainingSettings, has_inner_steps
from metalearn.training.norm_card import policy_card
from metalearn.training.precision_check import precision_card
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
    records: Iterable[Mapping[str, Any]] = (),
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
        records: of the run, where it found how far its meta-gradients are from those in float32.
    """
    settings, algorithm = experiment.settings, experiment.algorithm
    card = dict(source.protocol()) | {
        "split": split,
        "algorithm": type(algorithm).__name__,
        "metagrad": repr(experiment.strategy),
        **_chosen(experiment.config.get("metagrad", {})),
        "execution": repr(experiment.execution),
        **precision_card(experiment.execution, records),
        "inner_steps_train": getattr(algorithm, "num_inner_steps", None),
        "inner_steps_test": num_inner_steps,
        **_inner(algorithm),
        **model_card(
            experiment.module,
            getattr(algorithm, "normalisation", "module"),
            mean_returns=getattr(experiment.execution, "buffers", "mean") == "mean",
        ),
        "num_meta_parameters": sum(value.numel() for value in meta.values()),
        **_roles(algorithm, experiment.module),
        **_own(algorithm),
        "meta_batch_size": settings.batch_size,
        "meta_steps": settings.num_steps,
        **_outer(experiment.config.get("meta", {})),
        "checkpoint": checkpoint,
        "model_selection": _selection(settings),
        "meta_steps_of_checkpoint": meta_steps_done,
        "meta_gradient_clip": settings.clip,
        "validation_episodes": settings.val_episodes if settings.validates else 0,
        "seed": settings.seed,
        "episodes_seed": settings.seed_of_test,
        "versions": versions(),
        "device": device_name(device),
        "num_threads": torch.get_num_threads(),
        "wall_time_seconds": round(wall_time, 1),
    }
    train = dict(experiment.source.protocol())
    at_training = {name: value for name, value in train.items() if card.get(name) != value}
    return card | ({"training_task": at_training} if at_training else {})


def model_card(
    module: nn.Module, policy: str | Normalisation = "module", *, mean_returns: bool = True
) -> dict[str, Any]:
    """The model's name, its filters if it has any, what it says of itself, and what becomes of its norms.

    Args:
        module: the model.
        policy: the normalisation policy of the algorithm.
        mean_returns: whether the execution returns the tasks' mean of buffers to the model.
    """
    protocol = getattr(module, "protocol", None)
    # Whether a model is transductive is not its own to say: the policy decides.
    said = protocol() if callable(protocol) else {}
    filters = _plain(said.get("filters", _filters(module)))  # several widths are the model's own to say
    details = {name: value for name, value in said.items() if name != "transductive"}
    return {
        "model": type(module).__name__,
        **({} if filters is None else {"filters": filters}),
        **({"model_details": _plain(details)} if details else {}),
        **policy_card(module, policy, mean_returns=mean_returns),
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


def _chosen(configured: Mapping[str, Any]) -> dict[str, Any]:
    """Who chose the strategy, where the user left it to a plan."""
    was_auto = str(configured.get("_target_", "")).endswith(".Auto")
    return {"metagrad_chosen_by": "auto: metalearn.metagrad.plan, kept in metagrad.json"} if was_auto else {}


def _roles(algorithm: Any, module: nn.Module) -> dict[str, Any]:
    """Which parameters the inner loop adapts and which are learned, where the algorithm lets that be chosen."""
    if not isinstance(algorithm, MAML):
        return {}
    # CAVIA adapts what the module alone has not: the working model has it.
    working = algorithm.working_model(functionalize(module))
    roles = algorithm.roles(working)
    return {
        "adapted_parameters": describe(algorithm.adapted),
        "num_adapted_parameters": sum(working.params[name].numel() for name in roles.adapted),
        "learned_parameters": describe(algorithm.learned),
        "num_learned_parameters": sum(value.numel() for value in roles.learned.values()),
    }


def _inner(algorithm: Any) -> dict[str, Any]:
    """The inner optimizer and its rate, where the algorithm steps at all."""
    optimizer = _name(getattr(algorithm, "inner_optimizer", None))
    if not has_inner_steps(algorithm):
        return {} if optimizer is None else {"inner_optimizer": optimizer}
    rate = _plain(getattr(algorithm, "inner_lr", None))
    return {"inner_optimizer": optimizer, "inner_lr_train": rate, "inner_lr_test": rate}


def _own(algorithm: Any) -> dict[str, Any]:
    """What the algorithm itself says."""
    said = getattr(algorithm, "protocol", None)
    return _plain(said()) if callable(said) else {}


def _outer(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {f"meta_{name}": meta[name] for name in ("optimizer", "lr", "schedule") if name in meta}


def _selection(settings: TrainingSettings) -> str:
    """What chose the checkpoint "best"; never the split that is tested."""
    if not settings.validates:
        return "none: the last checkpoint"
    return (
        f"best on {settings.val_episodes} episodes of the split 'val', looked at every {settings.eval_every} meta steps"
    )


def _name(make: Any) -> str | None:
    """How a factory is called: "sgd", "sgd(momentum=0.9)" for a partial of it; a learned optimizer says it itself."""
    if isinstance(make, partial):
        given = [*map(repr, make.args), *(f"{name}={value!r}" for name, value in make.keywords.items())]
        return f"{_name(make.func)}({', '.join(given)})"
    return None if make is None else str(getattr(make, "__name__", make))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str, type(None))) else repr(value)
