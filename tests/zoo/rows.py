"""What a row of the certification table of modules is: a module, what it is called with, and an inner problem on it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from metalearn import Aux, Problem, functionalize, optim, random, tree
from metalearn.functional import RNG, FunctionalModel

D = torch.float64
NUM_TASKS = 3

Draw = Callable[[Generator], Tensor]


class Inputs(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Examples(NamedTuple):
    inputs: Inputs
    targets: list[Tensor]


class Episode(NamedTuple):
    support: Examples
    query: Examples
    key: Tensor


def normal(*shape: int, dtype: torch.dtype = D) -> Draw:
    return lambda generator: torch.randn(shape, generator=generator, dtype=dtype)


def below(limit: int, *shape: int, first: int = 0) -> Draw:
    return lambda generator: torch.randint(first, limit, shape, generator=generator)


def padding(batch: int, length: int) -> Draw:
    """True at the padded positions of sequences: of the last half, and of the first sequence always some."""

    def drawn(generator: Generator) -> Tensor:
        lengths = torch.randint((length + 1) // 2, length + 1, (batch, 1), generator=generator)
        lengths[0] = lengths[0].clamp_max(length - 1)
        return torch.arange(length) >= lengths

    return drawn


def given(*args: Any, **kwargs: Any) -> Callable[[Generator], Inputs]:
    """What the module is called with; functions draw a tensor, and anything else is passed as it is."""

    def drawn(generator: Generator) -> Inputs:
        def value(each: Any) -> Any:
            return each(generator) if callable(each) else each

        return Inputs(tuple(map(value, args)), {name: value(each) for name, each in kwargs.items()})

    return drawn


VECTORS = given(normal(5, 3))
SPACE = {1: given(normal(4, 1, 9)), 2: given(normal(3, 1, 7, 7)), 3: given(normal(2, 1, 5, 5, 5))}
"""Inputs of one channel by the number of spatial dimensions."""


def dense(*middle: nn.Module, width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), *middle, nn.LazyLinear(2))


def convolutional(*middle: nn.Module, dims: int = 2, channels: int = 4) -> nn.Sequential:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](1, channels, 3, bias=False)
    return nn.Sequential(convolution, *middle, nn.Flatten(), nn.LazyLinear(2))


@contextmanager
def silenced(message: str) -> Iterator[None]:
    """Without one warning of a third party, which would be an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message)
        yield


