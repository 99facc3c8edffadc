"""Draws that no key governs: a forward that takes numbers from Python's, numpy's or torch's own global generator.

torch functions that draw are replaced or refused by name (`interception`). What goes past torch functions (numpy, a
scripted function) would be other noise in a recomputation, and the same for all tasks under vmap.
"""

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from metalearn.errors import UsageError


@contextmanager
def refused_hidden_draws() -> Iterator[None]:
    """Within it, a draw from a global generator is an error at the end.

    Where other threads run nothing is said, because they may be who has drawn.
    """
    if threading.active_count() > 1 or torch.compiler.is_compiling():
        yield
        return
    before = _states()
    yield
    for name, state in _states().items():
        if name in before and state != before[name]:
            raise UsageError(
                f"forward draws from {name}, which the key in buffers['rng'] does not govern: a recomputed step and "
                "other tasks would not get their own numbers. Draw with torch functions there (torch.rand, "
                "torch.randint, F.dropout …), or use model.eval() if only training draws."
            )


def _states() -> dict[str, Any]:
    with torch._C._DisableFuncTorch(), torch._C.DisableTorchFunction():
        found: dict[str, Any] = {
            "Python's random": random.getstate(),
            "torch's global generator": torch.default_generator.get_state().tolist(),
        }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *position = numpy.random.get_state()
        found["numpy.random"] = (kind, keys.tobytes(), *position)
    return found
