"""Learned preconditioners: gradients transformed by small learned matrices."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from metalearn import tree
from metalearn.optim.base import GradientTransformation, chain, check_names, stateless
from metalearn.optim.learned.base import LearnedOptimizer, check_meta, check_rate, of_params, optimizer_of
from metalearn.optim.sgd import sgd
from metalearn.types import Hyper, Tensors


@dataclass(frozen=True)
class Preconditioner(LearnedOptimizer):
    """Matrices that a gradient is multiplied by, all the identity to start with, and the optimizer that follows.

    Attributes:
        base: what takes the transformed gradient: an optimizer of `metalearn.optim`, with the fixed rate `lr`, or a
            learned optimizer, whose meta-parameters are in `meta` as `"base.…"`.
        lr: the rate of `base` where it is not learned.

    Raises:
        UsageError: a base without a rate, or a learned one with another rate.
    """

    base: Callable[[Hyper], GradientTransformation] | LearnedOptimizer = sgd
    _: KW_ONLY
    lr: Hyper | None = None

    def __post_init__(self) -> None:
        check_rate(type(self).__name__, self.base, self.lr, names=("base", "lr"))

    def init(self, params: Tensors) -> Tensors:
        """Identities, and what the base starts from."""
        matrices = {
            f"{axis}.{name}": torch.eye(size, dtype=value.dtype, device=value.device)
            for name, value in params.items()
            for axis, size in zip(self.axes(value.shape), self.folded(value.shape), strict=True)
        }
        base = self.base.init(params) if isinstance(self.base, LearnedOptimizer) else {}
        return {**matrices, **tree.prefixed(base, "base.")}

    def __call__(self, meta: Tensors) -> GradientTransformation:
        """The base optimizer on the transformed gradient."""

        def transformed(updates: Tensors, params: Tensors) -> Tensors:
            check_names(updates, params)
            return {name: self._transformed(meta, name, value) for name, value in updates.items()}

        whole = chain(stateless(transformed), optimizer_of(self.base, self.lr, meta, "base."))
        return of_params(lambda params: whole, check=lambda params: check_meta(self, meta, params))

    @abstractmethod
    def folded(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that a parameter of this shape is transformed in; each of its axes has a square matrix."""

    @abstractmethod
    def axes(self, shape: Sequence[int]) -> tuple[str, ...]:
        """The names of those axes."""

    @abstractmethod
    def product(self, gradient: Tensor, matrices: Mapping[str, Tensor]) -> Tensor:
        """The transformed gradient, folded, from the folded gradient and its matrices by axis."""

    def _transformed(self, meta: Tensors, name: str, gradient: Tensor) -> Tensor:
        matrices = {axis: meta[f"{axis}.{name}"] for axis in self.axes(gradient.shape)}
        return self.product(gradient.reshape(self.folded(gradient.shape)), matrices).reshape(gradient.shape)


@dataclass(frozen=True)
class MetaCurvature(Preconditioner):
    r"""Meta-Curvature: $MC(G) = G \times_3 M_f \times_2 M_i \times_1 M_o$, then the base optimizer.

    A convolution's gradient has the axes `[output, input, position in the filter]`, a linear layer's the first two.
    The matrices are in `meta` as `"out.NAME"`, `"in.NAME"` and `"filter.NAME"`. The paper's equations are for these
    weights; a vector (a bias, a norm's scale) has one matrix of its output axis here, of which one factor an entry is
    the diagonal case.

    Attributes:
        base: see `Preconditioner`; the paper's is SGD with a fixed rate, `MetaCurvature(lr=0.1)`.
        lr: its rate.

    Reference: Park and Oliva 2019, arXiv:1902.03356, section 3.

    Example:
        >>> shapes = MetaCurvature(lr=0.1).init({"conv.weight": torch.zeros(8, 3, 5, 5), "conv.bias": torch.zeros(8)})
        >>> {name: list(matrix.shape) for name, matrix in shapes.items()}
        {'out.conv.weight': [8, 8], 'in.conv.weight': [3, 3], 'filter.conv.weight': [25, 25], 'out.conv.bias': [8, 8]}
    """

    def folded(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`[output, input, position]`, as far as the parameter has them."""
        size = torch.Size(shape)
        return (*size[:2], size[2:].numel()) if len(size) > 2 else tuple(size) or (1,)

    def axes(self, shape: Sequence[int]) -> tuple[str, ...]:
        """Output, input, filter."""
        return ("out", "in", "filter")[: len(self.folded(shape))]

    def product(self, gradient: Tensor, matrices: Mapping[str, Tensor]) -> Tensor:
        """The mode products along each axis."""
        for axis, matrix in enumerate(matrices.values()):
            gradient = torch.tensordot(matrix, gradient, dims=([1], [axis])).movedim(0, axis)
        return gradient


@dataclass(frozen=True)
class Kronecker(Preconditioner):
    r"""A Kronecker-factored preconditioner: $G \mapsto L G R$, then the base optimizer.

    $G$ is the gradient as a matrix `[first axis, all others]`, so that its entries together are multiplied by the
    Kronecker product $L \otimes R^\top$. A vector is a matrix of one column. The factors are in `meta` as `"left.NAME"`
    and `"right.NAME"`; the right one of a convolution has as many rows as a filter has weights. The paper's
    meta-optimizer is this linear map, or a network of such; here it is the one map.

    Attributes:
        base: see `Preconditioner`.
        lr: its rate.

    Reference: Arnold, Iqbal and Sha 2021, arXiv:1910.13603, section 4.
    """

    def folded(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`[first axis, all others]`."""
        size = torch.Size(shape)
        return (size[0], size[1:].numel()) if size else (1, 1)

    def axes(self, shape: Sequence[int]) -> tuple[str, ...]:
        """Left and right."""
        return ("left", "right")

    def product(self, gradient: Tensor, matrices: Mapping[str, Tensor]) -> Tensor:
        """$L G R$."""
        return matrices["left"] @ gradient @ matrices["right"]
