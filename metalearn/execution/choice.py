"""The fixed rule that names a way of running tasks when the user does not."""

import torch
from torch import nn

from metalearn.errors import UsageError, did_you_mean
from metalearn.execution.base import BufferPolicy, Execution, NonfinitePolicy
from metalearn.execution.loop import Loop
from metalearn.execution.vmap import Vmap

TASKS = ("auto", "loop", "vmap")


def choose(
    tasks: str,
    *,
    model: nn.Module,
    device: torch.device | str,
    chunk_size: int | None = None,
    buffers: BufferPolicy = "mean",
    nonfinite: NonfinitePolicy = "stop",
    task_clip: float | None = None,
) -> Execution:
    """The way of running tasks called `tasks`.

    `"auto"` follows a fixed rule, so that a run repeats: a loop for a model with convolutions on a CPU, where vmap
    turns them into slower grouped ones; `vmap` otherwise.

    Raises:
        UsageError: an unknown name, or a chunk size for a loop.
    """
    if tasks not in TASKS:
        raise UsageError(f"execution.tasks={tasks!r} is not a way of running tasks. {did_you_mean(tasks, TASKS)}")
    if tasks == "auto":
        has_convolution = any(isinstance(part, nn.modules.conv._ConvNd) for part in model.modules())
        tasks = "loop" if has_convolution and torch.device(device).type == "cpu" else "vmap"
    if tasks == "vmap":
        return Vmap(chunk_size=chunk_size, buffers=buffers, nonfinite=nonfinite, task_clip=task_clip)
    if chunk_size is not None:
        raise UsageError(
            "execution.chunk_size is for vmap, but tasks run in a loop: set execution.tasks=vmap, or no size."
        )
    return Loop(buffers=buffers, nonfinite=nonfinite, task_clip=task_clip)
