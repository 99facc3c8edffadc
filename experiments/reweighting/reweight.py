"""Weights for examples under label noise, learned online or through the whole training run, by one `Problem`."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import Aux, FunctionalModel, Problem, functionalize, inner, losses, optim, random, tree
from metalearn.metagrad import Stepwise, Unrolled
from metalearn.tasks import Omniglot
from metalearn.types import Tensors

WAYS, SHOTS, SIZE, HIDDEN, BATCH, NUM_STEPS = 30, 14, 14, 64, 50, 100


class Data(NamedTuple):
    """Drawings and labels, of which 40% are wrong in `noisy`; where a training starts from, and each step's rows."""

    noisy: tuple[Tensor, Tensor]
    clean: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    flipped: Tensor
    start: Tensors
    rows: Tensor


def data_of(seed: int, model: FunctionalModel, *, num_clean: int, num_steps: int = NUM_STEPS) -> Data:
    """30 of Omniglot's characters; of each, 6 drawings to test on, `num_clean` clean ones, and the rest noisy."""
    source = Omniglot(ways=WAYS, shots=SHOTS, query_shots=20 - SHOTS, image_size=SIZE, rotations=False)
    dtype = next(iter(model.params.values())).dtype
    (x, y), test, key = tree.cast(tree.map_tensors(lambda leaf: leaf[0], source.episodes("train", [seed])), dtype)
    is_clean = torch.arange(len(y)) % SHOTS < num_clean  # the drawings lie class by class
    mean, right = x.mean(0), y[~is_clean]
    flipped = random.bernoulli(random.fold_in(key, 0), 0.4, right.shape)
    wrong = (right + 1 + random.integers(random.fold_in(key, 1), WAYS - 1, right.shape)) % WAYS
    steps = random.fold_in(random.fold_in(key, 2), torch.arange(num_steps))
    rows = random.choose(steps, len(right), BATCH)  # none twice in a batch
    noisy = x[~is_clean] - mean, torch.where(flipped, wrong, right)
    return Data(noisy, (x[is_clean] - mean, y[is_clean]), (test[0] - mean, test[1]), flipped, model.params, rows)


def model_of(seed: int, dtype: torch.dtype = torch.float32) -> FunctionalModel:
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(SIZE * SIZE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WAYS)
    return functionalize(nn.Sequential(*layers).to(dtype))


def reweighting(model: FunctionalModel, num_steps: int, *, judged_on: str = "clean", momentum: float = 0.9) -> Problem:
    """Learned: a weight for each noisy example, over `num_steps` steps of training, judged by the clean examples."""

    def loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: Any, step: int) -> tuple[Tensor, Aux]:
        x, y, rows = batch
        each = F.cross_entropy(model(params, buffers, x)[0], y, reduction="none")
        return (meta["weight"][rows] * each).mean(), Aux(buffers)

    def judge(meta: Tensors, params: Tensors, buffers: Tensors, data: Data, step: int) -> tuple[Tensor, Aux]:
        x, y = getattr(data, judged_on)
        value, metrics = losses.cross_entropy(model(params, buffers, x)[0], y)
        return value, Aux(buffers, metrics)

    def batch(data: Data, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = data.rows[step]
        return data.noisy[0][rows], data.noisy[1][rows], rows

    return Problem(
        init=lambda meta, data: (data.start, model.buffers),
        inner_loss=loss,
        optimizer=lambda meta: optim.sgd(0.1, momentum=momentum),
        batch=batch,
        outer_loss=judge,
        num_inner_steps=num_steps,
    )


def online(model: FunctionalModel, data: Data) -> tuple[float, Tensor]:
    """Ren et al. 2018, Algorithm 1: before each step, the weights that one step of gradient descent asks for.

    Returns the accuracy on the test part, and each example's mean weight over the steps that it was drawn for.
    """
    gradient = Unrolled().value_and_grad(reweighting(model, 1, momentum=0.0))
    problem = reweighting(model, len(data.rows), judged_on="test")
    zeros = torch.zeros(data.flipped.shape)
    state, total, drawn = inner.start(problem, {}, data), zeros.clone(), zeros.clone()
    for step, rows in enumerate(data.rows):
        look_ahead = data._replace(start=state.params, rows=rows[None])
        wanted = (-gradient({"weight": zeros}, look_ahead).grads["weight"]).clamp_min(0)
        weight = wanted / wanted[rows].mean().clamp_min(1e-12)
        state = tree.detach(inner.problem_step(problem, {"weight": weight}, data, state, step))
        total, drawn = total + weight, drawn.index_add(0, rows, torch.ones(len(rows)))
    aux = inner.outer_loss_of(problem, {}, data, state, len(data.rows))[1]
    return float(aux.metrics["accuracy"]), total / drawn.clamp_min(1)


def throughout(model: FunctionalModel, data: Data, num_meta_steps: int = 10) -> tuple[float, Tensor]:
    """Data hyper-cleaning (Franceschi et al. 2017): weights in [0, 1], learned through the whole training run."""
    gradient = Stepwise().value_and_grad(reweighting(model, len(data.rows)))
    adam, meta = optim.adam(0.1), {"weight": torch.ones(data.flipped.shape)}
    state = adam.init(meta)
    for _ in range(num_meta_steps):
        moved, _, state = adam.step(gradient(meta, data).grads, state, meta)
        meta = {"weight": moved["weight"].clamp(0, 1)}
    return trained(model, data, meta["weight"]), meta["weight"]


def trained(model: FunctionalModel, data: Data, weight: Tensor) -> float:
    """The accuracy on the test part after a training run with given weights."""
    with torch.no_grad():
        _, aux = inner.outer_value(reweighting(model, len(data.rows), judged_on="test"), {"weight": weight}, data)
    return float(aux.metrics["accuracy"])


def trained_on(model: FunctionalModel, data: Data, examples: tuple[Tensor, Tensor]) -> float:
    """The same on other examples, each with the weight 1."""
    count = len(examples[1])
    rows = random.choose(random.key(torch.arange(len(data.rows))), count, min(BATCH, count))
    return trained(model, data._replace(noisy=examples, rows=rows), torch.ones(len(examples[1])))
