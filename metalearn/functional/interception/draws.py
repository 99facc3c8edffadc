"""Functions that draw, with the draws taken from a key; those without a keyed form are refused.

A key is used up by a call, whatever it draws, so the same call gets the same bits in a loop, under vmap and in a
recomputation. They are not torch's bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.functional.interception import keyed
from metalearn.functional.interception.call import Call


def no_keyed_form(func: Any) -> UsageError:
    """The error for a function that draws, and that has no replacement here."""
    name = REFUSED.get(func, func.__name__)
    return UsageError(
        f"forward calls {name}, which draws from torch's hidden generator, and metalearn has no keyed "
        "form of it: use torch.rand_like or torch.randn_like there, or model.eval() if only training draws."
    )


def refuse_generator(name: str, generator: torch.Generator | None) -> None:
    """Raises for a generator: its state is hidden, changes with each call and is not part of a recomputation."""
    if generator is not None:
        raise UsageError(
            f"forward gives {name} a torch.Generator, whose state is hidden from the call. Leave `generator` out: the "
            "numbers then come from the key in buffers['rng']."
        )


def _given(
    name: str,
    drawn: Tensor,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
    requires_grad: bool = False,
    generator: torch.Generator | None = None,
    **layout: Any,
) -> Tensor:
    """What was drawn, as the options of torch's factories ask; those of the memory's layout change no value."""
    refuse_generator(name, generator)
    if out is not None:
        return out.copy_(drawn)
    drawn = drawn.to(device=device, dtype=dtype)
    return drawn.requires_grad_() if requires_grad else drawn


def _shaped(name: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(call: Call, *size: Any, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any) -> Tensor:
        shape = kwargs.pop("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        out = kwargs.get("out")
        dtype = dtype or (torch.get_default_dtype() if out is None else out.dtype)
        values = draw(call.draw(), tuple(shape), dtype=dtype)
        return _given(name, values, device=device or torch.get_default_device(), **kwargs)

    return drawn


def _like(name: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(call: Call, input: Tensor, *, dtype: torch.dtype | None = None, device: Any = None, **kw: Any) -> Tensor:
        values = draw(call.draw(), input.shape, dtype=dtype or input.dtype)
        return _given(name, values, device=device or input.device, **kw)

    return drawn


def _bounds(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, tuple[Any, ...]]:
    """The range of a randint, `(high, …)` or `(low, high, …)`, and the arguments after it."""
    low, high, rest = kwargs.pop("low", None), kwargs.pop("high", None), [*args]
    ints = [value for value in rest[:2] if not isinstance(value, Sequence)]
    rest = rest[len(ints) :]
    if high is None:
        high = ints.pop()
    low = int(ints.pop() if ints else low or 0)
    if int(high) <= low:
        raise UsageError(f"{name} draws from low to high - 1, got low={low} and high={int(high)}.")
    return low, int(high), tuple(rest)


def _randint(call: Call, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    low, high, rest = _bounds("torch.randint", args, kwargs)
    shape = kwargs.pop("size") if "size" in kwargs else rest[0]
    drawn = keyed.integers(call.draw(), low, high, tuple(shape))
    return _given("torch.randint", drawn, device=device or torch.get_default_device(), **kwargs)


def _randint_like(
    call: Call, input: Tensor, *args: Any, dtype: Any = None, device: Any = None, **kwargs: Any
) -> Tensor:
    low, high, _ = _bounds("torch.randint_like", args, kwargs)
    drawn = keyed.integers(call.draw(), low, high, input.shape)
    return _given("torch.randint_like", drawn, dtype=dtype or input.dtype, device=device or input.device, **kwargs)


def _randperm(call: Call, n: int, *, device: Any = None, **kwargs: Any) -> Tensor:
    drawn = keyed.permutation(call.draw(), n)
    return _given("torch.randperm", drawn, device=device or torch.get_default_device(), **kwargs)


def _normal(
    call: Call, mean: Tensor | float, std: Tensor | float = 1.0, size: Any = None, *, dtype: Any = None, **kwargs: Any
) -> Tensor:
    # The mean and the deviation get no gradient, as in torch: `mean + std * torch.randn_like(mean)` has one.
    mean, std = (value.detach() if isinstance(value, Tensor) else value for value in (mean, std))
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    shape = tuple(size) if size is not None else torch.broadcast_shapes(*(each.shape for each in tensors))  # type: ignore[no-untyped-call]
    dtype = dtype or (tensors[0].dtype if tensors else torch.get_default_dtype())
    device = kwargs.pop("device", None) or (tensors[0].device if tensors else torch.get_default_device())
    return _given("torch.normal", mean + std * keyed.normal(call.draw(), shape, dtype=dtype).to(device), **kwargs)


def _multinomial(call: Call, input: Tensor, num_samples: int, replacement: bool = False, **kwargs: Any) -> Tensor:
    weights = input.detach()
    if not replacement and num_samples > weights.shape[-1]:
        raise UsageError(
            f"torch.multinomial can not draw {num_samples} of {weights.shape[-1]} categories without replacement: "
            "pass replacement=True, or draw fewer."
        )
    drawn = keyed.categories(call.draw().to(weights.device), weights, num_samples, replacement=replacement)
    possible = weights.gather(-1, drawn) > 0
    # What can not be read (under vmap, compiled) can not be refused: such draws are -1, which no index accepts.
    if _readable(possible) and not possible.all():
        raise UsageError(
            "torch.multinomial has fewer categories of positive probability than draws without replacement, or none."
        )
    return _given("torch.multinomial", torch.where(possible, drawn, -1), **kwargs)


def _bernoulli(call: Call, input: Tensor, p: float | None = None, **kwargs: Any) -> Tensor:
    drawn = random.uniform(call.draw(), input.shape).to(input.device) < (input.detach() if p is None else p)
    return _given("torch.bernoulli", drawn.to(input.dtype), **kwargs)


def _gumbel_softmax(
    call: Call, logits: Tensor, tau: float = 1.0, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    noise = -keyed.exponential(call.draw(), logits.shape, dtype=logits.dtype).to(logits).log()
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    chosen = soft.argmax(dim, keepdim=True)
    one_hot = torch.zeros_like(soft).scatter(dim, chosen, torch.ones_like(soft))
    return one_hot - soft.detach() + soft


def _readable(value: Tensor) -> bool:
    return not torch._C._functorch.is_functorch_wrapped_tensor(value) and not torch.compiler.is_compiling()


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.rand_like: _like("torch.rand_like", keyed.uniform),
    torch.randn_like: _like("torch.randn_like", keyed.normal),
    torch.rand: _shaped("torch.rand", keyed.uniform),
    torch.randn: _shaped("torch.randn", keyed.normal),
    torch.randint: _randint,
    torch.randint_like: _randint_like,
    torch.randperm: _randperm,
    torch.normal: _normal,
    torch.multinomial: _multinomial,
    Tensor.multinomial: _multinomial,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    F.gumbel_softmax: _gumbel_softmax,
}

# Exact forms of these draw until a number is accepted: how often differs from value to value.
REFUSED: dict[Any, str] = {
    torch.poisson: "torch.poisson",
    torch.binomial: "torch.binomial",
    torch._standard_gamma: "torch._standard_gamma (the distributions Gamma, Chi2, StudentT, NegativeBinomial …)",
    torch._sample_dirichlet: "torch._sample_dirichlet (the distributions Dirichlet and Beta)",
    torch._fused_dropout: "torch._fused_dropout",
}
