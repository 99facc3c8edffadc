"""Noise on the gradients, as a pure function of a key."""

import hashlib
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.optim.base import CountState, GradientTransformation, check_names, check_state
from metalearn.optim.hypers import ANY, Hypers, Now, hyper_parameters
from metalearn.optim.joining import JOINED_ENTRIES
from metalearn.optim.numerics import as_it_was, as_real, constant_in_compiled, safe_sqrt, wide
from metalearn.optim.transforms import first_count
from metalearn.types import Hyper, Tensors


@hyper_parameters
def add_noise(scale: Hyper, key: int | Tensor, *, decay: Hyper = 0.55) -> GradientTransformation:
    r"""Adds Gaussian noise that fades: $u \leftarrow u + \epsilon$, $\epsilon \sim N(0, \eta / (1 + t)^\gamma)$.

    $t$ is the number of steps done, 0 in the first. A draw is a function of the key, of $t$, of the parameter's name
    and of the entry's place in it, and of nothing else: the same bits in a loop, under vmap, where a strategy computes
    a step again, and in a partition of the parameters. Differentiable in $\eta$ and $\gamma$ (at $\eta = 0$ the
    derivative is defined as 0).

    Args:
        scale: $\eta$, the variance at the first step (0.01, 0.3 and 1 in the paper); a float, a tensor, a dict by
            parameter name or pattern, or a schedule.
        key: an int for a seed, or an int64 scalar, a key of `metalearn.random`, which may be batched by vmap.
        decay: $\gamma$, how fast the variance falls; 0 keeps it.

    Raises:
        UsageError: the scale is negative, or the key is neither.

    Example:
        >>> from metalearn import optim
        >>> optimizer, params = optim.chain(add_noise(0.01, key=0), optim.sgd(0.1)), {"w": torch.zeros(2)}
        >>> first, _ = optimizer.update(params, optimizer.init(params), params)
        >>> again, _ = optimizer.update(params, optimizer.init(params), params)
        >>> torch.equal(first["w"], again["w"]), bool((first["w"] != 0).all())
        (True, True)

    Reference: Neelakantan et al. 2015, arXiv:1511.06807, equation 1.
    """
    hypers = Hypers({"scale": scale, "decay": decay}, {"decay": ANY})
    _check_key(key)

    def update(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, CountState]:
        check_names(updates, params)
        check_state(state, CountState)
        count, now = state.num_steps, hypers.at(state.num_steps)
        of_step = random.fold_in(_as_key(key, count), count)
        draws = {name: draw for group in _groups(updates) for name, draw in _draws(of_step, group, updates).items()}
        deviations = _deviations(now, count, updates)
        noisy = {name: _noisy(value, draws[name], deviations[name]) for name, value in updates.items()}
        return noisy, CountState(count + 1)

    return GradientTransformation(partial(first_count, hypers), update)


@constant_in_compiled
def _number(name: str) -> int:
    # Not the place among the names: it is another one in a group of a partition, and the first of every group's.
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


class _Like(NamedTuple):
    """What tensors have in common that are drawn together, each as the first of `size` numbers."""

    size: int
    dtype: torch.dtype
    device: torch.device


def _groups(updates: Tensors) -> list[tuple[_Like, list[str]]]:
    """Small tensors of about one size together, as a hundred small draws take a hundred times as long as one."""
    groups: dict[tuple[_Like, str], list[str]] = {}
    for name, value in updates.items():
        real = as_real(value)
        # Not in half precision, in which the uniform draws behind it would round to 1, and the noise to infinity.
        dtype = torch.promote_types(real.dtype, torch.float32)
        is_small = real.numel() <= JOINED_ENTRIES
        size = 1 << max(real.numel() - 1, 0).bit_length() if is_small else real.numel()
        groups.setdefault((_Like(size, dtype, real.device), "" if is_small else name), []).append(name)
    return [(like, names) for (like, _), names in groups.items()]


def _draws(of_step: Tensor, group: tuple[_Like, list[str]], updates: Tensors) -> Tensors:
    """The standard normal draws of a group, in the shapes of the (real) updates."""
    like, names = group
    of_step = of_step.to(like.device)
    keys = random.fold_in(of_step, torch.tensor([_number(name) for name in names], device=like.device))
    draws = random.normal(keys, (like.size,), dtype=like.dtype)
    shapes = {name: as_real(updates[name]).shape for name in names}
    return {name: draws[row, : shape.numel()].reshape(shape) for row, (name, shape) in enumerate(shapes.items())}


def _deviations(now: Now, count: Tensor, updates: Tensors) -> Tensors:
    """The standard deviation of each one's noise, in double."""
    if not any(now.has_names(hyper) for hyper in now.values):
        return dict.fromkeys(updates, _deviation(now, next(iter(updates), ""), count))
    return {name: _deviation(now, name, count) for name in updates}


def _deviation(now: Now, name: str, count: Tensor) -> Tensor:
    scale, decay = (wide(now.of(hyper, name), count.device) for hyper in ("scale", "decay"))
    return safe_sqrt(scale) / (1 + wide(count, count.device)) ** (decay / 2)


def _noisy(value: Tensor, draws: Tensor, deviation: Tensor) -> Tensor:
    real = as_real(value)
    if value.is_complex() and deviation.dim() > 0:
        deviation = deviation[..., None]
    return as_it_was(real + deviation.to(device=real.device, dtype=draws.dtype) * draws, value)


def _as_key(key: int | Tensor, like: Tensor) -> Tensor:
    return key.to(like.device) if isinstance(key, Tensor) else random.key(key, device=like.device)


def _check_key(key: int | Tensor) -> None:
    if isinstance(key, Tensor):
        if key.dtype != torch.int64 or key.dim() > 0:
            kind = f"{str(key.dtype).removeprefix('torch.')}{list(key.shape)}"
            raise UsageError(
                f"the key of add_noise is a tensor {kind}: expected an int64 scalar, as metalearn.random.key(seed) is. "
                "A key a task goes through vmap."
            )
    elif isinstance(key, bool) or not isinstance(key, int):
        raise UsageError(f"the key of add_noise is {key!r}: expected an int for a seed, or metalearn.random.key(seed).")
