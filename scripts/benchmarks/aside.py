"""parallel-metalearn's MAML on the work of `loops`. Its package is called `metalearn` too, so it is imported aside."""

import copy
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from benchmarks.loops import LOSSES, Gradient, Work

FOLDER = Path(sys.prefix) / "aside"
"""Where scripts/peers.sh installs it: outside what Python's path names, where it would hide this library."""

_NAME = "metalearn"
_PARTS = {
    "algorithms": "algorithms", "inner_optimizers": "inner_optimizers", "losses": "loss.base",
    "model_wrappers": "model_wrappers", "nn_models": "nn_models", "norms": "nn_models.basic_layers.BatchNormalization",
}  # fmt: skip


def imported_aside(folder: Path) -> dict[str, ModuleType]:
    """The other package's modules by name; `import metalearn` goes on to mean this library."""
    if not (folder / _NAME).is_dir():
        raise ModuleNotFoundError(f"parallel-metalearn is not installed in {folder}")
    ours = _taken_out()
    sys.path.insert(0, str(folder))
    try:
        return {part: import_module(f"{_NAME}.{module}") for part, module in _PARTS.items()}
    finally:
        sys.path.remove(str(folder))
        _taken_out()
        sys.modules.update(ours)


def _taken_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == _NAME]
    return {name: sys.modules.pop(name) for name in names}


class _Alone(nn.Module):
    """A module that ignores the keywords with which the library calls every part of a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **options: Any) -> Any:
        return self.module(x)


class _Keeps:
    """In the place of the outer optimizer: the gradient stays at the parameters, which stay as they are."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params

    def zero_grad(self) -> None:
        for param in self.params:
            param.grad = None

    def step(self) -> None:
        pass


def parallel_metalearn(backend: str) -> Callable[[Work], Gradient]:
    """With tasks by `"vmap"`, its default, or `"sequential"`."""

    def made(work: Work) -> Gradient:
        library = imported_aside(FOLDER)
        module = _translated(library, work.module)
        model = library["model_wrappers"].MAML_Model(backbone=_Alone(module), head=_Alone(nn.Identity()))
        params = list(module.parameters())
        sgd = library["inner_optimizers"].InnerSGD(model.get_fast_weights(), inner_lr=work.rate, learn_lr=False)
        for rate in sgd.lrs.values():
            rate.data = params[0].new_full((1,), work.rate).detach()
        maml = library["algorithms"].MAML(
            model=model, optimizer=_Keeps(params), inner_optimizer=sgd, support_loss_fn=_loss(library, work),
            inner_steps=work.num_steps, chunk_size=work.num_tasks, device=params[0].device, backend=backend,
        )  # fmt: skip

        def run() -> list[Tensor]:
            maml.step(iter([(*work.support, *work.query)]))
            return [param.grad for param in params]  # type: ignore[misc]

        return run

    return made


def _translated(library: dict[str, ModuleType], module: nn.Module) -> nn.Module:
    """A copy of the model in which batch norms and LSTMs are the library's own, as it asks for.

    Its translation of batch norms names an argument that they do not have (0.5.6), so these are put in here.
    """
    copied = copy.deepcopy(module)
    for name, part in list(copied.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            own = library["norms"].BatchNorm(part.num_features, eps=part.eps, track_running_stats=False)
            copied.set_submodule(name, own)
    like = next(module.parameters())
    translated: nn.Module = library["nn_models"].ModelTranslator.convert_to_functional(copied).to(like)
    for param, value in zip(translated.parameters(), module.parameters(), strict=True):
        if param.shape != value.shape:
            raise TypeError("its translation of the model has other parameters")
        param.data.copy_(value.data)
    return translated


def _loss(library: dict[str, ModuleType], work: Work) -> nn.Module:
    class Loss(library["losses"].BaseLoss):  # type: ignore[name-defined, misc]
        def forward(
            self, out_dict: dict[str, Tensor], targets: Tensor, model_states: Any = None, **options: Any
        ) -> tuple[Tensor, Tensor]:
            loss = LOSSES[work.loss](out_dict["logits"], targets)
            return loss, loss.detach()  # the metric, which nothing reads

    return Loss()
