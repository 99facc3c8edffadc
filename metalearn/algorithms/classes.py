"""The classes of a support set: which example is of which, what each looks like on average, and which are absent."""

import torch
from torch import Tensor

from metalearn.algorithms.embedding import rows_of
from metalearn.errors import UsageError
from metalearn.types import Examples


def members_of(support: Examples, num_classes: int) -> Tensor:
    """Which class each row of a labelled set is of, bool `[example, class]`; padded rows are of none."""
    labels = support[1]
    if labels.is_floating_point():
        raise UsageError(
            f"labels are {labels.dtype}, expected int64 of 0 … {num_classes - 1}: this algorithm is for "
            "classifications. For a regression take R2D2, or MAML."
        )
    members = labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
    rows = rows_of(support)
    return members if rows is None else members & rows.unsqueeze(-1)


def class_means(features: Tensor, members: Tensor) -> Tensor:
    r"""The prototypes: the mean of the features of each class, $c_k = \frac{1}{|S_k|} \sum_{i \in S_k} f_i$.

    Args:
        features: `[example, feature]`.
        members: bool `[example, class]`, of `members_of`.

    Returns:
        `[class, feature]`; 0 for a class without examples.
    """
    # What a model makes of padding may be infinite, and 0 * inf is no number.
    features = torch.where(members.any(-1, keepdim=True), features, torch.zeros_like(features))
    weights = members.to(features.dtype)
    return weights.T @ features / weights.sum(0).clamp_min(1).unsqueeze(-1)


def without_absent(outputs: Tensor, members: Tensor) -> Tensor:
    """Outputs `[example, class]` with minus infinity for the classes of which there is no support example."""
    return torch.where(members.any(0), outputs, -torch.inf)
