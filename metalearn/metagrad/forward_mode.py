"""The exact gradient by forward derivatives: for few meta-parameters and inner loops of any length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.captured import refuse_captured
from metalearn.diagnosis import explained
from metalearn.errors import UsageError
from metalearn.inner import outer_value
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, constants, refuse_carry, refuse_complex
from metalearn.metagrad.forward import pushforward
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Tensors


@dataclass(frozen=True)
class ForwardMode(Strategy):
    r"""Carries $\partial\theta_j/\partial\mathrm{meta}$ along with the steps: nothing is kept for a way back.

    Memory does not grow with the number of steps, but with the number of meta-parameters: each takes a derivative of
    the whole inner state. For a rate, a penalty, a schedule; not for a learned start.

    Reference: Franceschi, Donini, Frasconi and Pontil 2017, arXiv:1703.01785, section 3.2.

    Attributes:
        chunk_size: at most so many meta-parameters at once, to bound the memory; None for all.
    """

    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UsageError(f"ForwardMode(chunk_size={self.chunk_size}): it must be at least 1, or None for all.")

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; exact, and without a carry."""

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            meta, episode = constants(meta, episode)
            refuse_complex(self, meta)

            def along(direction: Tensor) -> tuple[Tensor, Tensor, Aux]:
                tangents = tree.vector_as(direction, meta)
                value, slope, aux = pushforward(
                    lambda meta: outer_value(problem, meta, episode), (meta,), (tangents,), has_aux=True
                )
                return slope, value, aux

            slopes = []
            with explained(meta):
                for directions in _unit_vectors(meta, self.chunk_size):
                    slope, values, auxes = tree.vmapped(along, directions)
                    slopes.append(slope)
            value, aux = tree.entry((values, auxes), 0)
            refuse_captured(value)
            grads = tree.vector_as(torch.cat(slopes), meta)
            return Outcome(*tree.detach((value, grads, aux)), carry=None)

        return run


def _unit_vectors(meta: Tensors, chunk_size: int | None) -> Iterator[Tensor]:
    """The unit vectors of all the numbers in `meta`, `[direction, number]`, so many at a time."""
    size = sum(value.numel() for value in meta.values())
    first = next(iter(meta.values()))
    for begin in range(0, size, chunk_size or size):
        rows = torch.arange(begin, min(begin + (chunk_size or size), size), device=first.device)
        yield (rows[:, None] == torch.arange(size, device=first.device)).to(first.dtype)
