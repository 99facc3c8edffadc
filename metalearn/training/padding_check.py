"""Whether a model may be given padded episodes: its output on a real row must be the one without any padding."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from metalearn import random, tree
from metalearn.errors import UsageError
from metalearn.functional import RNG, FunctionalModel
from metalearn.training.guard import blamed
from metalearn.types import Episodes, Examples, Tensors

_TOLERANCE = 1e-3  # float32 sums of another order differ by far less, another statistic by far more


def check_padding(episodes: Episodes, model: FunctionalModel, *, seed: int) -> None:
    """Refuses a model that mixes the rows of a set, where the episodes are padded.

    Batch norm is not meant: its statistics are taken over the real rows. Attention over the examples, say, is.
    Both sets are tried in training and in evaluation mode, at the model's parameters and at parameters next to them.

    Raises:
        UsageError: the output on a real row, or a buffer, is another one with padding than without.
    """
    for number, examples in enumerate((episodes.support, episodes.query)):
        if len(examples) == 3 and not bool(examples[2].rows.all()):
            params = (model.params, perturbed(model.params, seed=seed + number))
            for each in params:
                _check_set(examples, model.train(), each)
                _check_set(examples, model.eval(), each)


def perturbed(params: Tensors, *, seed: int) -> Tensors:
    """The parameters with noise of about the size of an initialisation.

    Many models start with a branch that does nothing yet (a zero, a gate that is closed): it has to be seen at work.
    """
    key = random.key(seed)
    return {
        name: value + _spread(value) * random.normal(random.fold_in(key, number), value.shape).to(value)
        if value.is_floating_point()
        else value
        for number, (name, value) in enumerate(params.items())
    }


def most_padded(examples: Examples) -> int:
    """The task with the most padding, of those with two real rows or more where there is one.

    A batch norm without padding refuses a single row.
    """
    rows = examples[2].rows  # type: ignore[misc]
    several = rows.sum(-1) > 1
    return int(((~rows).sum(-1) * 2 + (several & ~rows.all(-1)) * 2 * rows.shape[1]).argmax())


def _spread(value: Tensor) -> float:
    return 0.3 if value.dim() < 2 else 1 / math.sqrt(max(1, value.shape[1:].numel()))


def _check_set(examples: Examples, model: FunctionalModel, params: Tensors) -> None:
    task = most_padded(examples)
    rows = examples[2].rows[task]  # type: ignore[misc]
    count = int(rows.sum())
    variants = _variants(examples[0], rows, task)
    expected, *others = (_result(model, params, inputs, real, count) for inputs, real in variants)
    if not all(_alike(each, expected) for each in others):
        raise UsageError(
            f"{type(model.module).__name__} mixes the examples of a set (other than by batch norm), so padded episodes "
            "would not be exact with it. Give all episodes one number of ways and shots, treat examples one by one, or "
            "run tasks without padding (execution.tasks=loop)."
        )


def _variants(inputs: Tensor, rows: Tensor, task: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """One task's inputs, and which of them are real: without padding, with it, with other padding, with more of it."""
    own, count = inputs[task], int(rows.sum())
    if count > 1:
        yield own[:count], None
    yield own, rows
    # Another task's rows: padding of any content that the model may meet. Negated pixels or tokens it never does.
    yield torch.cat([own[:count], inputs.roll(1, 0)[task][count:]]), rows
    yield torch.cat([own, own[count:]]), torch.cat([rows, rows[count:]])


def _result(model: FunctionalModel, params: Tensors, inputs: Tensor, rows: Tensor | None, count: int) -> list[Tensor]:
    """The outputs of the real rows, and the buffers that the model leaves behind."""
    with torch.no_grad(), blamed():
        output, buffers = model.seeing(rows)(params, model.buffers, inputs)
    kept = [buffers[name] for name in sorted(buffers) if name != RNG]
    return [each[:count] if each.dim() else each for each in tree.tensors(output)] + kept


def _alike(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(close, found, expected))


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are the same up to the order of sums; what is no number in one has to be none in both."""
    if found.shape != expected.shape:
        return False
    one, two = found.double(), expected.double()
    same = (one == two) | (one.isnan() & two.isnan())
    finite = two[two.isfinite()]
    tolerance = _TOLERANCE * (1 + (float(finite.abs().max()) if finite.numel() else 0.0))
    # `<=` and not `>`: no comparison with a NaN is true.
    return bool((same | ((one - two).abs() <= tolerance)).all())
