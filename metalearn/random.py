"""Randomness without hidden state: a key is an int64 scalar tensor, and every draw is a pure function of a key.

The bits depend on the key and on the position in the output alone. They are the same in a loop, under `vmap`, in a
recomputation, on every device and in every version, which a generator object can not promise.

Keys are mixed with splitmix64 (Steele, Lea and Flood, 2014), a bijection of 64 bits. Bulk bits come from a 32-bit
avalanche hash (the "lowbias32" constants of Wellons' hash-prospector) of the position, applied twice with a half of
the mixed key each time. The bulk stays in int32 because an int64 hash compiled by inductor corrupted memory at
some sizes (torch 2.13).

A few keys cost torch as much as thousands: it is the number of its calls that counts. So what is small, on the CPU and
in no transform, is computed by NumPy, and constants as Python integers: the same integers.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_LOWBIAS_1 = 0x7FEB352D
_LOWBIAS_2 = 0x846CA68B - (1 << 32)


def key(seed: int | Tensor, *data: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """A key from a seed. Seeds 0, 1, 2 … give unrelated streams; a tensor of seeds gives a tensor of keys.

    With `data` it is `fold_in(fold_in(key(seed), data[0]), data[1])` …, cheaper.

    Example:
        >>> int(key(0)) == int(key(0)), int(key(0)) == int(key(1))
        (True, False)
        >>> int(key(0, 5)) == int(fold_in(key(0), 5))
        True
    """
    rest = list(data)
    if _is_int64(seed):
        number = _mixed(seed)
        while rest and _is_int64(first := rest[0]):
            number = _mixed(_mixed(number) ^ _mixed(first))
            del rest[0]
        # Filled in on the device: a number that is sent there makes the host wait.
        root = torch.full((), number, dtype=torch.int64, device=device)
    else:
        root = _splitmix64(torch.as_tensor(seed, dtype=torch.int64, device=device))
    for each in rest:
        root = fold_in(root, each)
    return root


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A new key from a key and a number: `fold_in(key, 0)`, `fold_in(key, 1)` … are unrelated. Both broadcast."""
    if _is_int64(data):
        if _is_for_numpy(key, key.numel()):
            mixed = _numpy_splitmix64(_flat(key))
            mixed ^= np.uint64(_mixed(data) & _MASK)
            return _unflat(_numpy_splitmix64(mixed), key)
        return _splitmix64(_splitmix64(key) ^ _mixed(data))
    return _splitmix64(_splitmix64(key) ^ _splitmix64(torch.as_tensor(data, dtype=torch.int64, device=key.device)))


