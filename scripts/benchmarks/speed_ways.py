"""Everything that computes the meta-gradient in the speed benchmark: plain torch, other libraries and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import aside, loops
from benchmarks.loops import Gradient, Work
from metalearn import functionalize, losses
from metalearn.algorithms import MAML
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from metalearn.types import Episodes

MOST_STEPS_OF_A_GRAPH = 5
MOST_TASKS_OF_A_MAP = 100


@dataclass(frozen=True)
class Way:
    """A way of computing the meta-gradient.

    Attributes:
        gradient: prepares it for a piece of work.
        of: whose it is: `"torch"`, `"peer"`, `"jax"` or `"ours"`.
        compiles: the first call takes long, and less with a cache on disk.
        left_out: why it is not tried on a piece of work, or None.
        on_gpu_alone: whether it is one of GPUs.
    """

    gradient: Callable[[Work], Gradient]
    of: str
    compiles: bool = False
    left_out: Callable[[Work], str | None] = lambda work: None
    on_gpu_alone: bool = False


def ours(execution: Callable[[], Any]) -> Callable[[Work], Gradient]:
    def made(work: Work) -> Gradient:
        model = functionalize(work.module)
        maml = MAML(loss=getattr(losses, work.loss), inner_lr=work.rate, num_inner_steps=work.num_steps)
        meta, episodes = maml.init(model), Episodes(work.support, work.query)
        gradient = execution().value_and_grad(Unrolled(), maml.problem(model))
        return lambda: list(gradient(meta, episodes).grads.values())

    return made


def _jax(name: str) -> Callable[[Work], Gradient]:
    def made(work: Work) -> Gradient:
        from benchmarks import in_jax  # optional, and slow to import

        gradient: Gradient = getattr(in_jax, name)(work)
        return gradient

    return made


def _long(work: Work) -> str | None:
    if work.num_steps <= MOST_STEPS_OF_A_GRAPH:
        return None
    return f"not compiled: one graph of {work.num_steps} steps takes minutes, as its compile time grows with them"


PLAIN = "plain loop"
WAYS: dict[str, Way] = {
    PLAIN: Way(loops.plain, "torch"),
    "torch.func loop": Way(loops.torch_func, "torch"),
    "torch.func vmap": Way(loops.torch_func_vmap, "torch"),
    "higher": Way(loops.higher, "peer"),
    "TorchOpt": Way(loops.torchopt, "peer"),
    "learn2learn": Way(loops.learn2learn, "peer"),
    "parallel-metalearn vmap": Way(aside.parallel_metalearn("vmap"), "peer"),
    "parallel-metalearn sequential": Way(aside.parallel_metalearn("sequential"), "peer"),
    "JAX jit(vmap)": Way(_jax("by_vmap"), "jax", compiles=True),
    "JAX jit(map)": Way(_jax("by_map"), "jax", compiles=True),
    "Loop": Way(ours(Loop), "ours"),
    "Vmap": Way(ours(Vmap), "ours"),
    "Loop pieces": Way(ours(lambda: Loop(compiled="pieces")), "ours", compiles=True),
    "Vmap pieces": Way(ours(lambda: Vmap(compiled="pieces")), "ours", compiles=True),
    "Vmap pieces, CUDA graph": Way(
        ours(lambda: Vmap(compiled="pieces", cuda_graphs=True)), "ours", compiles=True, on_gpu_alone=True
    ),
    "Vmap pieces, products, CUDA graph": Way(
        ours(lambda: Vmap(compiled="pieces", cuda_graphs=True, convolutions="products")),
        "ours",
        compiles=True,
        on_gpu_alone=True,
    ),
    "Loop whole": Way(ours(lambda: Loop(compiled="whole")), "ours", compiles=True, left_out=_long),
    "Vmap whole": Way(ours(lambda: Vmap(compiled="whole")), "ours", compiles=True, left_out=_long),
}


def names(*, with_peers: bool, device: str = "cpu") -> list[str]:
    """Those that are tried on a device."""
    return [
        name
        for name, way in WAYS.items()
        if (with_peers or way.of in ("torch", "ours")) and not (way.on_gpu_alone and device == "cpu")
    ]


def whose(way: str) -> str:
    return WAYS[way].of if way in WAYS else "other"
