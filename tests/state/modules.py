"""Modules whose state is unusual, with an input for each."""

import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """One tensor under several names, and a module shared between parents."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight
        shared = nn.BatchNorm1d(4)
        self.left, self.right = nn.Sequential(nn.Linear(4, 4), shared), nn.Sequential(shared, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(self.decode(self.encode(x))))


class Buffers(nn.Module):
    """Integers, booleans, scalars, complex numbers; not all in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("positions", torch.arange(4))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("calls", torch.tensor(3))
        self.register_buffer("phase", torch.ones(4, dtype=torch.complex64))
        self.register_buffer("cache", torch.full((4,), 0.5), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.cache * self.positions) * self.mask + self.calls * self.phase.real


class Named(nn.Module):
    """A ParameterDict and a ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterDict({"a-b": torch.ones(4), "c": torch.full((4,), 2.0)})
        self.shifts = nn.ParameterList([torch.ones(4), torch.zeros(4)])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales["a-b"] * self.scales["c"] + self.shifts[0] + self.shifts[1]


class WithExtraState(nn.Module):
    """State that is no tensor (`get_extra_state`)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.version = nn.Parameter(torch.ones(4)), 7

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, extra: dict[str, int]) -> None:
        self.version = extra["version"]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _lazy() -> nn.Module:
    module = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    module(torch.ones(2, 4))
    return module


class Hollow(nn.Module):
    """A parameter and a buffer without a single entry."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("nothing", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


MODULES = {
    "linear": lambda: nn.Linear(4, 3),
    "tied and shared": Tied,
    "buffers of all kinds": Buffers,
    "containers of parameters": Named,
    "lazy": _lazy,
    "bfloat16": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).bfloat16(),
    "float64": lambda: nn.Linear(4, 4).double(),
    "empty": nn.Identity,
    "no entries": Hollow,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "lstm": lambda: nn.LSTM(4, 3),
    "extra state": WithExtraState,
}
"""Functions that make each; the same name gives the same names and shapes, with other values at every call."""
