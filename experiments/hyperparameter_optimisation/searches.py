"""Hyper-parameters learned by gradients through a whole training run: two problems, four strategies, one descent."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn import Aux, FunctionalModel, Problem, functionalize, losses, optim, random, tree
from metalearn.metagrad import ForwardMode, Implicit, Stepwise, Strategy, Unrolled
from metalearn.tasks import Omniglot
from metalearn.types import Tensors

WAYS, SHOTS, SIZE, HIDDEN, STAGES, BATCH = 20, 8, 14, 32, 4, 32
EXACT: dict[str, Strategy] = {"Unrolled": Unrolled(), "Stepwise": Stepwise(), "ForwardMode": ForwardMode()}
# Damped, as the short run leaves directions that are almost flat; a residual of up to 0.1 is put up with, and reported.
IMPLICIT = Implicit(num_iterations=30, damping=0.01, tolerance=0.1)


class Data(NamedTuple):
    """Drawings and labels of three parts that share no drawing, and the rows of each step's minibatch."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    rows: Tensor


def data_of(seed: int, num_steps: int, dtype: torch.dtype = torch.float32) -> Data:
    """20 of Omniglot's characters; of each, 8 drawings to train on, 6 to validate by and 6 to test on."""
    source = Omniglot(ways=WAYS, shots=SHOTS, query_shots=20 - SHOTS, image_size=SIZE, rotations=False)
    (x, y), (other_x, other_y), _ = tree.map_tensors(lambda leaf: leaf[0], source.episodes("train", [seed]))
    half = torch.arange(len(other_y)) % 2 == 0
    mean = x.mean(0)
    rows = random.integers(random.key(seed), len(y), (num_steps, BATCH))
    parts = ((x, y), (other_x[half], other_y[half]), (other_x[~half], other_y[~half]))
    return Data(*(((each - mean).to(dtype), labels) for each, labels in parts), rows)


def model_of(seed: int, dtype: torch.dtype = torch.float32) -> FunctionalModel:
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(SIZE * SIZE, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WAYS)
    return functionalize(nn.Sequential(*layers).to(dtype))


def judge(model: FunctionalModel, part: str) -> Callable[..., tuple[Tensor, Aux]]:
    """The loss of the trained model on a part of the data."""

    def loss(meta: Tensors, params: Tensors, buffers: Tensors, data: Data, step: int) -> tuple[Tensor, Aux]:
        x, y = getattr(data, part)
        value, metrics = losses.cross_entropy(model(params, buffers, x)[0], y)
        return value, Aux(buffers, metrics)

    return loss


def schedule(model: FunctionalModel, num_steps: int) -> Problem:
    """Learned: a rate and a weight decay for each quarter of the run."""

    def loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: Any, step: int) -> tuple[Tensor, Aux]:
        return losses.cross_entropy(model(params, buffers, batch[0])[0], batch[1])[0], Aux(buffers)

    def optimizer(meta: Tensors) -> optim.GradientTransformation:
        rates, decays = meta["log_rate"].exp(), meta["log_decay"].exp()
        stage = lambda count: count * STAGES // num_steps  # noqa: E731
        return optim.sgd(lambda count: rates[stage(count)], momentum=0.9, weight_decay=lambda c: decays[stage(c)])

    return Problem(
        init=lambda meta, data: (model.params, model.buffers),
        inner_loss=loss,
        optimizer=optimizer,
        batch=lambda data, step: tuple(each[data.rows[step]] for each in data.train),
        outer_loss=judge(model, "validation"),
        num_inner_steps=num_steps,
    )


def penalties(model: FunctionalModel, num_steps: int) -> Problem:
    """Learned: an L2 penalty for the weights and for the biases of each layer.

    Full batches, for Implicit: it differentiates the minimum of the last step's loss, which must be that of all steps.
    """

    def loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: Any, step: int) -> tuple[Tensor, Aux]:
        fit = losses.cross_entropy(model(params, buffers, batch[0])[0], batch[1])[0]
        squares = torch.stack([value.square().sum() for value in params.values()])
        return fit + 0.5 * (meta["log_penalty"].exp() * squares).sum(), Aux(buffers)

    return Problem(
        init=lambda meta, data: (model.params, model.buffers),
        inner_loss=loss,
        optimizer=lambda meta: optim.sgd(0.3, momentum=0.9, nesterov=True),
        batch=lambda data, step: data.train,
        outer_loss=judge(model, "validation"),
        num_inner_steps=num_steps,
    )


class Search(NamedTuple):
    """What is searched: a problem, its number of steps, for each entry of meta its range and size, and by what."""

    problem: Callable[[FunctionalModel, int], Problem]
    num_steps: int
    ranges: Mapping[str, tuple[float, float, int]]
    strategies: Mapping[str, Strategy]

    def draw(self, generator: torch.Generator | None = None, *, shared: bool = False) -> Tensors:
        """Logarithms drawn uniformly, one for all of an entry where it is `shared`; without a generator, the middle."""
        meta = {}
        for name, (low, high, size) in self.ranges.items():
            count = 1 if shared else size
            at = torch.full((count,), 0.5) if generator is None else torch.rand(count, generator=generator)
            meta[name] = (math.log(low) + at * math.log(high / low)).expand(size).clone()
        return meta


SEARCHES = {
    "schedule": Search(schedule, 60, {"log_rate": (1e-2, 1.0, STAGES), "log_decay": (1e-4, 1e-1, STAGES)}, EXACT),
    "penalties": Search(penalties, 150, {"log_penalty": (1e-4, 1e-1, 4)}, {**EXACT, "Implicit": IMPLICIT}),
}


class Trial(NamedTuple):
    """A value of meta that was tried, its loss on the validation part, and the process time that it took."""

    meta: Tensors
    loss: float
    seconds: float


def descend(search: Search, strategy: Strategy, problem: Problem, data: Data, num_trials: int) -> list[Trial]:
    """Adam from the middle of the ranges."""
    gradient, adam, meta = strategy.value_and_grad(problem), optim.adam(0.3), search.draw()
    state, trials = adam.init(meta), []
    for _ in range(num_trials):
        begun = time.process_time()
        outcome = gradient(meta, data)
        trials.append(Trial(meta, float(outcome.value), time.process_time() - begun))
        meta, _, state = adam.step(outcome.grads, state, meta)
    return trials
