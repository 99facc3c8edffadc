"""Losses with the metrics that belong to them: `(outputs, targets) -> (loss, metrics)`."""

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.types import Tensors

Loss: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensors]]


def cross_entropy(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensors]:
    """Mean cross-entropy in nats of logits `[example, class]` and int64 labels `[example]`, with the `accuracy`."""
    accuracy = (outputs.detach().argmax(dim=-1) == targets).to(outputs.dtype).mean()
    return F.cross_entropy(outputs, targets), {"accuracy": accuracy}


def mean_squared_error(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensors]:
    """Mean squared error of `[example, output]` against targets of the same shape."""
    if outputs.shape != targets.shape:
        raise UsageError(
            f"outputs have shape {list(outputs.shape)}, targets {list(targets.shape)}: they must be the same, or a "
            "broadcast would compare every output with every target."
        )
    # Written out: forward-mode derivatives of a gradient fail through torch's own kernel.
    return (outputs - targets).square().mean(), {}
