"""Layers of torch.nn to certify: how a case is told, and modules that a table of cases needs."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import random

D = torch.float64


@dataclass(frozen=True)
class Given:
    """An input, drawn from a key; one that is `fixed` is no variable of the certification."""

    draw: Callable[[Tensor], Tensor]
    fixed: bool = False


def real(*shape: int) -> Given:
    return Given(lambda key: random.normal(key, shape, dtype=D))


def positive(*shape: int, low: float = 0.1, high: float = 0.9, fixed: bool = False) -> Given:
    return Given(lambda key: low + (high - low) * random.uniform(key, shape, dtype=D), fixed=fixed)


def target(*shape: int) -> Given:
    return Given(lambda key: random.normal(key, shape, dtype=D), fixed=True)


def whole(high: int, *shape: int) -> Given:
    return Given(lambda key: random.integers(key, high, shape), fixed=True)


def sign(*shape: int) -> Given:
    return Given(lambda key: random.integers(key, 2, shape).to(D) * 2 - 1, fixed=True)


def numbers(*values: int) -> Given:
    return Given(lambda key: torch.tensor(values, device=key.device), fixed=True)


def distribution(*shape: int) -> Given:
    return Given(lambda key: random.normal(key, shape, dtype=D).softmax(1), fixed=True)


@dataclass(frozen=True)
class Case:
    """A layer with inputs to call it on.

    Attributes:
        name: the layer's class, and after a comma what is special.
        build: the module, in the mode that it is certified in.
        inputs: of a call.
        draws: it draws, so that it can not be compared with torch's values.
        differs: how its first gradient differs from torch's on purpose.
        first_tolerance: up to how much the first gradient agrees with torch's, relative; None where it differs.
        slow: vmap has no rule for a function of torch in it, and runs it for one task after another.
        refused: words of the refusal.
        constant_row: a row of the parameter `weight` that torch holds constant (a padding index).
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Given, ...]
    draws: bool = False
    differs: str = ""
    first_tolerance: float | None = 1e-10
    slow: bool = False
    refused: str = ""
    constant_row: int | None = None

    @property
    def layer(self) -> str:
        return self.name.split(",")[0]

    def module(self) -> nn.Module:
        torch.manual_seed(1)
        return self.build().to(D)


def case(name: str, build: Callable[[], nn.Module], *inputs: Given, **options: Any) -> Case:
    return Case(name, build, inputs, **options)


class Between(nn.Module):
    """A layer fed with what a max-pool has found (values and indices)."""

    def __init__(self, pool: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.pool, self.layer = pool, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*self.pool(x))


class Of(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Sine(nn.Module):
    """The first output of a layer that has several."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.layer(*inputs)
        return (output if isinstance(output, Tensor) else output[0]).sin()


class Method(nn.Module):
    """A layer called by another method than forward."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.layer, self.name = layer, name

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.layer, self.name)(*inputs)


class WeightedBag(nn.Module):
    """A bag given weights."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.bag(x, per_sample_weights=weights)


class BehindLogSoftmax(nn.Module):
    """A loss of log-probabilities as a loss of scores."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, scores: Tensor, *rest: Tensor) -> Tensor:
        return self.loss(scores.log_softmax(-1), *rest)


class Children(nn.Module):
    """Modules or parameters in a container of torch."""

    def __init__(self, container: nn.Module) -> None:
        super().__init__()
        self.container = container

    def forward(self, x: Tensor) -> Tensor:
        values = self.container.values() if hasattr(self.container, "values") else self.container
        for value in values:
            x = value(x) if isinstance(value, nn.Module) else x @ value
        return x.sin()


def called(module: nn.Module, x: Tensor) -> nn.Module:
    """A lazy module after its first call."""
    module(x)
    return module


def old(function: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    """A layer made by a function that torch wants replaced, which it says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(*args, **options)
