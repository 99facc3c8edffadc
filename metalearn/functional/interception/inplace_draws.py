"""Draws in place: keyed values are copied into the tensor, whose history they end, as in torch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import random
from metalearn.errors import UsageError
from metalearn.functional.interception import keyed
from metalearn.functional.interception.call import Call
from metalearn.functional.interception.draws import refuse_generator
from metalearn.functional.ownership import vmap_levels


def _inplace(name: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method `draw(key, x, *parameters)` that fills x.

    Under vmap torch refuses to write tasks' values into a tensor without a task axis. A call then runs once more, with
    such an axis in all tensors that forward makes, so `torch.empty(3).normal_()` works.
    """

    def drawn(call: Call, x: Tensor, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
        refuse_generator(name, generator)
        values = draw(call.draw().to(x.device), x, *args, **kwargs)
        if call.zero is not None and not vmap_levels(values) <= vmap_levels(x):
            raise UsageError(
                f"forward fills a tensor that all tasks share with each task's own numbers ({name}), which torch.vmap "
                f"can not do: fill a new one, torch.empty_like(x).{name}(…)."
            )
        return x.copy_(values)

    return drawn


def _uniform(key: Tensor, x: Tensor, a: float = 0.0, b: float = 1.0, **named: float) -> Tensor:
    low, high = named.get("from", a), named.get("to", b)
    return low + (high - low) * keyed.uniform(key, x.shape, dtype=x.dtype)


def _normal(key: Tensor, x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * keyed.normal(key, x.shape, dtype=x.dtype)


def _log_normal(key: Tensor, x: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return _normal(key, x, mean, std).exp()


def _exponential(key: Tensor, x: Tensor, lambd: float = 1.0) -> Tensor:
    return keyed.exponential(key, x.shape, dtype=x.dtype) / lambd


def _cauchy(key: Tensor, x: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (keyed.inner(key, x.shape, dtype=x.dtype) - 0.5))


def _geometric(key: Tensor, x: Tensor, p: float) -> Tensor:
    if not 0.0 < p < 1.0:
        raise ValueError(f"geometric_ expects p to be in (0, 1), but got p={p}")
    return (keyed.inner(key, x.shape, dtype=x.dtype).log() / math.log1p(-p)).floor() + 1


def _bernoulli(key: Tensor, x: Tensor, p: float | Tensor = 0.5) -> Tensor:
    return random.uniform(key, x.shape) < (p.detach() if isinstance(p, Tensor) else p)


_FLOAT_DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def _random(key: Tensor, x: Tensor, *bounds: int | None, **named: int | None) -> Tensor:
    """`random_()`, `random_(to)` or `random_(from, to)`; without an end, all numbers that the type holds exactly."""
    low, high = (*bounds, None)[:2] if len(bounds) > 1 else (0, bounds[0] if bounds else None)
    low, high = named.get("from", low), named.get("to", high)
    if high is None:
        high = 1 << _FLOAT_DIGITS[x.dtype] if x.is_floating_point() else torch.iinfo(x.dtype).max
    return keyed.integers(key, low or 0, high, x.shape)


_METHODS: dict[str, Callable[..., Tensor]] = {
    "uniform_": _uniform, "normal_": _normal, "log_normal_": _log_normal, "exponential_": _exponential,
    "cauchy_": _cauchy, "geometric_": _geometric, "bernoulli_": _bernoulli, "random_": _random,
}  # fmt: skip
_FILL = {name: _inplace(name, draw) for name, draw in _METHODS.items()}


def _init_uniform(call: Call, tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    with torch.no_grad():
        return _FILL["uniform_"](call, tensor, a, b, generator=generator)


def _init_normal(call: Call, tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    with torch.no_grad():
        return _FILL["normal_"](call, tensor, mean, std, generator=generator)


def _init_kaiming_uniform(
    call: Call, tensor: Tensor, a: float = 0, mode: Any = "fan_in", nonlinearity: Any = "leaky_relu",
    generator: Any = None,
) -> Tensor:  # fmt: skip
    fan = nn.init._calculate_correct_fan(tensor, mode)
    bound = math.sqrt(3.0 / fan) * nn.init.calculate_gain(nonlinearity, a)
    return _init_uniform(call, tensor, -bound, bound, generator)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    **{getattr(Tensor, name): fill for name, fill in _FILL.items()},
    # torch switches a mode off inside these three; the other initialisers are seen through.
    nn.init.uniform_: _init_uniform,
    nn.init.normal_: _init_normal,
    nn.init.kaiming_uniform_: _init_kaiming_uniform,
}
