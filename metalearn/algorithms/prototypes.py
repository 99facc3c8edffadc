"""Prototypes: what the classes of a support set look like, as means of features."""

import torch
from torch import Tensor

from metalearn.errors import UsageError


def class_means(features: Tensor, labels: Tensor, num_classes: int, rows: Tensor | None = None) -> Tensor:
    r"""The mean of the features of each class, $c_k = \frac{1}{|S_k|} \sum_{i \in S_k} f_i$; 0 where $S_k$ is empty.

    Args:
        features: `[example, feature]`.
        labels: int64 `[example]`; of rows that are not real, anything.
        num_classes: how many there are.
        rows: which rows are real, bool `[example]`; None for all.

    Returns:
        `[class, feature]`.
    """
    if labels.is_floating_point():
        raise UsageError(
            f"labels are {labels.dtype}, expected int64 of 0 … {num_classes - 1}: prototypes are of classes."
        )
    members = labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
    if rows is not None:
        members = members & rows.unsqueeze(-1)
        # What a model makes of padding may be infinite, and 0 * inf is no number.
        features = torch.where(rows.unsqueeze(-1), features, torch.zeros_like(features))
    weights = members.to(features.dtype)
    return weights.T @ features / weights.sum(0).clamp_min(1).unsqueeze(-1)
