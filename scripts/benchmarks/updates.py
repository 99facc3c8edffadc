"""One step of an optimizer on given gradients, without history: ours, torch.optim's and TorchOpt's.

Ours returns new tensors, torch.optim writes into the parameters and its state; TorchOpt does either.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn import optim
from metalearn.types import Tensors

NUM_CHECKED = 5
MOST_ERROR = {"float32": 1e-5, "float64": 1e-9}
MOST_OF_OTHERS = 1e-3
"""TorchOpt's bias correction of Adam is in single precision: another 1e-5, and the same work."""


def _conv4() -> list[tuple[int, ...]]:
    layers = [(64, 1 if layer == 0 else 64, 3, 3) for layer in range(4)]
    return [shape for conv in layers for shape in (conv, (64,), (64,), (64,))] + [(5, 64), (5,)]


def _resnet18() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for wide in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(wide, width, 3, 3), (wide,), (wide,), (wide, wide, 3, 3), (wide,), (wide,)]
            if block == 0 and wide != width:
                shapes += [(wide, width, 1, 1), (wide,), (wide,)]
            width = wide
    return [*shapes, (1000, 512), (1000,)]


SIZES: dict[str, list[tuple[int, ...]]] = {
    "100 of [64]": [(64,)] * 100,
    "Conv-4-64": _conv4(),
    "ResNet-18": _resnet18(),
    "4 of [1000, 1000]": [(1000, 1000)] * 4,
}

HYPERS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 1e-3, "momentum": 0.9},
    "adam": {"lr": 1e-3, "eps": 1e-8},
    "adamw": {"lr": 1e-3, "eps": 1e-8, "weight_decay": 1e-2},
    "rmsprop": {"lr": 1e-3, "alpha": 0.99, "eps": 1e-8},
    "adagrad": {"lr": 1e-2, "eps": 1e-10},
    "adamax": {"lr": 1e-3, "eps": 1e-8},
}
"""Given to all alike: the libraries' own defaults differ."""

_TORCH = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad, "adamax": torch.optim.Adamax,
}  # fmt: skip
_FUSED = ("sgd", "adam", "adamw", "adagrad")

Step = Callable[[], list[Tensor]]
"""One step on the same gradients as before; the parameters after it."""


def ours(name: str, params: Tensors, grads: Tensors) -> Step:
    return _ours(name, params, grads, lambda step: step)


def ours_compiled(name: str, params: Tensors, grads: Tensors) -> Step:
    torch.compiler.reset()  # the limit of recompilations counts those of other optimizers
    return _ours(name, params, grads, torch.compile)


def _ours(name: str, params: Tensors, grads: Tensors, compiled: Callable[..., Any]) -> Step:
    optimizer = getattr(optim, name)(**HYPERS[name])
    one_step = compiled(optimizer.step)
    held = [params, optimizer.init(params)]

    def step() -> list[Tensor]:
        with torch.no_grad():
            held[0], _, held[1] = one_step(grads, held[1], held[0])
        return list(held[0].values())

    return step


def of_torch(**options: Any) -> Callable[[str, Tensors, Tensors], Step]:
    def prepared(name: str, params: Tensors, grads: Tensors) -> Step:
        leaves = [value.clone().requires_grad_() for value in params.values()]
        for leaf, grad in zip(leaves, grads.values(), strict=True):
            leaf.grad = grad.clone()
        optimizer = _TORCH[name](leaves, **HYPERS[name], **options)

        def step() -> list[Tensor]:
            optimizer.step()
            return leaves

        return step

    return prepared


def of_torchopt(*, inplace: bool) -> Callable[[str, Tensors, Tensors], Step]:
    def prepared(name: str, params: Tensors, grads: Tensors) -> Step:
        import torchopt

        optimizer = getattr(torchopt, name)(**HYPERS[name])
        held = [{key: value.clone() for key, value in params.items()}]
        held.append(optimizer.init(held[0]))

        def step() -> list[Tensor]:
            with torch.no_grad():
                updates, held[1] = optimizer.update(grads, held[1], params=held[0], inplace=inplace)
                held[0] = torchopt.apply_updates(held[0], updates, inplace=inplace)
            return list(held[0].values())

        return step

    return prepared


OURS = "metalearn"
IN_PLACE = "TorchOpt, in place"
REFERENCE = "torch.optim, foreach"
WAYS: dict[str, Callable[[str, Tensors, Tensors], Step]] = {
    OURS: ours,
    "torch.optim": of_torch(foreach=False),
    REFERENCE: of_torch(foreach=True),
    "torch.optim, fused": of_torch(foreach=False, fused=True),
}
PEERS: dict[str, Callable[[str, Tensors, Tensors], Step]] = {
    "TorchOpt": of_torchopt(inplace=False),
    IN_PLACE: of_torchopt(inplace=True),
}


def restored(grads: Tensors) -> Callable[[], object]:
    """Puts the gradients back that TorchOpt has written into."""
    kept = [value.clone() for value in grads.values()]
    return lambda: torch._foreach_copy_(list(grads.values()), kept)


COMPILED = {"metalearn, compiled": ours_compiled}
"""For the two that are used the most: compiling takes up to half a minute a row."""


def ways_of(name: str, *, with_peers: bool, with_compiled: bool) -> dict[str, Callable[[str, Tensors, Tensors], Step]]:
    ways = {way: make for way, make in WAYS.items() if "fused" not in way or name in _FUSED}
    compiled = COMPILED if with_compiled and name in ("sgd", "adam") else {}
    return {**ways, **compiled, **(PEERS if with_peers else {})}


def work(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """Parameters and gradients."""
    generator = torch.Generator().manual_seed(0)
    params, grads = (
        {f"p{i}": torch.randn(shape, generator=generator, dtype=dtype) for i, shape in enumerate(shapes)}
        for _ in range(2)
    )
    return params, grads


def errors(name: str, way: Callable[[str, Tensors, Tensors], Step]) -> dict[str, float]:
    """How far the parameters after some steps are from torch.optim's, relative to how far these have moved."""
    found = {}
    for dtype in MOST_ERROR:
        params, grads = work([(64,), (), (8, 3), (200, 100)], getattr(torch, dtype))
        expected, got, again = of_torch(foreach=False)(name, params, grads), way(name, params, grads), restored(grads)
        for _ in range(NUM_CHECKED):
            again()
            there, here = expected(), got()
        start = torch.cat([value.flatten() for value in params.values()])
        moved = [torch.cat([value.detach().flatten() for value in values]) - start for values in (there, here)]
        found[dtype] = float((moved[1] - moved[0]).norm() / moved[0].norm())
    return found


def require_equal(name: str, found: dict[str, dict[str, float]]) -> None:
    """Ends the benchmark where a way is not torch.optim's optimizer."""
    for way, of_way in found.items():
        for dtype, most in MOST_ERROR.items():
            if not of_way[dtype] <= (MOST_OF_OTHERS if way in PEERS else most):
                raise SystemExit(f"bench: {name} of {way} is another optimizer (relative errors {of_way})")
