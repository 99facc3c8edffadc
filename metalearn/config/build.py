"""From a config to the objects that it names: what `metalearn.training` takes."""

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from metalearn import execution, losses, optim
from metalearn.config import plugins
from metalearn.config.resolve import full_task, full_test_task, is_mixture, resolved
from metalearn.config.schema import (
    Convolutions,
    ExecutionConfig,
    InnerConfig,
    MetaConfig,
    MetaOptimizer,
    MetaSchedule,
    Tasks,
    TrainConfig,
)
from metalearn.config.stored import identity
from metalearn.errors import UsageError, did_you_mean
from metalearn.training import (
    Experiment,
    Logger,
    Progress,
    SilentProgress,
    TensorBoard,
    TrainingSettings,
    Wandb,
    progress_for,
    resolve_device,
)
from metalearn.training.experiment import MEASURABLE
from metalearn.training.laboratory import check_same_form
from metalearn.types import Hyper

_LOSSES = {"classification": losses.cross_entropy, "regression": losses.mean_squared_error}
_META_OPTIMIZERS: dict[MetaOptimizer, Callable[..., torch.optim.Optimizer]] = {
    MetaOptimizer.adam: torch.optim.Adam,
    MetaOptimizer.sgd: torch.optim.SGD,
}
_LOGGERS = {"wandb": Wandb, "tensorboard": TensorBoard}
_REQUIRES = "requires_metagrad"  # an algorithm that is a configuration of another says what makes it one
_QUIET_LOGGERS = ("none", "console")


def build_experiment(config: TrainConfig) -> Experiment:
    """Everything that `config` names, built.

    Raises:
        UsageError: for a mistake in the configuration, a device that is not there, data that are missing.
    """
    config = resolved(config)
    _refuse_what_makes_no_sense(config)
    device = resolve_device(config.device)
    source = build_source(config)
    module = build_module(config, source)
    algorithm, strategy = build_algorithm(config, source), _build("metagrad", config.metagrad)
    test_source = build_test_source(config)
    if test_source is not None:
        check_same_form(source, test_source, algorithm=algorithm)
    return Experiment(
        source=source,
        test_source=test_source,
        module=module,
        algorithm=algorithm,
        strategy=strategy,
        execution=execution.choose(
            config.execution.tasks.value,
            model=module,
            device=device,
            chunk_size=config.execution.chunk_size,
            buffers=config.execution.buffers.value,
            nonfinite=config.execution.nonfinite.value,
            task_clip=config.execution.task_clip,
            precision=config.execution.precision.value,
            compile=config.execution.compile,
            convolutions=config.execution.convolutions.value,
            cuda_graphs=config.execution.cuda_graphs,
            strategy=strategy,
            num_inner_steps=getattr(algorithm, "num_inner_steps", 1),
        ),
        outer_optimizer=partial(_META_OPTIMIZERS[config.meta.optimizer], lr=config.meta.lr),
        schedule=_schedule(config.meta),
        settings=build_settings(config, device),
        config=identity(config),
    )


def build_source(config: TrainConfig) -> Any:
    """The task source."""
    return _build_task(full_task(config.task, key="task"), key="task")


def build_test_source(config: TrainConfig) -> Any:
    """The source of the final test where it is another one; `None` otherwise."""
    node = full_test_task(config.test_task, task=config.task)
    return None if node is None else _build_task(node, key="test_task")


def build_module(config: TrainConfig, source: Any) -> nn.Module:
    """The model for `source`; `seed` fixes its initial state, and the global generators stay as they were."""
    given = {"input_shape": source.input_shape, "num_outputs": source.num_outputs}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        module = _build("model", config.model, **given)
    assert isinstance(module, nn.Module)
    return module


def build_algorithm(config: TrainConfig, source: Any) -> Any:
    """The algorithm, with the loss that belongs to the source's kind of targets."""
    if source.kind not in _LOSSES:
        raise UsageError(f"The task's kind is {source.kind!r}. {did_you_mean(str(source.kind), _LOSSES)}")
    given = {
        "loss": _LOSSES[source.kind],
        "inner_lr": config.inner.lr,
        "num_inner_steps": config.inner.num_steps,
        "inner_optimizer": build_inner_optimizer(config.inner),
    }
    # What has no inner loop takes none of its options.
    target = plugins.locate("algorithm", config.algorithm)
    given = {name: value for name, value in given.items() if plugins.accepts(target, name)}
    return _build("algorithm", {name: value for name, value in config.algorithm.items() if name != _REQUIRES}, **given)


