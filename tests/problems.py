"""Small float64 problems that the certification tables share."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from metalearn import Aux, Episodes, Problem, algorithms, functionalize, losses, optim, random, tree
from metalearn.tasks import padding

D = torch.float64


def images(num_tasks: int = 3, *, examples: int = 6, classes: int = 3) -> Episodes:
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randn(num_tasks, examples, 1, 9, 9, generator=generator, dtype=D)
        return x, torch.arange(examples).remainder(classes).expand(num_tasks, examples).clone()

    return Episodes(draw(), draw(), random.key(torch.arange(num_tasks)))


def values(num_tasks: int = 3, *, examples: int = 6) -> Episodes:
    generator = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(num_tasks, examples, width, generator=generator, dtype=D) for width in (3, 1))

    return Episodes(draw(), draw(), random.key(torch.arange(num_tasks)))


def one(episodes: Episodes, index: int = 0) -> Episodes:
    return tree.map_tensors(lambda leaf: leaf[index], episodes)


def _convolutional(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, bias=False), *middle, nn.Flatten(), nn.LazyLinear(3))


LAYERS = {
    "plain, tanh": lambda: _convolutional(nn.Tanh()),
    "relu and max-pool": lambda: _convolutional(nn.ReLU(), nn.MaxPool2d(2)),
    "batch norm, current statistics": lambda: _convolutional(nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh()),
    "batch norm, running statistics": lambda: _convolutional(nn.BatchNorm2d(4), nn.Tanh()),
    "batch norm, evaluation mode": lambda: _convolutional(nn.BatchNorm2d(4), nn.Tanh()).eval(),
    "layer norm": lambda: _convolutional(nn.LayerNorm((4, 4, 4)), nn.Tanh()),
    "group norm": lambda: _convolutional(nn.GroupNorm(2, 4), nn.Tanh()),
    "instance norm": lambda: _convolutional(nn.InstanceNorm2d(4, affine=True), nn.Tanh()),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3, stride=2)), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
    ),
    "attention": lambda: _convolutional(
        nn.Tanh(), nn.Flatten(2), nn.TransformerEncoderLayer(16, 2, 8, dropout=0.0, activation="gelu", batch_first=True)
    ),
    "dropout": lambda: _convolutional(nn.Tanh(), nn.Dropout(0.4), nn.Dropout2d(0.3)),
}


def model_of(layer: str):
    torch.manual_seed(3)
    module = LAYERS[layer]().double()
    training = module.training
    module.eval()(images(1).support[0][0])  # gives the lazy layer its shape
    return functionalize(module.train(training))


OPTIMIZERS = {
    "sgd": lambda meta: optim.sgd(meta["lr"]),
    "sgd, momentum learned": lambda meta: optim.sgd(meta["lr"], momentum=meta["momentum"]),
    "sgd, nesterov and decay": lambda meta: optim.sgd(
        meta["lr"], momentum=0.9, nesterov=True, weight_decay=meta["decay"]
    ),
    "sgd, a rate a parameter": lambda meta: optim.sgd(tree.select(meta, "lr.")),
    "sgd, a rate a step": lambda meta: optim.sgd(lambda count: meta["rates"][count]),
    "adam": lambda meta: optim.adam(meta["lr"] * 0.1, eps=1e-3),
    "adam, everything learned": lambda meta: optim.adam(
        meta["lr"] * 0.1, b1=meta["b1"], b2=meta["b2"], eps=meta["eps"], weight_decay=meta["decay"]
    ),
}

HYPERS = {"lr": 0.3, "momentum": 0.8, "decay": 0.05, "b1": 0.7, "b2": 0.9, "eps": 1e-2}


def problem_of(
    model, optimizer: str, *, num_inner_steps: int = 2, loss=losses.cross_entropy
) -> tuple[Problem, dict[str, Tensor]]:
    """MAML's problem with every hyper-parameter in `meta`, and that meta; those the optimizer ignores get a zero."""
    maml = algorithms.MAML(loss=loss, num_inner_steps=num_inner_steps)
    base = maml.problem(model)
    meta = {**maml.init(model), **{name: torch.tensor(value, dtype=D) for name, value in HYPERS.items()}}
    meta |= {f"lr.{name}": torch.full_like(value, 0.2) for name, value in model.params.items()}
    meta["rates"] = torch.linspace(0.2, 0.4, max(num_inner_steps, 1), dtype=D)
    problem = Problem(
        init=base.init, inner_loss=base.inner_loss, outer_loss=base.outer_loss, num_inner_steps=num_inner_steps,
        optimizer=OPTIMIZERS[optimizer],
    )  # fmt: skip
    return problem, meta


