"""Linear systems whose matrix is known by its products alone, with fixed numbers of iterations (for vmap)."""

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix's product with a vector, `[n] -> [n]`."""


def conjugate_gradient(product: Product, right: Tensor, num_iterations: int) -> Tensor:
    r"""$A^{-1} b$ for a positive definite $A$; a direction along which it is solved to rounding adds nothing more.

    Reference: Hestenes and Stiefel 1952.
    """
    solution, residual = torch.zeros_like(right), right
    direction, squared = residual, residual.dot(residual)
    floor = squared * torch.finfo(right.dtype).eps ** 2
    for _ in range(num_iterations):
        image = product(direction)
        going = squared > floor
        length = torch.where(going, squared / _nonzero(direction.dot(image), going), 0.0)
        solution, residual = solution + length * direction, residual - length * image
        before, squared = squared, residual.dot(residual)
        direction = residual + torch.where(going, squared / _nonzero(before, going), 0.0) * direction
    return solution


def neumann_series(product: Product, right: Tensor, num_iterations: int, step_size: float) -> Tensor:
    r"""$\alpha \sum_{j=0}^{J} (I - \alpha A)^j b$, which tends to $A^{-1} b$ where $\alpha \lVert A \rVert < 2$.

    Reference: Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590, Algorithm 3.
    """
    term = total = right
    for _ in range(num_iterations):
        term = term - step_size * product(term)
        total = total + term
    return step_size * total


def direct(product: Product, right: Tensor) -> Tensor:
    r"""$A^{-1} b$ by elimination, with $A$ built from its products with the unit vectors: $n^2$ numbers."""
    matrix = torch.vmap(product)(torch.eye(right.numel(), dtype=right.dtype, device=right.device))
    solution: Tensor = torch.linalg.solve(matrix, right)
    return solution


def _nonzero(value: Tensor, going: Tensor) -> Tensor:
    return torch.where(going, value, 1.0)
