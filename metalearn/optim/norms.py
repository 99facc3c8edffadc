"""The size of a tensor of a transformation's, of any dtype."""

import torch
from torch import Tensor

from metalearn.optim.numerics import safe_norm


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of all entries, a real scalar, with derivative 0 (not NaN) where all are 0.

    Halves are squared and added in float32, as torch does, where 256 squared would be infinite in float16.
    """
    real = as_real(x)
    return safe_norm(real.float() if real.dtype in (torch.float16, torch.bfloat16) else real)


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, another one as it is."""
    return torch.view_as_real(x) if x.is_complex() else x


def as_it_was(real: Tensor, like: Tensor) -> Tensor:
    """The way back from `as_real`, and to the dtype of `like`."""
    return torch.view_as_complex(real).to(like.dtype) if like.is_complex() else real.to(like.dtype)