def given(problem: Problem, constants: dict[str, Tensor]) -> Problem:
    """The problem with the rest of its meta-parameters held fixed."""
    return replace(
        problem,
        init=lambda meta, episode: problem.init({**constants, **meta}, episode),
        inner_loss=lambda meta, *rest: problem.inner_loss({**constants, **meta}, *rest),
        optimizer=lambda meta: problem.optimizer({**constants, **meta}),
        outer_loss=lambda meta, *rest: problem.outer_loss({**constants, **meta}, *rest),
    )


def ridge_problem(num_inner_steps: int) -> tuple[Problem, dict[str, Tensor]]:
    """Linear regression with a learned start, rate and L2 penalty; its solution is known in closed form."""

    def loss_on(batch, params: dict[str, Tensor]) -> Tensor:
        x, y = batch
        return 0.5 * (x @ params["w"] - y).square().sum()

    problem = Problem(
        init=lambda meta, episode: ({"w": meta["init"]}, {}),
        inner_loss=lambda meta, params, buffers, batch, step: (
            loss_on(batch, params) + 0.5 * meta["penalty"] * params["w"].square().sum(), Aux(buffers, {}),
        ),
        optimizer=lambda meta: optim.sgd(meta["lr"]),
        outer_loss=lambda meta, params, buffers, episode, step: (loss_on(episode.query, params), Aux(buffers, {})),
        num_inner_steps=num_inner_steps,
    )  # fmt: skip
    meta = {"init": torch.ones(3, 1, dtype=D), "penalty": torch.tensor(2.0, dtype=D), "lr": torch.tensor(0.05, dtype=D)}
    return problem, meta


SIZES = ((3, 6, 6), (2, 2, 4), (3, 5, 3), (2, 3, 2))  # ways, support and query rows of each task


def of_several_sizes(kind: str = "classification") -> list[Episodes]:
    """Episodes of their own sizes, without a task axis."""
    parts = []
    for index, (ways, *rows) in enumerate(SIZES):
        if kind == "classification":
            sets = [one(images(index + 1, examples=number, classes=ways), index) for number in rows]
        else:
            sets = [one(values(index + 1, examples=number), index) for number in rows]
        parts.append(Episodes(sets[0].support, sets[1].query, sets[0].key))
    return parts


def padded(parts: list[Episodes], *, num_outputs: int = 3) -> Episodes:
    """The same as one batch. The padded rows are noise: nothing may depend on them."""
    batch = padding.merge(
        [tree.map_tensors(lambda leaf: leaf[None], part) for part in parts],
        [torch.tensor([index]) for index in range(len(parts))],
        own_outputs=[num_ways(part, num_outputs) for part in parts],
        num_outputs=num_outputs,
    )
    generator = torch.Generator().manual_seed(7)

    def noisy(examples):
        inputs, targets, present = examples
        noise = 50 * torch.randn(inputs.shape, generator=generator, dtype=D)
        real = present.examples.reshape(*present.examples.shape, *[1] * (inputs.dim() - 2))
        return torch.where(real, inputs, noise), targets, present

    return Episodes(noisy(batch.support), noisy(batch.query), batch.key)


def num_ways(episode: Episodes, num_outputs: int) -> int:
    labels = episode.support[1]
    return num_outputs if labels.is_floating_point() else int(labels.max()) + 1
