"""The types of everything that can be configured, and the bounds of its numbers.

Closed nodes are dataclasses, so that `inner.num_steps=three` and `inner.num_stepz=3` are refused as they are composed.
Tasks, models, algorithms and meta-gradients are open: a `_target_` and whatever it takes (`metalearn.config.plugins`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from metalearn.errors import UsageError, did_you_mean
from metalearn.training.experiment import LARGEST_SEED


class InnerOptimizer(Enum):
    """The names of `inner.optimizer`."""

    sgd = "sgd"
    adam = "adam"
    adamw = "adamw"
    nadam = "nadam"
    radam = "radam"
    adamax = "adamax"
    adagrad = "adagrad"
    adadelta = "adadelta"
    rmsprop = "rmsprop"
    rprop = "rprop"
    asgd = "asgd"
    adafactor = "adafactor"
    lion = "lion"
    muon = "muon"


class MetaOptimizer(Enum):
    """The names of `meta.optimizer`."""

    adam = "adam"
    sgd = "sgd"


class MetaSchedule(Enum):
    """The names of `meta.schedule`."""

    constant = "constant"
    cosine = "cosine"
    linear = "linear"


class Tasks(Enum):
    """The names of `execution.tasks`."""

    auto = "auto"
    loop = "loop"
    vmap = "vmap"


class Buffers(Enum):
    """The names of `execution.buffers`."""

    mean = "mean"
    keep = "keep"


class Nonfinite(Enum):
    """The names of `execution.nonfinite`."""

    stop = "stop"
    skip = "skip"


class Precision(Enum):
    """The names of `execution.precision`."""

    float32 = "float32"
    tf32 = "tf32"
    bf16 = "bf16"


class Convolutions(Enum):
    """The names of `execution.convolutions`."""

    grouped = "grouped"
    products = "products"


class CheckpointName(Enum):
    """The names of `checkpoint`, when a run is evaluated or used."""

    best = "best"
    last = "last"


def _number(default: Any, least: float, *, above: bool = False, most: int | None = None) -> Any:
    return field(default=default, metadata={"least": least, "above": above, "most": most})


@dataclass
class InnerConfig:
    """The inner loop at training; `options` are the optimizer's other hyper-parameters by name."""

    num_steps: int = _number(1, 0)
    lr: float = _number(0.4, 0)
    optimizer: InnerOptimizer = InnerOptimizer.sgd
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class MetaConfig:
    """The outer loop."""

    num_steps: int = _number(300, 0)
    batch_size: int = _number(16, 1)
    lr: float = _number(0.001, 0)
    optimizer: MetaOptimizer = MetaOptimizer.adam
    clip: float | None = _number(None, 0, above=True)
    schedule: MetaSchedule = MetaSchedule.constant
    log_every: int = _number(10, 1)
    checkpoint_every: int = _number(100, 1)


@dataclass
class EvalConfig:
    """Validation and test."""

    num_episodes: int = _number(600, 1)
    num_inner_steps: int | None = _number(None, 0)
    batch_size: int = _number(50, 1)
    every: int = _number(100, 0)
    val_episodes: int = _number(100, 0)
    baseline: bool = True
    seed: int | None = _number(None, 0, most=LARGEST_SEED)


@dataclass
class ExecutionConfig:
    """How the tasks of a meta-batch are run."""

    tasks: Tasks = Tasks.auto
    chunk_size: int | None = _number(None, 1)
    buffers: Buffers = Buffers.mean
    nonfinite: Nonfinite = Nonfinite.stop
    task_clip: float | None = _number(None, 0, above=True)
    precision: Precision = Precision.float32
    profile: bool = False
    compile: Any = field(default=False, metadata={"one_of": (False, True, "pieces", "whole")})
    convolutions: Convolutions = Convolutions.grouped
    cuda_graphs: bool = False
    switch_at: int | None = _number(None, 0)
    measure: bool = False


@dataclass
class TrainConfig:
    """A run: what `python -m metalearn.train` composes and the run directory's config.yaml holds."""

    task: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)
    inner: InnerConfig = field(default_factory=InnerConfig)
    metagrad: dict[str, Any] = field(default_factory=dict)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logger: dict[str, Any] = field(default_factory=dict)
    seed: int = _number(0, 0, most=LARGEST_SEED)
    device: str = "auto"
    run: str | None = None
    test_task: dict[str, Any] | None = None


