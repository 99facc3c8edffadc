"""Optimizers that torch has not, or not in double, by their papers' own equations, one parameter after the other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv:2302.06675, Algorithm 2."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        for param in group["params"]:
            if param.grad is None:
                continue
            gradient = -param.grad if group.get("maximize") else param.grad
            mean = self.state[param].setdefault("m", torch.zeros_like(param))
            c = group["b1"] * mean + (1 - group["b1"]) * gradient
            param -= group["lr"] * (torch.sign(c) + group["weight_decay"] * param)
            mean.copy_(group["b2"] * mean + (1 - group["b2"]) * gradient)


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, with the momentum and the adjustments of `torch.optim.Muon`, which casts to bfloat16."""

    def __init__(self, params: Any, **options: Any) -> None:
        given = {"ns_coefficients": (3.4445, -4.7750, 2.0315), "ns_steps": 5, "nesterov": True, "adjust_lr_fn": None}
        super().__init__(params, {**given, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        mu = group["momentum"]
        for param in group["params"]:
            if param.grad is None:
                continue
            mean = self.state[param].setdefault("m", torch.zeros_like(param))
            mean.copy_(mu * mean + (1 - mu) * param.grad)
            update = (1 - mu) * param.grad + mu * mean if group["nesterov"] else mean
            rows, columns = param.shape
            ratio = max(1, rows / columns) ** 0.5
            if group["adjust_lr_fn"] == "match_rms_adamw":
                ratio = 0.2 * max(rows, columns) ** 0.5
            param *= 1 - group["lr"] * group["weight_decay"]
            param -= group["lr"] * ratio * _by_singular_values(update, group)


def _by_singular_values(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """The iteration acts on the singular values alone: s -> a s + b s^3 + c s^5."""
    a, b, c = group["ns_coefficients"]
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh
