"""An experiment with its parts on the device: what training and evaluation both begin with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from metalearn import tree
from metalearn.algorithms import Algorithm
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel, functionalize
from metalearn.normalisation import policy_of
from metalearn.training.experiment import Experiment, resolve_device
from metalearn.training.guard import GuardedSource, blamed, guard
from metalearn.types import Tensors


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """The parts of an experiment, on the device.

    Attributes:
        experiment: where they come from.
        device: where they are.
        train_model: the model in training mode.
        eval_model: the model in evaluation mode.
        source: of validation episodes, and of training ones where the algorithm asks for no other; its failures are
            told as its own.
        train_source: of the episodes of meta-training, likewise.
        test_source: of test episodes, likewise.
    """

    experiment: Experiment
    device: torch.device
    train_model: FunctionalModel
    eval_model: FunctionalModel
    source: GuardedSource
    train_source: GuardedSource
    test_source: GuardedSource

    def initial_meta(self) -> Tensors:
        """The untrained meta-parameters, in tensors of their own."""
        with blamed():
            meta = self.experiment.algorithm.init(self.train_model, self.source)
        if not meta:
            raise UsageError(f"{type(self.experiment.algorithm).__name__} found nothing to learn in the model.")
        return {name: value.detach().to(self.device, copy=True) for name, value in meta.items()}

    def initial_buffers(self) -> Tensors:
        """The model's buffers before any step, as the normalisation policy has them."""
        algorithm = self.experiment.algorithm
        policy = policy_of(getattr(algorithm, "normalisation", "module"))
        return policy.initial_buffers(self.train_model, getattr(algorithm, "num_inner_steps", 0))

    def train_problem(self, buffers: Tensors, meta_step: int = 0) -> Any:
        """The algorithm's problem for a meta step, counted from 0."""
        algorithm = self.experiment.algorithm_at(meta_step)
        return algorithm.problem(self.train_model.with_buffers(self.held(buffers, meta_step)))

    def held(self, buffers: Tensors, meta_step: int) -> Tensors:
        """What the problem of a meta step holds: the model's buffers, and what the algorithm changes at every step."""
        changing = self.experiment.held_at(meta_step)
        return {**buffers, **tree.to(changing, self.device)} if changing else buffers

    def eval_problem(self, buffers: Tensors) -> Any:
        """The algorithm's problem for validation and test: the model in evaluation mode, also in the inner loop."""
        algorithm = self.experiment.algorithm
        problem_of = getattr(algorithm, "test_problem", algorithm.problem)
        return problem_of(self.eval_model.with_buffers(buffers))


def prepare_laboratory(experiment: Experiment) -> Laboratory:
    """Puts the parts of `experiment` on its device; the experiment's own objects stay as they are.

    Raises:
        UsageError: the device is not there, a source lacks what a source needs, or the test's source is of another
            kind than the training's.
    """
    device = resolve_device(experiment.settings.device)
    if isinstance(experiment.algorithm, Algorithm):
        experiment.algorithm.check_strategy(experiment.strategy)
    model = functionalize(experiment.module, seed=experiment.settings.seed).to(device)
    dtype = next((value.dtype for value in model.params.values() if value.is_floating_point()), torch.float32)
    source = test_source = guard(experiment.source, dtype=dtype).to(device)
    if experiment.test_source is not None:
        test_source = guard(experiment.test_source, dtype=dtype).to(device)
        check_same_form(source, test_source, algorithm=experiment.algorithm)
    return Laboratory(
        experiment=experiment,
        device=device,
        train_model=model.train(),
        eval_model=model.eval(),
        source=source,
        train_source=_training_source(experiment.algorithm, source, dtype),
        test_source=test_source,
    )


def _training_source(algorithm: Any, source: GuardedSource, dtype: torch.dtype) -> GuardedSource:
    other = getattr(algorithm, "training_source", lambda given: given)(source.source)
    return source if other is source.source else guard(other, dtype=dtype)


def check_same_form(source: Any, test_source: Any, *, algorithm: Any = None) -> None:
    """Refuses a source for the test that a model for `source` can not be tested on.

    Fewer classes are fine for an algorithm that has no head made for them (`Algorithm.serves_fewer_classes`).

    Raises:
        UsageError: another kind of target, input shape or number of outputs.
    """
    for name, fix in _FORM.items():
        wanted, found = getattr(source, name), getattr(test_source, name)
        if isinstance(wanted, Sequence) and not isinstance(wanted, str):
            wanted, found = tuple(wanted), tuple(found)
        if name == "num_outputs" and source.kind == "classification" and found < wanted:
            found = wanted if getattr(algorithm, "serves_fewer_classes", False) else found
        if found != wanted:
            fix = fix if name != "input_shape" or len(wanted) == len(found) == 3 else _NO_PICTURES
            if name == "num_outputs" and getattr(algorithm, "serves_fewer_classes", False):
                fix = "Give the test at most as many, for a classification by ways={wanted}."
            raise UsageError(
                f"test_task ({test_source.name}) has {name} {found}, the training task ({source.name}) {wanted}: "
                f"the model fits one of them. {fix.format(wanted=wanted, size=_last(wanted))}"
            )


_FORM = {
    "kind": "Choose a test_task of that kind.",
    "input_shape": "Give both the same, for images by image_size={size} and the same colour (color=grey or rgb).",
    "num_outputs": "Give both the same, for a classification by ways={wanted}.",
}

_NO_PICTURES = "Choose a test_task of the same inputs."


def _last(wanted: Any) -> Any:
    return wanted[-1] if isinstance(wanted, tuple) and wanted else wanted


@contextmanager
def repeatable() -> Iterator[None]:
    """CuDNN chooses its algorithms by a rule instead of by timing, and only those that repeat bit for bit.

    A global switch of torch; it is put back when the block is left.
    """
    cudnn = torch.backends.cudnn
    previous = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = previous
