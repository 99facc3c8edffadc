"""The strategy that a plan recommends."""

from dataclasses import dataclass
from typing import Any

import torch

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy
from metalearn.metagrad.planning import Plan, plan
from metalearn.metagrad.stepwise import Stepwise
from metalearn.metagrad.unrolled import Unrolled
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors

CANDIDATES: tuple[Strategy, ...] = (Unrolled(), Stepwise(), Stepwise(every="sqrt"))
"""What is chosen from: exact strategies for any number of meta-parameters, the fastest first."""


@dataclass(frozen=True)
class Auto(Strategy):
    """The fastest exact strategy whose predicted peak fits into the memory (`metalearn.metagrad.plan`).

    Training asks once, before its first step, and keeps the answer in the run directory (`metagrad.json`), so that a
    resumed run goes on with it. Used by itself, it plans at its first call, which can not be inside vmap.

    Attributes:
        memory_gb: what may be used, in units of 1e9 bytes; by default four fifths of what the device has free.
    """

    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise UsageError(f"Auto(memory_gb={self.memory_gb}): it must be above 0, or None for what is free.")

    def plan(self, problem: Problem, meta: Tensors, episode: Episode, *, num_tasks: int = 1) -> Plan:
        """The plan that the choice is made by, `Plan.recommended`; arguments as in `metalearn.metagrad.plan`."""
        memory = None if self.memory_gb is None else int(self.memory_gb * 1e9)
        return plan(problem, meta, episode, num_tasks=num_tasks, memory=memory, strategies=CANDIDATES)

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; exact, and without a carry."""
        chosen: list[MetaGradient] = []

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            if not chosen:
                if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tree.tensors((meta, episode)))):
                    raise UsageError(
                        "Auto can not measure inside vmap. Choose before: strategy = Auto().plan(problem, meta, "
                        "episode, num_tasks=...).recommended."
                    )
                chosen.append(self.plan(problem, meta, episode).recommended.value_and_grad(problem))
            return chosen[0](meta, episode, carry)

        return run
