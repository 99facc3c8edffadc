from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import algorithms, execution, losses, metagrad
from metalearn.models import MLP
from metalearn.tasks import Sinusoid
from metalearn.training import Experiment, TrainingSettings

SETTINGS = TrainingSettings(
    num_steps=6,
    batch_size=3,
    device="cpu",
    log_every=2,
    eval_every=2,
    val_episodes=4,
    checkpoint_every=3,
    test_episodes=6,
    test_batch_size=4,
    num_inner_steps_eval=2,
)


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    """A tiny sinusoid experiment; keywords replace parts of it, and of its settings."""

    def make(**changes: Any) -> Experiment:
        numbers = {name: changes.pop(name) for name in list(changes) if name in SETTINGS.__dataclass_fields__}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = MLP(input_shape=(1,), num_outputs=1, hidden=(8,))
        parts: dict[str, Any] = {
            "source": Sinusoid(shots=5, query_shots=5),
            "module": module,
            "algorithm": algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.01, num_inner_steps=1),
            "strategy": metagrad.Unrolled(),
            "execution": execution.Vmap(),
            "outer_optimizer": partial(torch.optim.Adam, lr=1e-2),
            "settings": replace(SETTINGS, **numbers),
            "config": {"meta": {"lr": 1e-2, "num_steps": 6}, "logger": {"name": "none"}},
        }
        return Experiment(**(parts | changes))

    return make


@pytest.fixture
def content() -> Callable[[Path], bytes]:
    """The bytes of a checkpoint's tensors, found by its folder."""

    def read(folder: Path) -> bytes:
        (path,) = folder.glob("tensors-*.safetensors")
        return path.read_bytes()

    return read
