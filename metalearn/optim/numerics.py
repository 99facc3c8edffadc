"""Arithmetic that has a derivative everywhere, and rounds as torch.optim does.

Square roots, norms and quotients of optimizers are singular exactly where meta-learning goes: at the first step, for a
dead unit, at a gradient of zero. There the derivative is defined as 0, the smallest of the subgradients of a norm. Each
function computes on a harmless value in place of the singular one *before* the root or the division (the "double
where"), so that no infinite factor is there to meet a zero in the first derivative, nor in the second.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

P = ParamSpec("P")
T = TypeVar("T")


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
    used = x != 0  # and not `x > 0`: the root of a negative number is NaN, with history and without
    return torch.where(used, torch.where(used, x, 1.0).sqrt(), 0.0)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of all entries, a real scalar, with derivative 0 (not NaN) where all are 0.

    Halves are squared and added in float32, as torch does, where 256 squared would be infinite in float16.
    """
    real = as_real(x)
    wider = real.float() if real.dtype in (torch.float16, torch.bfloat16) else real
    return safe_sqrt(wider.square().sum())


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, another one as it is."""
    return torch.view_as_real(x) if x.is_complex() else x


def as_it_was(real: Tensor, like: Tensor) -> Tensor:
    """The way back from `as_real`, and to the dtype of `like`."""
    return torch.view_as_complex(real).to(like.dtype) if like.is_complex() else real.to(like.dtype)


def over_root(numerator: Tensor, square: Tensor, eps: float | Tensor, *, scale: float | Tensor = 1.0) -> Tensor:
    """`numerator / (sqrt(square) / scale + eps)`; 0, with derivative 0, where that is a division by zero."""
    is_scaled = isinstance(scale, Tensor) or scale != 1
    numbers = [number for number in (eps, scale) if isinstance(number, Tensor)]
    if has_history(numerator, square, *numbers) or not (isinstance(eps, float) and eps > 0):
        root = safe_sqrt(square)
        return quotient(numerator, root / scale if is_scaled else root, eps)
    # The same in the memory of one tensor, which takes half the time where tensors are large.
    root = square.sqrt()
    root = (root.div_(scale) if is_scaled else root).add_(eps)
    return torch.div(numerator, root, out=root)


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


def decayed_square(square: Tensor, x: Tensor, decay: Tensor | float, new: Tensor | float) -> Tensor:
    """`decay * square + new * x**2`, rounded as `square.mul_(decay).addcmul_(x, x, value=new)` is."""
    kept = decay * square
    if isinstance(new, Tensor):
        return torch.addcmul(kept, new * x, x)
    if has_history(kept, x):
        return torch.addcmul(kept, x, x, value=new)
    return kept.addcmul_(x, x, value=new)  # in the memory of what was just made


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
    return type(value) in (Tensor, torch.nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def known_values(value: Tensor) -> Tensor | None:
    """The numbers in a tensor, also one that a transform of torch.func has wrapped; None where they can not be read."""
    if torch.compiler.is_compiling():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value.detach() if value.device.type == "cpu" and type(value) in (Tensor, torch.nn.Parameter) else None


def constant_in_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """A function of names alone, called once while torch.compile traces a step, which has no regular expressions."""
    # What torch.compiler.assume_constant_result does, without importing the compiler, which takes more than a second.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
