"""Other people's random code made a function of a key: the global generators are seeded for it and then put back."""

import random as python_random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch

_lock = RLock()  # the generators are the process's: two threads that seed them in turn would get each other's draws


@contextmanager
def borrowed_generators() -> Iterator[Callable[[int], None]]:
    """Python's, NumPy's and torch's global generators, to be seeded by the function yielded; afterwards as before.

    CUDA's generators are among them once CUDA is in use.
    """
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators

    def seed(key: int) -> None:
        # Not torch.manual_seed: it would also seed CUDA's generators of a later start of CUDA.
        for generator in generators:
            generator.manual_seed(key)
        python_random.seed(key % 2**64)  # Python takes a negative seed for its absolute value
        np.random.seed(key % 2**32)

    with _lock:
        states = [generator.get_state() for generator in generators]
        python_state, numpy_state = python_random.getstate(), np.random.get_state()
        try:
            yield seed
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            python_random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """`borrowed_generators` with one seed for all that happens within.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(1)
        >>> with seeded(3):
        ...     bool(torch.rand(1) == first)
        True
    """
    with borrowed_generators() as seed:
        seed(key)
        yield
