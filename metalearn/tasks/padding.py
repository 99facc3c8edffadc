"""Episodes of several sizes in one batch: padded to the largest, with masks of what is real."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.types import Episodes, Examples, Present

NO_LABEL = -100
"""The label of a padded row: what torch's own losses ignore."""


def pad_examples(examples: Examples, *, num_examples: int, num_outputs: int, own_outputs: int) -> Examples:
    """A set with exactly `num_examples` rows, padded at the end, and its masks.

    Args:
        examples: `(inputs, targets)` or `(inputs, targets, Present)`, tensors `[task, example, ...]`.
        num_examples: rows of the result, at least those of the set.
        num_outputs: the outputs of the model that it is for.
        own_outputs: the outputs that its own source has, at most `num_outputs`: of labels, those above are no classes.
    """
    inputs, targets = examples[:2]
    is_label = not targets.is_floating_point()
    present = examples[2] if len(examples) == 3 else _all_present(targets, own_outputs)
    padding = inputs[:, :1].expand(-1, num_examples - inputs.shape[1], *inputs.shape[2:])
    return (
        torch.cat([inputs, padding], dim=1),
        _longer(targets, num_examples, NO_LABEL if is_label else 0),
        Present(_longer(present.rows, num_examples, False), _longer(present.outputs, num_outputs, not is_label)),
    )


def _all_present(targets: Tensor, num_outputs: int) -> Present:
    ones = torch.ones(1, dtype=torch.bool, device=targets.device)
    return Present(ones.expand(targets.shape[:2]), ones.expand(len(targets), num_outputs))


def unpadded(examples: Examples) -> Examples:
    """One task's set (no task axis) without its padding; outputs that are no classes stay outputs of the model."""
    if len(examples) == 2:
        return examples
    inputs, targets, present = examples
    return inputs[present.examples], targets[present.examples]


def merge(
    parts: Sequence[Episodes], positions: Sequence[Tensor], *, own_outputs: Sequence[int], num_outputs: int
) -> Episodes:
    """One batch out of batches of several sources, padded to the largest where they differ.

    Args:
        parts: batches, tensors `[task, example, ...]`.
        positions: of each part's tasks in the result, int64 `[task]`; together 0 … the number of tasks - 1.
        own_outputs: the outputs that each part's source has.
        num_outputs: the outputs of the model that they are all for.
    """
    order = torch.argsort(torch.cat(list(positions)))

    def joined(sets: Sequence[Examples], *, pad: bool) -> Any:
        longest = max(one[1].shape[1] for one in sets)
        if pad:
            sets = [
                pad_examples(one, num_examples=longest, num_outputs=num_outputs, own_outputs=own)
                for one, own in zip(sets, own_outputs, strict=True)
            ]
        # Nests of one structure, leaf by leaf.
        flat = [tree.flatten(one) for one in sets]
        return tree.unflatten(
            [torch.cat(leaves)[order] for leaves in zip(*(leaves for leaves, _ in flat), strict=True)], flat[0][1]
        )

    pad = (
        set(own_outputs) != {num_outputs}
        or any(len(each) == 3 for part in parts for each in (part.support, part.query))
        or len({(part.support[1].shape[1], part.query[1].shape[1]) for part in parts}) > 1
    )
    keys = [part.key for part in parts if part.key is not None]
    return Episodes(
        support=joined([part.support for part in parts], pad=pad),
        query=joined([part.query for part in parts], pad=pad),
        key=torch.cat(keys)[order] if len(keys) == len(parts) else None,
    )


def _longer(values: Tensor, length: int, fill: float) -> Tensor:
    missing = length - values.shape[1]
    if missing == 0:
        return values
    return torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), fill)], dim=1)