def bits(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform int32 bits of `shape`; for keys of shape `[...]` the result is `[..., *shape]`.

    Example:
        >>> bits(key(0), (3,)).dtype
        torch.int32
    """
    if _is_for_numpy(key, key.numel() * math.prod(shape)):
        return torch.from_numpy(_numpy_bits(key, shape).view(np.int32)).reshape((*key.shape, *shape))
    mixed = _splitmix64(key)
    low, high = _word(mixed), _word(mixed >> 32)
    position = torch.arange(math.prod(shape), dtype=torch.int32, device=key.device)
    hashed = _lowbias32(_lowbias32(position ^ low[..., None]) ^ high[..., None])
    return hashed.reshape((*key.shape, *shape))


def uniform(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform draws on [0, 1) with 24 random bits each; shapes as in `bits`."""
    if dtype in _NUMPY_FLOATS and _is_for_numpy(key, key.numel() * math.prod(shape)):
        drawn = (_numpy_bits(key, shape) >> np.uint32(8)).astype(_NUMPY_FLOATS[dtype])
        drawn *= 2.0**-24
        return torch.from_numpy(drawn).reshape((*key.shape, *shape))
    return ((bits(key, shape) >> 8) & 0xFFFFFF).to(dtype) * 2.0**-24


def normal(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal draws by the Box-Muller transform; shapes as in `bits`."""
    radius = (-2 * torch.log(1 - uniform(fold_in(key, 0), shape, dtype=dtype))).sqrt()
    return radius * torch.cos(2 * math.pi * uniform(fold_in(key, 1), shape, dtype=dtype))


def bernoulli(key: Tensor, probability: float | Tensor, shape: Sequence[int]) -> Tensor:
    """Booleans that are true with `probability`; shapes as in `bits`."""
    return uniform(key, shape) < probability


def integers(key: Tensor, high: int, shape: Sequence[int]) -> Tensor:
    """Uniform int64 draws from 0 … high - 1 (bias below high / 2**24); shapes as in `bits`."""
    return (uniform(key, shape, dtype=torch.float64) * high).to(torch.int64)


_DENSE = 5000
"""Up to so many numbers to choose from, each gets a random rank; above, that would cost more than it gives."""


def choose(key: Tensor, population: int | Tensor, count: int, *, largest: int | None = None) -> Tensor:
    """`count` different numbers of 0 … population - 1 in random order, `[..., count]` for keys of shape `[...]`.

    Args:
        key: int64 keys `[...]`.
        population: how many numbers there are to choose from: one for all, or int64 of the shape of `key`.
        count: how many are chosen, at most the population.
        largest: with a tensor of populations, the largest there can be, so that none has to be read.
    """
    if isinstance(population, int):
        largest = population
        if count > population:
            raise ValueError(f"can not choose {count} different numbers out of {population}")
    if largest is None:
        raise ValueError("populations in a tensor need `largest`, a bound of them all")
    sizes = torch.as_tensor(population, device=key.device)[..., None]
    return (_choose_ranked if largest <= _DENSE else _choose_floyd)(key, sizes, count, largest)


def _choose_ranked(key: Tensor, sizes: Tensor, count: int, largest: int) -> Tensor:
    # The smallest of distinct values: position breaks ties, so every device chooses the same, and no sort is needed.
    position = torch.arange(largest, device=key.device)
    ranked = bits(key, (largest,)).to(torch.int64) * largest + position
    ranked = torch.where(position < sizes, ranked, torch.iinfo(torch.int64).max)
    return ranked.topk(count, dim=-1, largest=False).values % largest


def _choose_floyd(key: Tensor, sizes: Tensor, count: int, largest: int) -> Tensor:
    # Floyd's algorithm (Bentley and Floyd 1987): work by the count and not by the population. The bias of a scaled
    # 32-bit draw is below population / 2**32. Its order favours large numbers at the end, so it is shuffled.
    draws = bits(fold_in(key, 0), (count,)).to(torch.int64) & 0xFFFFFFFF
    chosen = torch.full((*key.shape, count), -1, dtype=torch.int64, device=key.device)
    for step in range(count):
        last = sizes - count + step
        drawn = (draws[..., step : step + 1] * (last + 1)) >> 32
        taken = (chosen[..., :step] == drawn).any(-1, keepdim=True)
        chosen[..., step : step + 1] = torch.where(taken, last, drawn)
    return chosen.gather(-1, _choose_ranked(fold_in(key, 1), torch.full_like(sizes, count), count, count))


def _splitmix64(state: Tensor) -> Tensor:
    if _is_for_numpy(state, state.numel()):
        return _unflat(_numpy_splitmix64(_flat(state)), state)
    state = state + _GOLDEN
    state = (state ^ _logical_shift(state, 30, 64)) * _MIX_1
    state = (state ^ _logical_shift(state, 27, 64)) * _MIX_2
    return state ^ _logical_shift(state, 31, 64)


def _lowbias32(state: Tensor) -> Tensor:
    state = (state ^ _logical_shift(state, 16, 32)) * _LOWBIAS_1
    state = (state ^ _logical_shift(state, 15, 32)) * _LOWBIAS_2
    return state ^ _logical_shift(state, 16, 32)


def _logical_shift(state: Tensor, count: int, width: int) -> Tensor:
    # torch's >> keeps the sign: mask what it shifts in.
    return (state >> count) & ((1 << (width - count)) - 1)


def _word(state: Tensor) -> Tensor:
    # Sign-preserving narrowing of the low 32 bits: `.to(int32)` of a value out of range is undefined on some devices.
    low = state & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


_SMALL = 1 << 16
"""Above so many numbers torch's threads gain more than its calls cost."""

_NUMPY_FLOATS: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


def _is_for_numpy(tensor: Tensor, size: int) -> bool:
    if size > _SMALL or type(tensor) is not Tensor or tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Inside a transform, or where something watches torch's calls, they have to be torch's.
    watched = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    return not watched and torch._C._functorch.peek_interpreter_stack() is None


def _flat(key: Tensor) -> Any:
    """Keys as uint64 along one axis: operations on arrays of no axis warn of the overflow that is meant here."""
    return key.numpy().reshape(-1).view(np.uint64)


def _unflat(keys: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(keys.view(np.int64)).view(like.shape)


def _numpy_splitmix64(state: Any) -> Any:
    mixed = state + _ADD
    mixed ^= mixed >> _30
    mixed *= _TIMES_1
    mixed ^= mixed >> _27
    mixed *= _TIMES_2
    mixed ^= mixed >> _31
    return mixed


def _numpy_bits(key: Tensor, shape: Sequence[int]) -> Any:
    """`bits` as uint32, `[key, position]`."""
    mixed = _numpy_splitmix64(_flat(key))[:, None]
    hashed = np.arange(math.prod(shape), dtype=np.uint32) ^ mixed.astype(np.uint32)
    _numpy_lowbias32(hashed)
    hashed ^= (mixed >> _32).astype(np.uint32)
    _numpy_lowbias32(hashed)
    return hashed


def _numpy_lowbias32(state: Any) -> None:
    state ^= state >> _HALF
    state *= _WORD_1
    state ^= state >> _15
    state *= _WORD_2
    state ^= state >> _HALF


_MASK = (1 << 64) - 1
_ADD, _TIMES_1, _TIMES_2 = (np.uint64(number & _MASK) for number in (_GOLDEN, _MIX_1, _MIX_2))
_30, _27, _31, _32 = (np.uint64(count) for count in (30, 27, 31, 32))
_WORD_1, _WORD_2 = (np.uint32(number & 0xFFFFFFFF) for number in (_LOWBIAS_1, _LOWBIAS_2))
_HALF, _15 = np.uint32(16), np.uint32(15)


def _is_int64(number: Any) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and -(1 << 63) <= number < 1 << 63


def _mixed(number: int) -> int:
    """`_splitmix64` of one number."""
    state = (number + _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
    state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
    state ^= state >> 31
    return state - (1 << 64) if state >> 63 else state