@dataclass
class EvaluateEvalConfig:
    """`EvalConfig` with `None` for what stays as the run was configured."""

    num_episodes: int | None = _number(None, 1)
    num_inner_steps: int | None = _number(None, 0)
    batch_size: int | None = _number(None, 1)
    baseline: bool | None = None
    seed: int | None = _number(None, 0, most=LARGEST_SEED)


@dataclass
class EvaluateExecutionConfig:
    """`ExecutionConfig` with `None` for what stays as the run was configured."""

    tasks: Tasks | None = None
    chunk_size: int | None = _number(None, 1)


@dataclass
class EvaluateTaskConfig:
    """Where the data lie, which differs between machines, and how many examples the measured tasks have."""

    root: str | None = None
    shots: int | None = _number(None, 1)
    query_shots: int | None = _number(None, 1)


@dataclass
class EvaluateConfig:
    """What `python -m metalearn.evaluate` composes."""

    run: str | None = None
    checkpoint: CheckpointName = CheckpointName.best
    split: str = "test"
    device: str | None = None
    eval: EvaluateEvalConfig = field(default_factory=EvaluateEvalConfig)
    execution: EvaluateExecutionConfig = field(default_factory=EvaluateExecutionConfig)
    task: EvaluateTaskConfig = field(default_factory=EvaluateTaskConfig)
    test_task: dict[str, Any] | None = None


@dataclass
class CompareConfig(EvaluateConfig):
    """What `python -m metalearn.compare` composes; its `run=…`, given twice, it reads itself."""

    out: str | None = None
    pair_seeds: bool = False


class OnBadImage(Enum):
    """The names of `on_bad_image`."""

    error = "error"
    skip = "skip"


@dataclass
class AdaptConfig:
    """What `python -m metalearn.adapt` composes."""

    run: str | None = None
    support: str | None = None
    query: str | None = None
    output: str = "labelled"
    source: str | None = None
    checkpoint: CheckpointName = CheckpointName.best
    num_inner_steps: int | None = _number(None, 0)
    inverted: bool | None = None
    on_bad_image: OnBadImage = OnBadImage.error
    batch_size: int | None = _number(None, 1)
    device: str = "auto"


SWEEPER = "hydra_plugins.metalearn.Sweeper"
"""The name of `config.sweeper.MetalearnSweeper`: Hydra takes plug-ins under this first name alone."""


@dataclass
class SweeperConfig:
    """The keys below `hydra.sweeper`.

    Attributes:
        params: swept keys and their values, in the grammar of the command line, which wins.
        batch_size: points that are launched at once; by default all of a grid, and as many of a study as the launcher
            has workers.
        num_trials: of a study; `None` for a grid.
        sampler: with the rest, see `metalearn.sweeps.Settings`.
    """

    _target_: str = SWEEPER
    params: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    num_trials: int | None = None
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 0
    num_startup_trials: int = 5
    num_warmup_steps: int = 0


def check_bounds(node: Any, prefix: str = "") -> None:
    """Refuses the first number that is out of its bounds.

    Raises:
        UsageError: naming the key as the command line spells it.
    """
    for entry in fields(node):
        value, name = getattr(node, entry.name), prefix + entry.name
        if is_dataclass(value):
            check_bounds(value, f"{name}.")
        elif "one_of" in entry.metadata:
            _check_choice(name, value, entry.metadata["one_of"])
        elif "least" in entry.metadata and value is not None:
            least, above = entry.metadata["least"], entry.metadata["above"]
            # `not >=`, so that nan is refused too.
            if not (value > least if above else value >= least) or value == float("inf"):
                raise UsageError(
                    f"{name}={value}: expected a finite number {'above' if above else 'of at least'} {least}."
                )
            if (most := entry.metadata["most"]) is not None and value > most:
                raise UsageError(f"{name}={value}: expected a number from {least} to {most}.")


def _check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    # 1 == True, but nobody means that.
    if any(value == each and type(value) is type(each) for each in choices):
        return
    spelt = [str(each).lower() for each in choices]
    raise UsageError(f"{name}={value}: there is no such choice. {did_you_mean(str(value), spelt)}")


def check_keys(found: Mapping[Any, Any], node: Any, prefix: str = "") -> None:
    """Refuses a key that `+key=value` added where the schema has no place for it.

    Raises:
        UsageError: with the close matches.
    """
    known = [entry.name for entry in fields(node)]
    for name in map(str, found):
        if name not in known:
            raise UsageError(f"Unknown key {prefix + name!r}. {did_you_mean(name, known)}")
        if is_dataclass(getattr(node, name)):
            check_keys(found[name], getattr(node, name), f"{prefix}{name}.")
