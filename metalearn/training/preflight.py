"""Before the first step: one look at everything of a user's own that a run will call, while nothing is lost yet.

Two episodes of every split that will be needed, the protocol of both sources, and one task adapted and judged in
training and in evaluation mode. A test split that fails, a model whose output has the wrong shape, or a loss that
counts padding, is so found now and not after hours of training.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from metalearn import losses, tree
from metalearn.errors import UsageError
from metalearn.execution import Loop
from metalearn.training.evaluation import check_split
from metalearn.training.guard import GuardedSource, blamed
from metalearn.training.laboratory import Laboratory
from metalearn.training.loss_check import check_loss, check_signature
from metalearn.training.padding_check import check_padding
from metalearn.training.task_card import TaskCard
from metalearn.types import Episodes, Present, Tensors

_NUM_TASKS = 2
_NUM_TASKS_PADDED = 8  # some of them are of another size than the largest


def check_plugins(laboratory: Laboratory) -> None:
    """Tries the task sources, the model and the algorithm of a run.

    Raises:
        UsageError: a split is not there, or something returns what it must not; a `PluginError` for what it raised.
    """
    settings = laboratory.experiment.settings
    check_split(laboratory.train_source, "train", wanted_for="meta-training")
    check_split(laboratory.test_source, "test", wanted_for="the final test")
    if settings.validates:
        check_split(laboratory.source, "val", wanted_for="validation (eval.val_episodes=0 for none)")
        _check_signature(laboratory, _drawn(laboratory.source, "val", settings.seed))
    for source in (laboratory.source, laboratory.test_source):
        source.protocol()
        TaskCard.of(source.source)
    trained = _drawn(laboratory.train_source, "train", settings.seed)
    tested = _drawn(laboratory.test_source, "test", settings.seed)
    meta, buffers = laboratory.initial_meta(), laboratory.initial_buffers()
    laboratory.experiment.execution.check(laboratory.train_problem(buffers))
    num_outputs, num_steps = laboratory.source.num_outputs, settings.num_inner_steps_eval
    for problem_of, episodes, width in (
        (laboratory.train_problem, trained, laboratory.train_source.num_outputs),
        (laboratory.eval_problem, tested, num_outputs),
    ):
        _check_signature(laboratory, episodes)
        problem = _with_checked_loss(laboratory, problem_of, buffers, num_outputs=width)
        # Training may take no inner step where the test does.
        steps = problem.num_inner_steps if problem_of == laboratory.train_problem else num_steps
        _try(problem, laboratory, meta, episodes, num_inner_steps=min(1, num_steps, steps))
    check_padded(laboratory, laboratory.train_source, "train")
    if settings.validates:
        check_padded(laboratory, laboratory.source, "val")
    check_padded(laboratory, laboratory.test_source, "test")


def check_padded(laboratory: Laboratory, source: GuardedSource, split: str) -> None:
    """Whether the model and the algorithm's loss are exact on padded episodes, where those of `split` are padded.

    Raises:
        UsageError: they are not; a `PluginError` for what a user's own code raised.
    """
    seed, model = laboratory.experiment.settings.seed, laboratory.train_model
    episodes = _drawn(source, split, seed, num_tasks=_NUM_TASKS_PADDED)
    _check_signature(laboratory, episodes)
    if isinstance(laboratory.experiment.execution, Loop):
        return  # it cuts the padding off: no model or loss ever sees it
    check_padding(episodes, model, seed=seed)
    loss = getattr(laboratory.experiment.algorithm, "loss", None)
    # Episodes of an algorithm's own making may have other classes than the model has outputs.
    if callable(loss) and source.num_outputs == laboratory.source.num_outputs:
        check_loss(loss, model, episodes, seed=seed)


def _check_signature(laboratory: Laboratory, episodes: Episodes) -> None:
    loss = getattr(laboratory.experiment.algorithm, "loss", None)
    if callable(loss):
        check_signature(loss, episodes)


def _drawn(source: GuardedSource, split: str, seed: int, *, num_tasks: int = _NUM_TASKS) -> Episodes:
    return source.episodes(split, range(num_tasks), seed=seed)


def _try(problem: Any, laboratory: Laboratory, meta: Tensors, episodes: Episodes, *, num_inner_steps: int) -> None:
    execution = laboratory.experiment.execution
    one = tree.map_tensors(lambda leaf: leaf[:1], episodes)
    with blamed():
        execution.evaluate(problem, meta, one, num_inner_steps=num_inner_steps)


def _with_checked_loss(
    laboratory: Laboratory, problem_of: Callable[[Tensors], Any], buffers: Tensors, *, num_outputs: int
) -> Any:
    """The problem with a look at what the loss is given, where the algorithm has one of our losses."""
    algorithm = laboratory.experiment.algorithm
    known = is_dataclass(algorithm) and any(entry.name == "loss" for entry in fields(algorithm))
    if not known or getattr(algorithm, "loss", None) not in (losses.cross_entropy, losses.mean_squared_error):
        return problem_of(buffers)
    checked: Any = replace(algorithm, loss=_CheckedLoss(laboratory, algorithm.loss, num_outputs))
    looking = replace(laboratory, experiment=replace(laboratory.experiment, algorithm=checked))
    return getattr(looking, problem_of.__name__)(buffers)


class _CheckedLoss:
    """A loss that first looks at the shape of the model's outputs."""

    def __init__(self, laboratory: Laboratory, loss: Any, num_outputs: int) -> None:
        self.model = type(laboratory.experiment.module).__name__
        self.num_outputs = num_outputs
        self.loss = loss

    def __call__(self, outputs: Any, targets: Tensor, present: Present | None = None) -> Any:
        expected = [targets.shape[0], self.num_outputs]
        if not isinstance(outputs, Tensor):
            raise UsageError(
                f"{self.model}.forward(…) returned a {type(outputs).__name__}, expected a tensor {expected} (example, "
                "num_outputs). Return the outputs alone."
            )
        if list(outputs.shape) != expected:
            raise UsageError(
                f"{self.model}.forward(…) returned a tensor {list(outputs.shape)}, expected {expected} (example, "
                "num_outputs). Make its last layer as wide as the `num_outputs` that its constructor is given."
            )
        return self.loss(outputs, targets) if present is None else self.loss(outputs, targets, present)