def build_inner_optimizer(config: InnerConfig) -> Callable[[Hyper], optim.GradientTransformation]:
    """From a rate to the inner optimizer, with its options."""
    factory = optim.FAMILY[config.optimizer.value]
    options = dict(config.options)
    if "lr" in options:
        raise UsageError("inner.options.lr is inner.lr: give it there.")
    try:
        factory(config.lr, **options)
    except UsageError as error:
        raise UsageError(f"inner.options: {error}") from None
    return partial(factory, **options) if options else factory


def build_settings(config: TrainConfig, device: torch.device) -> TrainingSettings:
    """The numbers of the run."""
    at_test = config.eval.num_inner_steps
    return TrainingSettings(
        num_steps=config.meta.num_steps,
        batch_size=config.meta.batch_size,
        seed=config.seed,
        device=str(device),
        log_every=config.meta.log_every,
        eval_every=config.eval.every,
        val_episodes=config.eval.val_episodes,
        checkpoint_every=config.meta.checkpoint_every,
        test_episodes=config.eval.num_episodes,
        test_batch_size=config.eval.batch_size,
        num_inner_steps_eval=config.inner.num_steps if at_test is None else at_test,
        clip=config.meta.clip,
        baseline=config.eval.baseline,
        profile=config.execution.profile,
        switch_at=config.execution.switch_at,
        measures=_measured_tasks(config.execution),
        test_seed=config.eval.seed,
    )


def build_logger(config: TrainConfig) -> tuple[Logger | None, Progress]:
    """Where the numbers go beside metrics.jsonl, and where progress goes."""
    name = config.logger.get("name")
    known = (*_QUIET_LOGGERS, *_LOGGERS)
    if name not in known:
        raise UsageError(f"logger.name={name} is unknown. {did_you_mean(str(name), known)}")
    arguments = {key: value for key, value in config.logger.items() if key != "name"}
    if name in _LOGGERS:
        arguments = {"name" if key == "run_name" else key: value for key, value in arguments.items()}
        logger: Logger = plugins.construct(_LOGGERS[name], arguments, group="logger")
        return logger, progress_for(sys.stderr)
    if arguments:
        raise UsageError(f"logger={name} takes no logger.{next(iter(arguments))}.")
    return None, SilentProgress() if name == "none" else progress_for(sys.stderr)


def without_foreign_defaults(config: TrainConfig, changed: Collection[str]) -> tuple[TrainConfig, list[str]]:
    """`config` without the defaults of another class, where the command line replaced only a `_target_`.

    `task._target_=my_module.MyTask` keeps the group file's `ways`, `shots` … as far as MyTask takes them. What it does
    not take and nobody asked for is left out, and returned for the user to be told; what was asked for stays, to be
    refused. A model or an algorithm says by its own defaults what it is (`adapted="*.bias"`), so these go before the
    group file's; of a task the group file's sizes are what the command line's other keys are about.
    """
    left_out: list[str] = []
    nodes: dict[str, dict[str, Any]] = {}
    for group in ("task", "model", "algorithm"):
        node: dict[str, Any] = getattr(config, group)
        if f"{group}._target_" in changed:
            target = plugins.locate(group, node)
            foreign = [
                name
                for name in plugins.arguments_of(node)
                if name != _REQUIRES and f"{group}.{name}" not in changed and not plugins.accepts(target, name)
            ]
            left_out += [f"{group}.{name}" for name in foreign]
            own = [name for name in plugins.arguments_of(node) if plugins.has_default(target, name)]
            if group != "task":
                foreign += [name for name in own if name != _REQUIRES and f"{group}.{name}" not in changed]
            node = {name: value for name, value in node.items() if name not in foreign}
        nodes[group] = node
    replaced = replace(config, task=nodes["task"], model=nodes["model"], algorithm=nodes["algorithm"])
    return _without_inner_steps(replaced, changed), left_out


