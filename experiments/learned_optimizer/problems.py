"""Training small networks on real drawings as a distribution of problems, and an optimizer that is trained on it."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn import Aux, Problem, losses, optim, random, tree
from metalearn.execution import Vmap
from metalearn.metagrad import Strategy, Unrolled
from metalearn.optim.learned import CoordinateLSTM, CoordinateMLP, LearnedOptimizer
from metalearn.tasks import Omniglot
from metalearn.types import Tensors

WAYS, SHOTS, SIZE, BATCH = 20, 15, 14, 32
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}
FIRST_TO_TRAIN = 1_000_000  # the number of the first run to meta-train on; the first ones are to tune by, or to test on


class Run(NamedTuple):
    """What a training run is of: drawings and labels to train on and others to test on, the start, the minibatches."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    params: Tensors
    rows: Tensor


@dataclass(frozen=True)
class Family:
    """A distribution of training runs: 20 random characters of a split, a random start, random minibatches.

    Attributes:
        split: whose characters, of Omniglot's; no character is in two.
        num_steps: training steps.
        width: hidden units, in each of `depth` layers.
        depth: hidden layers.
        activation: of the hidden units.
    """

    split: str = "train"
    num_steps: int = 100
    width: int = 20
    depth: int = 1
    activation: str = "tanh"

    def draw(self, first: int, count: int) -> Run:
        """The runs from number `first` on, `[run, …]`; those of a number are the same whenever they are drawn."""
        indices = torch.arange(first, first + count)
        (x, y), (other, labels), _ = source().episodes(self.split, indices, seed=0)
        mean, keys = x.mean(1, keepdim=True), random.key(indices)
        rows = random.integers(random.fold_in(keys, 0), x.shape[1], (self.num_steps, BATCH))
        params: Tensors = {}
        sizes = SIZE * SIZE, *[self.width] * self.depth, WAYS
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            for name, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
                draws = random.uniform(random.fold_in(keys, 1 + len(params)), shape)
                params[f"{layer}.{name}"] = (2 * draws - 1) / math.sqrt(fan_in)
        return Run(((x - mean).flatten(2), y), ((other - mean).flatten(2), labels), params, rows)

    def loss(self, params: Tensors, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensors]:
        """Cross-entropy of the network on some drawings, with the accuracy."""
        x, last = data[0], self.depth
        for layer in range(last + 1):
            x = x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
            x = ACTIVATIONS[self.activation](x) if layer < last else x
        return losses.cross_entropy(x, data[1])

    def problem(self, optimizer: Callable[[Tensors], optim.GradientTransformation], *, every: int = 1) -> Problem:
        """Judged by the loss on all training drawings after each `every` steps, its mean over the run."""

        def inner_loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: tuple[Tensor, Tensor], step: int):
            return self.loss(params, batch)[0], Aux(buffers)

        def outer_loss(meta: Tensors, params: Tensors, buffers: Tensors, run: Run, step: int):
            if step % every:
                return torch.zeros(()), Aux(buffers)
            metrics = {"test accuracy": self.loss(params, run.test)[1]["accuracy"]} if every == 1 else {}
            return self.loss(params, run.train)[0], Aux(buffers, metrics)

        weights = [float(step % every == 0) for step in range(1, self.num_steps + 1)]
        return Problem(
            init=lambda meta, run: (run.params, {}),
            inner_loss=inner_loss,
            outer_loss=outer_loss,
            optimizer=optimizer,
            batch=lambda run, step: (run.train[0][run.rows[step]], run.train[1][run.rows[step]]),
            num_inner_steps=self.num_steps,
            outer_weights=[weight / sum(weights) for weight in weights],
        )

    def curves(
        self, optimizer: Callable[[Tensors], optim.GradientTransformation], meta: Tensors, runs: Run
    ) -> tuple[Tensor, Tensor]:
        """The training loss after 0, 1, … steps, `[run, step]`, and the test accuracy at the end, `[run]`."""
        table = Vmap(chunk_size=64).evaluate(self.problem(optimizer), meta, runs, num_inner_steps=self.num_steps)
        return table["loss"], table["test accuracy"][:, -1]


class Recipe(NamedTuple):
    """How a learned optimizer is trained.

    Attributes:
        learned: which one.
        num_steps: training steps of the runs that it is trained on.
        batch: runs a meta step.
        lr: the meta-learning rate, that of Adam.
        strategy: how the meta-gradient flows.
    """

    learned: LearnedOptimizer
    num_steps: int = 100
    batch: int = 8
    lr: float = 4e-3
    strategy: Strategy = Unrolled()


RECIPES = {
    "mlp": Recipe(CoordinateMLP(0.05, 32, decays=(0.3, 0.7, 0.9, 0.97), square_decay=0.95)),
    "lstm": Recipe(CoordinateLSTM(), num_steps=50, batch=4, lr=3e-3),
}


class Checkpoint(NamedTuple):
    """An optimizer during its training: its meta-parameters, its loss on the validation runs, the process time."""

    meta: Tensors
    validation: float
    seconds: float


def meta_train(
    recipe: Recipe, *, num_meta_steps: int, every: int, seed: int, num_validation: int = 32
) -> Iterator[Checkpoint]:
    """Adam on the meta-parameters, on new runs at each meta step; a checkpoint `every` so many of them.

    Its rate warms up for a tenth of the time, and falls to zero along a cosine. The gradient of a run is clipped.
    """
    begun, learned = time.process_time(), recipe.learned
    family, judged = Family(num_steps=recipe.num_steps), Family("val")
    gradient = Vmap(task_clip=1.0).value_and_grad(recipe.strategy, family.problem(learned, every=2))
    validation = judged.draw(0, num_validation)
    meta = learned.init(tree.entry(validation.params, 0))
    adam = optim.adam(lambda count: recipe.lr * _share(int(count) / num_meta_steps), b2=0.99)
    state, first = adam.init(meta), FIRST_TO_TRAIN * (1 + seed)
    for step in range(num_meta_steps):
        outcome = gradient(meta, family.draw(first + step * recipe.batch, recipe.batch))
        meta, _, state = adam.step(outcome.grads, state, meta)
        if (step + 1) % every == 0:
            loss = float(judged.curves(learned, meta, validation)[0][:, 1:].mean())
            yield Checkpoint(meta, loss, time.process_time() - begun)


def _share(done: float) -> float:
    return min((done + 0.01) / 0.1, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


@cache
def source() -> Omniglot:
    return Omniglot(ways=WAYS, shots=SHOTS, query_shots=20 - SHOTS, image_size=SIZE, rotations=False)
