"""Whether a model may be given padded episodes: its output on a real row must not depend on the padded ones."""

from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.types import Examples

_NUM_TASKS = 8
_TOLERANCE = 1e-3  # float32 sums of another order differ by far less, another statistic by far more


def check_padding(source: Any, model: FunctionalModel, *, split: str, seed: int) -> None:
    """Refuses a model that mixes the rows of a set, where the episodes of `source` are padded.

    Batch norm is not meant: its statistics are taken over the real rows. Attention over the examples, say, is.

    Raises:
        UsageError: other padding gave another output.
    """
    episodes = source.episodes(split, range(_NUM_TASKS), seed=seed)
    for examples in (episodes.support, episodes.query):
        if len(examples) == 3:
            _check_set(examples, model)


def _check_set(examples: Examples, model: FunctionalModel) -> None:
    inputs, _, present = examples  # type: ignore[misc]
    task = int((~present.rows).sum(-1).argmax())  # the one with the most padding
    rows, real = present.rows[task], inputs[task]
    if bool(rows.all()):
        return
    mask = rows.reshape(-1, *[1] * (real.dim() - 1))
    other = torch.where(mask, real, 1 - 2 * real)
    one, two = (_output(model.seeing(rows), each)[rows] for each in (real, other))
    if bool((one - two).abs().max() > _TOLERANCE * (1 + one.abs().max())):
        raise UsageError(
            f"{type(model.module).__name__} mixes the examples of a set (other than by batch norm), so padded episodes "
            "would not be exact with it. Give all episodes one number of ways and shots, or treat examples one by one."
        )


def _output(model: FunctionalModel, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(model.params, model.buffers, inputs)[0]
    return output