_INNER_OPTIONS = {
    "inner.num_steps": "num_inner_steps",
    "inner.lr": "inner_lr",
    "inner.optimizer": "inner_optimizer",
    "inner.options": "inner_optimizer",
    "eval.num_inner_steps": "num_inner_steps",
}


def _without_inner_steps(config: TrainConfig, changed: Collection[str]) -> TrainConfig:
    """For an algorithm that takes no inner steps: no number of them by default, and what was asked for is refused."""
    target = plugins.locate("algorithm", config.algorithm)
    for key in changed:
        if key not in _INNER_OPTIONS and not key.startswith("inner.options."):
            continue
        is_none = key == "eval.num_inner_steps" and not config.eval.num_inner_steps
        if not is_none and not plugins.accepts(target, _INNER_OPTIONS.get(key, "inner_optimizer")):
            name = getattr(target, "__name__", str(target))
            raise UsageError(
                f"{key} is of inner steps, which {name} does not take (what it does with a support set is set by "
                "options of its own, algorithm.…). Leave it out, or choose algorithm=maml."
            )
    if plugins.accepts(target, "num_inner_steps"):
        return config
    return replace(config, eval=replace(config.eval, num_inner_steps=None))


def _build(group: str, node: dict[str, Any], **given: Any) -> Any:
    return plugins.construct(plugins.locate(group, node), plugins.arguments_of(node), group=group, given=given)


def _build_task(node: Mapping[str, Any], *, key: str) -> Any:
    if not is_mixture(node):
        return plugins.construct(
            plugins.locate("task", node, key=key), plugins.arguments_of(node), group="task", key=key
        )
    sources = []
    for position, entry in enumerate(node["sources"]):
        own = {name: value for name, value in entry.items() if name != "weight"}
        sources.append((_build_task(own, key=f"{key}.sources[{position}]"), entry.get("weight", 1.0)))
    arguments = {name: value for name, value in plugins.arguments_of(node).items() if name != "sources"}
    target = plugins.locate("task", node, key=key)
    return plugins.construct(target, arguments, group="task", key=key, given={"sources": sources})


def _schedule(meta: MetaConfig) -> Callable[[int], float] | None:
    if meta.schedule is MetaSchedule.constant:
        return None
    return partial(_cosine if meta.schedule is MetaSchedule.cosine else _linear, num_steps=meta.num_steps)


def _cosine(step: int, *, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / max(num_steps, 1)))


def _linear(step: int, *, num_steps: int) -> float:
    return 1 - step / max(num_steps, 1)


def _measured_tasks(config: ExecutionConfig) -> tuple[str, ...]:
    if not config.measure:
        return ()
    # A size of chunks, like a name, is a choice that was made already.
    tasks = Tasks.vmap if config.tasks is Tasks.auto and config.chunk_size is not None else config.tasks
    return MEASURABLE if tasks is Tasks.auto else (tasks.value,)


def _refuse_two_choices(config: ExecutionConfig) -> None:
    at = config.switch_at
    taken = {
        "switch_at": at, "compile": config.compile or None, "cuda_graphs": config.cuda_graphs or None,
        "convolutions": None if config.convolutions is Convolutions.grouped else config.convolutions.value,
    }  # fmt: skip
    given = next((f"execution.{name}={str(value).lower()}" for name, value in taken.items() if value is not None), None)
    if config.measure and given is not None:
        raise UsageError(f"execution.measure=true finds out itself what to compile: leave {given} out.")
    if at is not None and config.compile is False:
        raise UsageError(
            f"execution.switch_at={at} is the step from which meta-gradients are compiled, but execution.compile is "
            "false. Set execution.compile=true, or leave switch_at out."
        )


def _refuse_what_makes_no_sense(config: TrainConfig) -> None:
    _refuse_two_choices(config.execution)
    wanted, found = config.algorithm.get(_REQUIRES), config.metagrad.get("_target_")
    if wanted is not None and found != wanted:
        raise UsageError(
            f"The algorithm is defined by the meta-gradient {wanted}, but metagrad is {found}. Leave metagrad out, or "
            "choose algorithm=maml."
        )