@dataclass(frozen=True)
class Row:
    """A module of the table.

    Attributes:
        build: makes the module; its floating-point tensors are cast to float64.
        inputs: what it is called with.
        training: its mode.
        draws: it draws random numbers, so that its value can be compared with torch's in evaluation mode alone.
        replay: torch holds something in it constant, so finite differences need its values replayed.
        inert: patterns of names whose gradient is zero (a key's bias in attention: the softmax does not see it).
        adapted: whether a parameter is learned and adapted, by its name; the others are frozen.
        start: what the inner loop starts from, made of the parameters.
        read: the tensors of the output that the loss is made of.
        slow_batching: the operators, as a pattern, that vmap runs in a loop of its own, which torch warns of.
        lr: of the inner loop.
        num_inner_steps: of the inner loop.
        num_directions: of the finite differences.
        step_sizes: of the finite differences.
        slow: it takes more than 5 s.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[Generator], Inputs] = VECTORS
    training: bool = True
    draws: bool = False
    replay: bool = False
    inert: tuple[str, ...] = ()
    adapted: Callable[[str], bool] = field(default=lambda name: True)
    start: Callable[[dict[str, Tensor]], dict[str, Tensor]] = field(default=lambda params: params)
    read: Callable[[Any], Any] = field(default=lambda output: output)
    slow_batching: str | None = None
    lr: float = 0.1
    num_inner_steps: int = 2
    num_directions: int = 2
    step_sizes: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
    slow: bool = False

    def module(self) -> nn.Module:
        """The module, the same one at each call; it is called once, to give a lazy one its shapes."""
        torch.manual_seed(5)
        module = self.build().double().train(self.training)
        if any(map(torch.nn.parameter.is_lazy, (*module.parameters(), *module.buffers()))):
            modes = {part: part.training for part in module.modules()}
            example = self.inputs(Generator().manual_seed(0))
            module.eval()(*example.args, **example.kwargs)
            for part in module.modules():
                part.training = modes.get(part, self.training)
        return module

    def outputs(self, output: Any) -> list[Tensor]:
        """The tensors of an output that a loss can be made of."""
        found = tree.tensors(self.read(output))
        return [leaf for leaf in found if leaf.is_floating_point() or leaf.is_complex()]

    def is_inert(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.inert)


@dataclass(frozen=True)
class Case:
    """A row made concrete: the module, the problem and its data."""

    row: Row
    module: nn.Module
    model: FunctionalModel
    problem: Problem
    meta: dict[str, Tensor]
    episodes: Episode

    @property
    def episode(self) -> Episode:
        """The first task, without the task axis."""
        return tree.map_tensors(lambda leaf: leaf[0], self.episodes)


def case_of(row: Row) -> Case:
    module = row.module()
    model = functionalize(module)
    problem, meta = problem_of(row, model)
    return Case(row, module, model, problem, meta, episodes_of(row, model))


def problem_of(row: Row, model: FunctionalModel) -> tuple[Problem, dict[str, Tensor]]:
    """MAML on the row's module, and the meta-parameters: real ones, because finite differences know no others."""
    frozen = {name: value for name, value in model.params.items() if not row.adapted(name)}

    def init(meta: dict[str, Tensor], episode: Episode) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params = {name: torch.view_as_complex(value) if model.params[name].is_complex() else value
                  for name, value in meta.items()}  # fmt: skip
        return row.start(params), {**model.buffers, RNG: random.fold_in(model.buffers[RNG], episode.key)}

    def loss(meta: Any, params: Any, buffers: Any, examples: Examples, step: int) -> tuple[Tensor, Aux]:
        args, kwargs = examples.inputs
        output, buffers = model({**frozen, **params}, buffers, *args, **kwargs)
        pairs = zip(row.outputs(output), examples.targets, strict=True)
        squares = torch.stack([_squared(leaf - target).mean() for leaf, target in pairs])
        return squares.sum(), Aux(buffers, {})

    problem = Problem(
        init=init,
        inner_loss=loss,
        optimizer=lambda meta: optim.sgd(row.lr),
        outer_loss=lambda meta, params, buffers, episode, step: loss(meta, params, buffers, episode.query, step),
        num_inner_steps=row.num_inner_steps,
    )
    adapted = {name: value for name, value in model.params.items() if row.adapted(name)}
    return problem, {
        name: torch.view_as_real(value) if value.is_complex() else value for name, value in adapted.items()
    }


def _squared(value: Tensor) -> Tensor:
    return torch.view_as_real(value).square() if value.is_complex() else value.square()


def episodes_of(row: Row, model: FunctionalModel) -> Episode:
    """`NUM_TASKS` tasks of the row's inputs, with random targets of the shapes of the outputs."""
    generator = Generator().manual_seed(11)
    sets = [_examples(row, model, generator) for _ in range(2 * NUM_TASKS)]
    tasks = [
        Episode(sets[2 * index], sets[2 * index + 1], random.key(torch.tensor(index))) for index in range(NUM_TASKS)
    ]
    flat, structure = zip(*map(tree.flatten, tasks), strict=True)
    stacked = [
        torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0] for leaves in zip(*flat, strict=True)
    ]
    return tree.unflatten(stacked, structure[0])


def _examples(row: Row, model: FunctionalModel, generator: Generator) -> Examples:
    inputs = row.inputs(generator)
    with torch.no_grad():
        output, _ = model(model.params, model.buffers, *inputs.args, **inputs.kwargs)
    targets = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in row.outputs(output)]
    return Examples(inputs, targets)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Asserts that nothing of the module changes, bit for bit."""
    before = _everything(module)
    yield
    after = _everything(module)
    assert before.keys() == after.keys()
    for name, (value, *others) in before.items():
        now, *others_now = after[name]
        same = torch.equal(now, value) if isinstance(value, Tensor) else now == value
        assert same, f"{name} of the module changed"
        assert others_now == others, f"{name} of the module is another object, or was written to"


def _everything(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        found[name] = (value.detach().clone(), id(value), value._version, value.requires_grad, value.grad is None)
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, bool | int | float | str | tuple | list | None):
                found[f"{path}.{name}"] = (repr(value), id(value))
    return found
