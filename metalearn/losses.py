"""Losses with the metrics that belong to them: `(outputs, targets, present=None) -> (loss, metrics)`.

`present` comes with a padded set (`metalearn.types.Present`): the loss is then that of the real rows over the episode's
own classes, which is what the set without padding gives.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.types import Present, Tensors


class Loss(Protocol):
    """What a loss is. One of a user's own that is never given padded sets may take `(outputs, targets)` alone."""

    def __call__(self, outputs: Tensor, targets: Tensor, present: Present = ..., /) -> tuple[Tensor, Tensors]:
        """The scalar loss, and scalar metrics by name."""


def cross_entropy(outputs: Tensor, targets: Tensor, present: Present | None = None) -> tuple[Tensor, Tensors]:
    """Mean cross-entropy in nats of logits `[example, class]` and int64 labels `[example]`, with the `accuracy`."""
    if present is not None:
        outputs = own_classes(outputs, present)
    right = (outputs.detach().argmax(dim=-1) == targets).to(outputs.dtype)
    if present is None:
        return F.cross_entropy(outputs, targets), {"accuracy": right.mean()}
    # Not `ignore_index`: a set without any real row would give nan there.
    losses = F.cross_entropy(outputs, targets.clamp_min(0), reduction="none")
    return mean_of_present(losses, present), {"accuracy": mean_of_present(right, present)}


def mean_squared_error(outputs: Tensor, targets: Tensor, present: Present | None = None) -> tuple[Tensor, Tensors]:
    """Mean squared error of `[example, output]` against targets of the same shape."""
    if outputs.shape != targets.shape:
        raise UsageError(
            f"outputs have shape {list(outputs.shape)}, targets {list(targets.shape)}: they must be the same, or a "
            "broadcast would compare every output with every target."
        )
    # Written out: forward-mode derivatives of a gradient fail through torch's own kernel.
    squares = (outputs - targets).square()
    return (squares.mean() if present is None else mean_of_present(squares.flatten(1).mean(1), present)), {}


def own_classes(outputs: Tensor, present: Present) -> Tensor:
    """Logits `[example, class]` with minus infinity for what is no class of the episode."""
    return torch.where(present.outputs, outputs, -torch.inf)


def mean_of_present(values: Tensor, present: Present) -> Tensor:
    """The mean over the real rows of one value a row, `[example]`; 0 where there is none."""
    if present.examples is None:
        return values.mean()
    # `where` and not a product: what a model makes of padding may be infinite, and 0 * inf is no number.
    kept = torch.where(present.examples, values, torch.zeros_like(values))
    return kept.sum() / present.examples.sum().clamp_min(1)
