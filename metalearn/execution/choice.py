"""The fixed rules that name a way of running tasks, and of compiling it, when the user does not."""

from typing import Any, TypeAlias

import torch
from torch import nn

from metalearn.compilation import Convolutions
from metalearn.errors import UsageError, did_you_mean
from metalearn.execution.base import BufferPolicy, Execution, NonfinitePolicy
from metalearn.execution.compiled import COMPILED_AS, CompiledAs
from metalearn.execution.loop import Loop
from metalearn.execution.precision import Precision, check_precision
from metalearn.execution.recorded import check_cuda_graphs
from metalearn.execution.vmap import Vmap
from metalearn.metagrad import Auto, Strategy
from metalearn.problem import Problem

TASKS = ("auto", "loop", "vmap")

WIDE, WIDE_COMPILED = 200_000, 50_000
"""Entries of one parameter from which on vmap, which holds it once for each task, falls out of a CPU's caches."""

Compile: TypeAlias = bool | str
"""False, True (the rule's choice), "pieces" or "whole"."""


def choose(
    tasks: str,
    *,
    model: nn.Module,
    device: torch.device | str,
    chunk_size: int | None = None,
    buffers: BufferPolicy = "mean",
    nonfinite: NonfinitePolicy = "stop",
    task_clip: float | None = None,
    precision: Precision = "float32",
    compile: Compile = False,
    convolutions: Convolutions = "grouped",
    cuda_graphs: bool = False,
    strategy: Any = None,
    num_inner_steps: int = 1,
) -> Execution:
    """The way of running tasks called `tasks`, compiled as `compile` says.

    `"auto"` follows a fixed rule, so that a run repeats; see `tasks_by_rule`.

    Args:
        tasks: `"auto"`, `"loop"` or `"vmap"`.
        model: of which the rule wants to know what layers it has, and how wide they are.
        device: where it runs.
        chunk_size: see `Vmap`.
        buffers: see `Execution`, as the four below.
        nonfinite: what becomes of a task whose gradient is no number.
        task_clip: the largest norm of one task's gradient.
        precision: of the arithmetic.
        compile: see `compiled_as`.
        convolutions: see `Execution`.
        cuda_graphs: see `Execution`.
        strategy: how the meta-gradient flows; asked for where something is to be compiled.
        num_inner_steps: of an episode; likewise.

    Raises:
        UsageError: an unknown name, a chunk size for a loop, a precision or CUDA graphs that the device does not have,
            what only compiled code does where nothing is compiled, or compiled pieces of a strategy that has none.
    """
    check_precision(precision, torch.device(device))
    check_cuda_graphs(torch.device(device) if cuda_graphs else None)
    if tasks not in TASKS:
        raise UsageError(f"execution.tasks={tasks!r} is not a way of running tasks. {did_you_mean(tasks, TASKS)}")
    compiled = compiled_as(compile, strategy=strategy, num_inner_steps=num_inner_steps)
    if tasks == "auto":
        tasks = tasks_by_rule(model, device, compiled=compiled is not None)
    settings: dict[str, Any] = {
        "buffers": buffers, "nonfinite": nonfinite, "task_clip": task_clip, "precision": precision,
        "compiled": compiled, "convolutions": convolutions, "cuda_graphs": cuda_graphs,
    }  # fmt: skip
    if tasks == "vmap":
        return Vmap(chunk_size=chunk_size, **settings)
    if chunk_size is not None:
        raise UsageError(
            "execution.chunk_size is for vmap, but tasks run in a loop: set execution.tasks=vmap, or no size."
        )
    return Loop(**settings)


def tasks_by_rule(model: nn.Module, device: torch.device | str, *, compiled: bool = False) -> str:
    """`"loop"` or `"vmap"`: what was faster in `experiments/speed`, as a rule without a clock.

    On a GPU it is vmap. On a CPU it is a loop

    - for a model with convolutions, which vmap turns into slower grouped ones;
    - for one with a parameter of `WIDE` entries (a layer of 450 by 450), compiled `WIDE_COMPILED` (225 by 225): of such
      a layer the tasks' copies do not fit into the caches together;
    - for a compiled one with a recurrent layer, whose step vmap makes too long for the compiler;

    and vmap otherwise. The copies are those of adapted parameters, which the rule does not know: where wide layers are
    shared by the tasks, as ANIL's, `execution.tasks=vmap` can be faster.

    Example:
        >>> [tasks_by_rule(nn.Linear(width, width), "cpu") for width in (40, 640)]
        ['vmap', 'loop']
        >>> tasks_by_rule(nn.Linear(640, 640), "cuda")
        'vmap'
    """
    if torch.device(device).type != "cpu":
        return "vmap"
    slow = (nn.modules.conv._ConvNd, nn.RNNBase) if compiled else (nn.modules.conv._ConvNd,)
    widest = max((value.numel() for value in model.parameters()), default=0)
    is_wide = widest >= (WIDE_COMPILED if compiled else WIDE)
    return "loop" if is_wide or any(isinstance(part, slow) for part in model.modules()) else "vmap"


def compiled_as(compile: Compile, *, strategy: Any, num_inner_steps: int) -> CompiledAs | None:
    """What `execution.compile` stands for.

    The rule for `True`: one graph, `"whole"`, for at most one inner step and for a strategy that is no walk through the
    steps and back (`Strategy.unrolling`), which has no pieces; else `"pieces"`, whose compile time does not grow with
    the steps. It looks at no clock, so that a run repeats.

    Raises:
        UsageError: an unknown name; pieces of a strategy that has none.

    Example:
        >>> from metalearn.metagrad import ForwardMode, Unrolled
        >>> [compiled_as(True, strategy=Unrolled(), num_inner_steps=count) for count in (1, 5)]
        ['whole', 'pieces']
        >>> compiled_as(True, strategy=ForwardMode(), num_inner_steps=5)
        'whole'
    """
    if compile is False:
        return None
    if compile is True:
        return "pieces" if num_inner_steps > 1 and is_walk(strategy) else "whole"
    for name in COMPILED_AS:
        if compile == name:
            if name == "pieces" and strategy is not None and not is_walk(strategy):
                raise UsageError(
                    f"execution.compile=pieces is for strategies that walk through the inner steps and back, and "
                    f"{type(strategy).__name__} does not: take execution.compile=whole, or metagrad=unrolled."
                )
            return name
    hint = did_you_mean(str(compile), ["false", "true", *COMPILED_AS])
    raise UsageError(f"execution.compile={compile!r} is not a way of compiling. {hint}")


def is_walk(strategy: Any) -> bool:
    """Whether a strategy's gradient is a walk through the inner steps and back, which can be compiled in pieces."""
    if isinstance(strategy, Auto):
        return True  # each of those that it chooses from is one
    return isinstance(strategy, Strategy) and strategy.unrolling(_NEVER_RUN) is not None


def _never(*args: Any) -> Any:
    raise AssertionError("this problem is only asked about")


_NEVER_RUN = Problem(init=_never, inner_loss=_never, optimizer=_never, outer_loss=_never, num_inner_steps=2)
