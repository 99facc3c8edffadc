"""Packing and padding of sequences, which vmap can not run: where each value goes does not depend on the values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.functional.interception.call import Call
from metalearn.functional.interception.decisions import agreed


def sizes_of(batch_sizes: Tensor) -> list[int]:
    """How many sequences are still there at each step of a packed sequence."""
    return [int(size) for size in _shared(batch_sizes).tolist()]


def _pack(call: Call, input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    padded = input.transpose(0, 1) if batch_first else input
    positions = torch.arange(padded.shape[0] * padded.shape[1], device=input.device).reshape(padded.shape[:2])
    chosen, batch_sizes = torch._pack_padded_sequence(positions, _shared(lengths), False)
    return padded.flatten(0, 1).index_select(0, chosen), batch_sizes


def _unpack(
    call: Call, data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(sizes_of(batch_sizes))
    row = torch.arange(int(sizes[0]))
    there = row < sizes[:, None]
    # Where each value of `[time, row]` is, after one row of padding.
    chosen = torch.zeros(total_length, len(row), dtype=torch.int64)
    chosen[: len(sizes)] = torch.where(there, (sizes.cumsum(0) - sizes)[:, None] + row + 1, 0)
    with_padding = torch.cat((data.new_full((1, *data.shape[1:]), padding_value), data))
    padded = with_padding.index_select(0, chosen.flatten().to(data.device)).reshape(*chosen.shape, *data.shape[1:])
    return padded.transpose(0, 1) if batch_first else padded, there.sum(0)


def _pad(
    call: Call, sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:  # fmt: skip
    longest = max(len(each) for each in sequences)
    rows = []
    for each in sequences:
        missing = longest - len(each)
        ends = [0, missing] if padding_side == "right" else [missing, 0]
        rows.append(F.pad(each, [0, 0] * (each.dim() - 1) + ends, value=padding_value))
    return torch.stack(rows, 0 if batch_first else 1)


def _shared(lengths: Tensor) -> Tensor:
    """The lengths or sizes of all tasks, which decide what is computed."""
    values = agreed(lengths)
    if values is None:
        raise UsageError(
            "the lengths of packed sequences differ from task to task, which torch.vmap can not run. Run tasks one "
            "after another (execution.tasks=loop, metalearn.execution.Loop()), or pad sequences and mask their ends."
        )
    return values


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch._pack_padded_sequence: _pack,
    torch._pad_packed_sequence: _unpack,
    torch._C._nn.pad_sequence: _pad,
}
