"""The table of optimizers: each row has its hyper-parameters, and what it has to be equal to."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import optim
from tests.optim.papers import Lion, Muon

D = torch.float64


class Row(NamedTuple):
    """One optimizer.

    Attributes:
        make: its factory.
        hypers: a value for each of its hyper-parameters, away from the default where that would hide something.
        reference: from parameters and the same values to a `torch.optim` one, or to the paper's equations.
        options: what is no hyper-parameter.
        matrices: it takes matrices only.
        flat: hyper-parameters that these steps do not depend on, after however many.
    """

    make: Callable[..., optim.GradientTransformation]
    hypers: Mapping[str, float]
    reference: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any] = {}
    matrices: bool = False
    flat: frozenset[str] = frozenset()

    def ours(self, **hypers: Any) -> optim.GradientTransformation:
        return self.make(**{**self.hypers, **hypers, **self.options})

    def theirs(self, params: list[Tensor]) -> torch.optim.Optimizer:
        return self.reference(params, **self.hypers, **self.options)

    def start(self) -> dict[str, Tensor]:
        """Parameters of several shapes; "dead" never has a gradient."""
        shapes = {"w": (3, 2), "v": (2, 4), "dead": (2, 2)}
        if not self.matrices:
            shapes |= {"b": (2,), "scalar": (), "image": (2, 1, 2, 2)}
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(shape, generator=generator, dtype=D) for name, shape in shapes.items()}


def _adam(name: str) -> Callable[..., torch.optim.Optimizer]:
    def make(params: Any, *, b1: float, b2: float, **rest: Any) -> torch.optim.Optimizer:
        return getattr(torch.optim, name)(params, betas=(b1, b2), **rest)

    return make


def _rprop(params: Any, *, eta_minus: float, eta_plus: float, min_step: float, max_step: float, **rest: Any) -> Any:
    return torch.optim.Rprop(params, etas=(eta_minus, eta_plus), step_sizes=(min_step, max_step), **rest)


def _adafactor(params: Any, *, eps2: float, eps1: float | None = None, **rest: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(params, eps=(eps1, eps2), **rest)


ADAM = {"lr": 0.05, "b1": 0.7, "b2": 0.9, "eps": 1e-3}
DECAYED = {**ADAM, "weight_decay": 0.1}
RMS = {"lr": 0.02, "alpha": 0.8, "eps": 1e-3}
NADAM = {**DECAYED, "lr": 0.01, "momentum_decay": 0.02}
ADAGRAD = {"lr": 0.1, "lr_decay": 0.02, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3}

FAMILY: dict[str, Row] = {
    "sgd": Row(optim.sgd, {"lr": 0.05}, torch.optim.SGD),
    "sgd, momentum": Row(optim.sgd, {"lr": 0.05, "momentum": 0.9}, torch.optim.SGD),
    "sgd, dampening": Row(
        optim.sgd, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, torch.optim.SGD
    ),
    "sgd, nesterov": Row(
        optim.sgd, {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}, torch.optim.SGD, {"nesterov": True}
    ),
    "sgd, maximize": Row(
        optim.sgd, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}, torch.optim.SGD, {"maximize": True}
    ),
    "adam": Row(optim.adam, ADAM, _adam("Adam")),
    "adam, defaults": Row(
        optim.adam, {"lr": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-8}, _adam("Adam"), flat=frozenset({"eps"})
    ),
    "adam, weight decay": Row(optim.adam, DECAYED, _adam("Adam")),
    "adam, maximize": Row(optim.adam, DECAYED, _adam("Adam"), {"maximize": True}),
    "amsgrad": Row(optim.adam, DECAYED, _adam("Adam"), {"amsgrad": True}),
    "adamw": Row(optim.adamw, DECAYED, _adam("AdamW")),
    "adamw, amsgrad, maximize": Row(optim.adamw, DECAYED, _adam("AdamW"), {"amsgrad": True, "maximize": True}),
    "nadam": Row(optim.nadam, NADAM, _adam("NAdam")),
    "nadam, decoupled, maximize": Row(
        optim.nadam, NADAM, _adam("NAdam"),
        {"decoupled_weight_decay": True, "maximize": True},
    ),
    "radam": Row(optim.radam, DECAYED, _adam("RAdam")),
    "radam, decoupled, maximize": Row(
        optim.radam, DECAYED, _adam("RAdam"), {"decoupled_weight_decay": True, "maximize": True}
    ),
    "radam, never adapted": Row(
        optim.radam, {**DECAYED, "b2": 0.5}, _adam("RAdam"), flat=frozenset({"b2", "eps"})
    ),
    "adamax": Row(optim.adamax, DECAYED, _adam("Adamax")),
    "adamax, maximize": Row(optim.adamax, DECAYED, _adam("Adamax"), {"maximize": True}),
    "adagrad": Row(optim.adagrad, ADAGRAD, torch.optim.Adagrad),
    "adagrad, maximize": Row(optim.adagrad, ADAGRAD, torch.optim.Adagrad, {"maximize": True}),
    "adadelta": Row(
        optim.adadelta, {"lr": 1.2, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}, torch.optim.Adadelta
    ),
    "adadelta, maximize": Row(
        optim.adadelta, {"lr": 1.2, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}, torch.optim.Adadelta,
        {"maximize": True},
    ),
    "rmsprop": Row(optim.rmsprop, {**RMS, "weight_decay": 0.1}, torch.optim.RMSprop),
    "rmsprop, centered": Row(optim.rmsprop, {**RMS, "weight_decay": 0.1}, torch.optim.RMSprop, {"centered": True}),
    "rmsprop, momentum": Row(optim.rmsprop, {**RMS, "momentum": 0.6}, torch.optim.RMSprop),
    "rmsprop, everything": Row(
        optim.rmsprop, {**RMS, "momentum": 0.6, "weight_decay": 0.1}, torch.optim.RMSprop,
        {"centered": True, "maximize": True},
    ),
    "rprop": Row(
        optim.rprop, {"lr": 0.05, "eta_minus": 0.6, "eta_plus": 1.3, "min_step": 0.025, "max_step": 0.1}, _rprop
    ),
    "rprop, maximize": Row(
        optim.rprop, {"lr": 0.05, "eta_minus": 0.6, "eta_plus": 1.3, "min_step": 0.025, "max_step": 0.1}, _rprop,
        {"maximize": True}, flat=frozenset({"min_step"}),
    ),
    "asgd": Row(
        optim.asgd, {"lr": 0.05, "lambd": 0.03, "alpha": 0.6, "t0": 7.0, "weight_decay": 0.1}, torch.optim.ASGD,
        flat=frozenset({"t0"}),
    ),
    "asgd, maximize": Row(
        optim.asgd, {"lr": 0.05, "lambd": 0.03, "alpha": 0.6, "t0": 7.0, "weight_decay": 0.1}, torch.optim.ASGD,
        {"maximize": True}, flat=frozenset({"t0"}),
    ),
    "adafactor": Row(
        optim.adafactor, {"lr": 0.3, "beta2_decay": -0.7, "eps2": 1e-2, "d": 1.2, "weight_decay": 0.1}, _adafactor,
        flat=frozenset({"eps2"}),
    ),
    "adafactor, eps1, maximize": Row(
        optim.adafactor,
        {"lr": 0.05, "beta2_decay": -0.7, "eps1": 0.1, "eps2": 0.5, "d": 1.2, "weight_decay": 0.1}, _adafactor,
        {"maximize": True},
    ),
    "lion": Row(
        optim.lion, {"lr": 0.01, "b1": 0.8, "b2": 0.9, "weight_decay": 0.1}, Lion,
        flat=frozenset({"b1", "b2"}),
    ),
    "lion, maximize": Row(
        optim.lion, {"lr": 0.01, "b1": 0.8, "b2": 0.9, "weight_decay": 0.1}, Lion, {"maximize": True},
        flat=frozenset({"b1", "b2"}),
    ),
    "muon": Row(
        optim.muon, {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.8, "eps": 1e-7}, Muon, matrices=True,
        flat=frozenset({"eps"}),
    ),
    "muon, small gradients": Row(
        optim.muon, {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.8, "eps": 30.0}, Muon, matrices=True
    ),
    "muon, plain momentum": Row(
        optim.muon, {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.8, "eps": 1e-7}, Muon,
        {"nesterov": False, "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw", "ns_coefficients": (2.0, -1.5, 0.5)},
        matrices=True, flat=frozenset({"eps"}),
    ),
}  # fmt: skip


def objective(params: dict[str, Tensor]) -> Tensor:
    """Like Rosenbrock's valley: curved, not separable; "dead" has a gradient of exactly zero."""
    flat = torch.cat([value.reshape(-1) for name, value in params.items() if name != "dead"])
    return ((1 - flat[:-1]) ** 2 + 2 * (flat[1:] - flat[:-1] ** 2) ** 2).mean() + 0.0 * params["dead"].sum()
