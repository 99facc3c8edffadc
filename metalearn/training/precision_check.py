"""How far a meta-gradient in less than float32 is from that in float32: told by the run itself, for its own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from metalearn import tree
from metalearn.training.laboratory import Laboratory
from metalearn.training.meta_step import Gradient
from metalearn.training.progress import Progress
from metalearn.types import Tensors

SPLIT = "precision"
"""The `split` of these records in metrics.jsonl."""

FIRST = 3
"""So many of the first meta-gradients are compared, and the first one after every validation."""


@dataclass(frozen=True)
class PrecisionCheck:
    """Compares some of a run's meta-gradients with those of the same episodes in float32, computed eagerly.

    Which ones depends on the meta step alone, so that a resumed run finds what the interrupted one would have.

    Attributes:
        laboratory: of the run.
        log: takes the records: `relative_error` and `cosine` at the number of meta steps done.
        progress: told them in words.
    """

    laboratory: Laboratory
    log: Callable[..., None]
    progress: Progress

    def __call__(self, gradient: Gradient) -> None:
        """Looks at a meta-gradient, where it is one to be compared."""
        settings, done = self.laboratory.experiment.settings, gradient.state.step
        if done >= FIRST and not (settings.validates and done % settings.eval_every == 0):
            return
        found = error_of(gradient.outcome.grads, self._exact(gradient))
        self.log(done, found, split=SPLIT)
        precision = precision_of(self.laboratory.experiment.execution)
        self.progress.message(
            f"step {done}: the meta-gradient in {precision} is {found['relative_error']:.2%} off that in float32 "
            f"(cosine {found['cosine']:.4f})"
        )

    def _exact(self, gradient: Gradient) -> Tensors:
        execution = self.laboratory.experiment.execution
        changes: dict[str, Any] = {"precision": "float32"}
        if hasattr(execution, "compiled"):
            changes["compiled"] = None  # a few gradients are not worth a compilation
        problem = self.laboratory.train_problem(gradient.state.buffers, gradient.state.step)
        function = replace(execution, **changes).value_and_grad(gradient.strategy, problem)
        grads: Tensors = function(gradient.state.meta, gradient.episodes, gradient.carry).grads
        return grads


def error_of(grads: Tensors, exact: Tensors) -> dict[str, float]:
    r"""The relative error in norm, $\lVert g - h \rVert / \lVert h \rVert$, and the cosine of the angle between them.

    Example:
        >>> import torch
        >>> error_of({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([3.0, 4.0])})["relative_error"]
        0.2
    """
    found, wanted = (_as_vector(grads[name] for name in exact), _as_vector(exact.values()))
    error = (found - wanted).norm() / wanted.norm()
    cosine = found @ wanted / (found.norm() * wanted.norm())
    return {"relative_error": float(error), "cosine": float(cosine)}


def precision_of(execution: Any) -> str:
    """The precision of an execution's meta-gradients."""
    return str(getattr(execution, "precision", "float32"))


def precision_card(execution: Any, records: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What the protocol card says of it: also the errors that the run found, by the meta steps done."""
    names = ("step", "relative_error", "cosine")
    errors = [{name: record.get(name) for name in names} for record in records if record.get("split") == SPLIT]
    card: dict[str, Any] = {"precision": precision_of(execution), "precision_at_test": "float32"}
    return card | ({"precision_errors": errors} if errors else {})


def _as_vector(tensors: Iterable[Tensor]) -> Tensor:
    # In float64: the comparison is to add no error of its own.
    return tree.to_vector({str(number): each.detach().double() for number, each in enumerate(tensors)})
