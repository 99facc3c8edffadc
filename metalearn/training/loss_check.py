"""Whether a loss may be given padded sets: it takes `present`, and counts neither padded rows nor foreign classes."""

import inspect
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.training.guard import blamed
from metalearn.training.padding_check import close, most_padded, perturbed
from metalearn.types import Episodes, Examples, Present, Tensors

_ADVICE = (
    "A loss of padded sets takes (outputs, targets, present) and means over the rows of present.examples "
    "(metalearn.losses.mean_of_present, own_classes)."
)


def check_signature(loss: Any, episodes: Episodes) -> None:
    """Refuses a loss of `(outputs, targets)` where the episodes are padded.

    Raises:
        UsageError: it can not be called with a third argument.
    """
    if not any(map(_is_padded, (episodes.support, episodes.query))):
        return
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # a builtin's may not be known: the call will tell
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise UsageError(
            f"the loss {_name_of(loss)}{signature} takes no third argument, but the episodes of this task are padded. "
            f"{_ADVICE}"
        ) from None


def check_loss(loss: Any, model: FunctionalModel, episodes: Episodes, *, seed: int) -> None:
    """Refuses a loss that is another one with padding than without, on a model's own outputs.

    Raises:
        UsageError: its value or a metric depends on padded rows, or on outputs that are no classes of the episode.
    """
    for number, examples in enumerate((episodes.support, episodes.query)):
        if _is_padded(examples):
            _check_set(loss, model, examples, seed=seed + number)


def _check_set(loss: Any, model: FunctionalModel, examples: Examples, *, seed: int) -> None:
    inputs, targets, present = examples  # type: ignore[misc]
    task = most_padded(examples)
    rows, classes = present.rows[task], present.outputs[task]
    params = perturbed(model.params, seed=seed)  # an untrained head may say the same of every example
    outputs, others = (_output(model, params, each[task]) for each in (inputs, inputs.roll(1, 0)))
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != rows.shape:
        return  # what such a model's loss makes of it is the algorithm's own affair
    own, foreign = targets[task], outputs
    if outputs.shape[1:] == classes.shape:
        foreign = torch.where(classes, outputs, outputs + 1)
    padding = torch.where(rows.reshape(-1, *[1] * (outputs.dim() - 1)), outputs, others + 1)
    with blamed():
        expected = _values(loss(outputs[rows], own[rows], Present(rows[rows], classes)))
        for changed, what in (
            (outputs, "padded rows"),
            (padding, "padded rows"),
            (foreign, "outputs that are no classes of the episode"),
        ):
            _compare(loss, _values(loss(changed, own, Present(rows, classes))), expected, what=what)


def _compare(loss: Any, found: Tensors, expected: Tensors, *, what: str) -> None:
    for name, value in expected.items():
        if not close(found[name], value):
            which = f"the metric {name!r} of {_name_of(loss)}" if name else f"the loss {_name_of(loss)}"
            raise UsageError(f"{which} counts {what}, so padded episodes would not be exact with it. {_ADVICE}")


def _output(model: FunctionalModel, params: Any, inputs: Tensor) -> Any:
    with torch.no_grad(), blamed():
        return model.eval()(params, model.buffers, inputs)[0]


def _values(returned: Any) -> Tensors:
    value, metrics = returned
    return {name: torch.as_tensor(each) for name, each in {"": value, **metrics}.items()}


def _is_padded(examples: Examples) -> bool:
    return len(examples) == 3


def _name_of(loss: Any) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))
