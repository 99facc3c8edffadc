"""Arithmetic that has a derivative everywhere, and rounds as torch.optim does.

Square roots, norms and quotients of optimizers are singular exactly where meta-learning goes: at the first step, for a
dead unit, at a gradient of zero. There the derivative is defined as 0, the smallest of the subgradients of a norm. Each
function computes on a harmless value in place of the singular one *before* the root or the division (the "double
where"), so that no infinite factor is there to meet a zero in the first derivative, nor in the second.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of torch.func or the compiler looks at what is computed."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def has_history(*tensors: Tensor) -> bool:
    """Whether a derivative may be asked of what is computed from these."""
    if is_transformed() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root of what is not negative, with derivative 0 (not infinity) at 0."""
    if not has_history(x):
        return x.sqrt()
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def safe_norm(x: Tensor) -> Tensor:
    """The Euclidean norm of all entries, a scalar, with derivative 0 (not NaN) where all are 0."""
    return safe_sqrt(x.square().sum())


def quotient(numerator: Tensor, denominator: Tensor, eps: float | Tensor) -> Tensor:
    """`numerator / (denominator + eps)`; 0, with derivative 0, where that is a division by zero."""
    denominator = denominator + eps
    if isinstance(eps, float) and eps > 0:
        return numerator / denominator
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def add_scaled(x: Tensor, y: Tensor, factor: Tensor | float) -> Tensor:
    """`x + factor * y`, rounded once as torch.optim does it (`x.add_(y, alpha=factor)` is a fused multiply-add)."""
    if not isinstance(factor, Tensor):
        return torch.add(x, y, alpha=factor)
    if factor.dtype == y.dtype and factor.device == y.device:
        return torch.addcmul(x, y, factor)
    return (x + factor * y).to(x.dtype)  # addcmul takes no other dtype or device


def add_square(x: Tensor, y: Tensor, factor: Tensor | float) -> Tensor:
    """`x + factor * y**2`, rounded as `x.addcmul_(y, y, value=factor)` is."""
    if not isinstance(factor, Tensor):
        return torch.addcmul(x, y, y, value=factor)
    return torch.addcmul(x, factor * y, y)


def lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """`start + weight * (end - start)`, rounded as `start.lerp_(end, weight)` is."""
    mixed: Tensor = torch.lerp(start, end, weight)
    return mixed


def wide(value: Tensor | float, device: torch.device) -> Tensor:
    """As a tensor in double, which torch.optim counts in: at the first step 1 - 0.999 would keep 13 bits in float32."""
    dtype = torch.float32 if device.type == "mps" else torch.float64  # the former has no double
    return value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)


def is_readable(value: Tensor) -> bool:
    """Whether a number can be taken out of a tensor without waiting for a device or breaking a transform."""
    if torch.compiler.is_compiling() or value.device.type != "cpu" or torch._is_functional_tensor(value):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)


def known_values(value: Tensor) -> Tensor | None:
    """The numbers in a tensor, also one that a transform of torch.func has wrapped; None where they can not be read."""
    if torch.compiler.is_compiling():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value.detach() if value.device.type == "cpu" and type(value) in (Tensor, torch.nn.Parameter) else None
