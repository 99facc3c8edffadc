"""An experiment with its parts on the device: what training and evaluation both begin with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel, functionalize
from metalearn.training.experiment import Experiment, Source, resolve_device
from metalearn.types import Tensors


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """The parts of an experiment, on the device.

    Attributes:
        experiment: where they come from.
        device: where they are.
        train_model: the model in training mode.
        eval_model: the model in evaluation mode.
        source: of training episodes.
        test_source: of validation and test episodes.
    """

    experiment: Experiment
    device: torch.device
    train_model: FunctionalModel
    eval_model: FunctionalModel
    source: Source
    test_source: Source

    def initial_meta(self) -> Tensors:
        """The untrained meta-parameters, in tensors of their own."""
        meta = self.experiment.algorithm.init(self.train_model, self.source)
        if not meta:
            raise UsageError(f"{type(self.experiment.algorithm).__name__} found nothing to learn in the model.")
        return {name: value.detach().to(self.device, copy=True) for name, value in meta.items()}

    def initial_buffers(self) -> Tensors:
        """The model's buffers before any step."""
        return dict(self.train_model.buffers)

    def train_problem(self, buffers: Tensors) -> Any:
        """The algorithm's problem for meta-training."""
        return self.experiment.algorithm.problem(self.train_model.with_buffers(buffers))

    def eval_problem(self, buffers: Tensors) -> Any:
        """The algorithm's problem for validation and test: the model in evaluation mode, also in the inner loop."""
        return self.experiment.algorithm.problem(self.eval_model.with_buffers(buffers))


def prepare_laboratory(experiment: Experiment) -> Laboratory:
    """Puts the parts of `experiment` on its device; the experiment's own objects stay as they are.

    Raises:
        UsageError: the device is not there.
    """
    device = resolve_device(experiment.settings.device)
    model = functionalize(experiment.module, seed=experiment.settings.seed).to(device)
    source = experiment.source.to(device)
    test_source = source if experiment.test_source is None else experiment.test_source.to(device)
    return Laboratory(
        experiment=experiment,
        device=device,
        train_model=model.train(),
        eval_model=model.eval(),
        source=source,
        test_source=test_source,
    )


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
