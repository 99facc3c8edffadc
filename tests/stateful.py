"""Modules that change their own state, which several tests share."""

import torch
from torch import Tensor, nn


class StatefulCounter(nn.Module):
    """Counts its calls in a parameter, in place, and multiplies by the count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count
