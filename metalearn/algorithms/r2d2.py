"""R2-D2: ridge regression on learned features, solved in closed form and differentiated through."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metalearn.algorithms.classes import members_of, without_absent
from metalearn.algorithms.closed_form import ClosedForm
from metalearn.algorithms.embedding import rows_of
from metalearn.errors import UsageError
from metalearn.types import Examples, Tensors

_SCALES = {"classification": 10.0, "regression": 1.0}


@dataclass(frozen=True, kw_only=True)
class R2D2(ClosedForm):
    r"""Ridge regression as the base learner, its solution part of the computation.

    With the support features $X$ (a column of ones appended) and one-hot labels $Y$, $W = \arg\min_W \lVert X W - Y
    \rVert^2 + \lambda \lVert W \rVert^2 = (X^\top X + \lambda I)^{-1} X^\top Y$ (equation 4), which is $X^\top (X
    X^\top + \lambda I)^{-1} Y$ (equation 5, Woodbury's identity): the smaller of the two systems is solved. Query
    features $X'$ get the outputs $\alpha X' W + \beta$ (equation 6), which go into the cross-entropy. $\lambda > 0$,
    $\alpha > 0$ and $\beta$ are learned with the features, the first two by their logarithms: `"log_regularisation"`,
    `"log_scale"` and `"shift"` in `meta`. A softmax does not see $\beta$, which is the same for all classes.

    A regression takes its own targets for $Y$, and the squared error for the loss.

    Attributes:
        regularisation: the $\lambda$ to start from. The column of ones is regularised like any other.
        scale: the $\alpha$ to start from; None for 10 in a classification, whose regression targets are 0 and 1 and
            whose softmax would else begin almost flat, and 1 in a regression.

    Reference: Bertinetto, Henriques, Torr and Vedaldi 2019, arXiv:1805.08136, section 3.2. The starting values of
    $\lambda$ and $\alpha$ are this library's.
    """

    regularisation: float = 1.0
    scale: float | None = None

    kinds: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def __post_init__(self) -> None:
        """Refuses numbers that have no logarithm."""
        super().__post_init__()
        for name in ("regularisation", "scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"R2D2({name}={value}): it must be above 0.")

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        scale = "10 (labels), 1 (values)" if self.scale is None else self.scale
        return {"initial_regularisation": self.regularisation, "initial_scale": scale, **super().protocol()}

    def numbers(self, kind: str) -> dict[str, float]:
        r"""See `ClosedForm.numbers`: $\log \lambda$, $\log \alpha$ and $\beta$."""
        scale = _SCALES[kind] if self.scale is None else self.scale
        return {"log_regularisation": math.log(self.regularisation), "log_scale": math.log(scale), "shift": 0.0}

    def outputs(self, meta: Tensors, features: Tensor, support: Examples, query: Tensor, num_classes: int) -> Tensor:
        """See `ClosedForm.outputs`: equation 6."""
        targets, rows = support[1], rows_of(support)
        is_label = not targets.is_floating_point()
        members = members_of(support, num_classes) if is_label else None
        targets = targets.to(features.dtype) if members is None else members.to(features.dtype)
        features, query = _with_ones(features), _with_ones(query)
        if rows is not None:  # a row of zeros changes neither system
            features = torch.where(rows.unsqueeze(-1), features, torch.zeros_like(features))
        weights = ridge(features, targets, meta["log_regularisation"].exp())
        outputs = meta["log_scale"].exp() * (query @ weights) + meta["shift"]
        return outputs if members is None else without_absent(outputs, members)


def ridge(inputs: Tensor, targets: Tensor, regularisation: Tensor | float) -> Tensor:
    r"""The weights `[feature, output]` that minimise $\lVert X W - Y \rVert^2 + \lambda \lVert W \rVert^2$.

    Args:
        inputs: $X$, `[example, feature]`.
        targets: $Y$, `[example, output]`.
        regularisation: $\lambda$, above 0.

    Example:
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]])
        >>> ridge(x, y, 1.0)  # 5 / (5 + 1)
        tensor([[0.8333]])
    """
    num_examples, num_features = inputs.shape
    if num_examples < num_features:
        return inputs.T @ _solved(inputs @ inputs.T, targets, regularisation)
    return _solved(inputs.T @ inputs, inputs.T @ targets, regularisation)


def _solved(gram: Tensor, right: Tensor, regularisation: Tensor | float) -> Tensor:
    system = gram + regularisation * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # Not torch.linalg.solve: under two vmaps (tasks and directions) its jvp is silently wrong in torch 2.13, that of
    # lu_solve too. And without a look at `info`, for which a GPU's host would wait: a λ that is lost in the rounding of
    # the Gram matrix gives NaN, which training refuses to step with.
    factor, info = torch.linalg.cholesky_ex(system)
    return torch.where(info == 0, torch.cholesky_solve(right, factor), torch.nan)


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
