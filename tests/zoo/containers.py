"""How modules are put together: containers, ties, several inputs and outputs, hooks, parametrizations."""

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from tests.zoo.rows import Row, dense, given, normal


class Tied(nn.Module):
    """Weights that are shared by assignment, at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder[2].weight
        self.scale = self.encoder[0].bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).tanh()) * self.scale


class Branches(nn.Module):
    """One module with two parents, and two paths to it."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(3, 3)
        self.left, self.right = nn.Sequential(shared, nn.Tanh()), nn.Sequential(nn.Linear(3, 3), shared)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) * self.right(x)


class Lists(nn.Module):
    """Parameters in lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(3, 3)) for _ in range(3)])
        self.biases = nn.ParameterDict({"first": nn.Parameter(torch.randn(3)), "last": nn.Parameter(torch.randn(3))})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = (x @ weight + self.biases["first"]).tanh()
        return x * len(self.weights) + self.biases["last"]


class Sliced(Lists):
    """Takes slices and copies of the lists and dicts."""

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.weights[0]
        for weight in self.weights[1:]:
            x = x.tanh() @ weight
        for bias in (self.biases.copy() | {"again": self.biases["first"]}).values():
            x = x + bias
        return x


class Nested(nn.Module):
    """Containers in containers, iterated and indexed."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(OrderedDict(up=nn.Linear(3, 4), bend=nn.Tanh()))
        self.layers = nn.ModuleList([nn.Sequential(inner, nn.Sequential(nn.Linear(4, 3))), nn.Linear(3, 3)])
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.ModuleList([nn.Linear(3, 2)])})

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x).tanh() + index
        return torch.cat([self.heads["a"](x), *(head(x) for head in self.heads["b"])], 1)


@dataclass
class Prediction:
    mean: Tensor
    spread: Tensor


class Several(nn.Module):
    """Several inputs, some by keyword, and outputs in a dataclass, a tuple or a dict."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], *, scale: Tensor, flip: bool = False):
        mean = self.first(x) * scale + self.second(pair[0] - pair[1])
        spread = (-mean if flip else mean).sigmoid()
        if self.kind == "dataclass":
            return Prediction(mean, spread)
        return {"mean": mean, "rest": [spread, None]} if self.kind == "dict" else (mean, (spread, "a name"))


SEVERAL = given(normal(5, 3), pair=lambda generator: (normal(5, 2)(generator), normal(5, 2)(generator)),
                scale=normal(5, 1), flip=True)  # fmt: skip


def _hooked() -> nn.Module:
    module = dense(nn.Tanh())
    module[0].register_forward_pre_hook(lambda part, args: (args[0] * 2.0,))
    module[0].register_forward_hook(lambda part, args, output: output + part.weight.sum())
    module.register_forward_hook(lambda part, args, kwargs, output: output**2, with_kwargs=True)
    return module


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


class Scaled(nn.Module):
    """A parametrization with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((), 0.3))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.log_scale.exp()


def _parametrized() -> nn.Module:
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    parametrize.register_parametrization(layer, "weight", Scaled())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2))


class CachedParametrization(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _parametrized()[0]

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():
            return self.layer(self.layer(x).tanh())


def _pruned() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    prune.random_unstructured(module[0], "weight", amount=0.3)
    prune.l1_unstructured(module[2], "weight", amount=3)
    return module


class Cached(nn.Module):
    """Attributes that are computed at the first use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.linear.weight.shape)

    @lru_cache  # noqa: B019 (modules that users bring do this)
    def mask(self, size: int) -> Tensor:
        return torch.ones(size, size, dtype=torch.float64).tril()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.mask(self.sizes[0])).tanh() / self.sizes[1]


class CachedTensor(nn.Module):
    """A property that remembers a tensor made of a parameter: it must not outlive the call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    @cached_property
    def gram(self) -> Tensor:
        return self.linear.weight @ self.linear.weight.T

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) @ self.gram).tanh() @ self.gram


ROWS = {
    "tied weights": Row(Tied),
    "a module shared by two parents": Row(Branches),
    "a module used twice": Row(lambda: nn.Sequential(*[nn.Linear(3, 3), nn.Tanh()] * 2)),
    "parameter list and dict": Row(Lists, lr=0.02),
    "slices and copies of parameter lists and dicts": Row(Sliced, lr=0.02),
    "nested containers": Row(Nested),
    **{
        f"several inputs, outputs in a {kind}": Row(
            lambda kind=kind: Several(kind),
            SEVERAL,
            read=vars if kind == "dataclass" else lambda output: output,
            lr=0.02,
        )
        for kind in ("dataclass", "dict", "tuple")
    },
    "lazy": Row(lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))),
    "hooks": Row(_hooked, lr=0.01),
    "custom parametrization": Row(_parametrized),
    "custom parametrization, cached": Row(CachedParametrization),
    "pruned": Row(_pruned),
    "deepcopied": Row(lambda: deepcopy(Nested())),
    "cached attributes": Row(Cached),
    "cached tensor": Row(CachedTensor),
    "in evaluation mode in part": Row(lambda: _half_frozen()),
}


def _half_frozen() -> nn.Module:
    """A batch norm that stays in evaluation mode whatever its parents do."""
    module = dense(nn.BatchNorm1d(6), nn.Tanh())
    module[1].train = lambda mode=True: module[1]
    module[1].training = False
    return module
