"""A tensor that requires grad and is captured instead of passed is refused by every strategy, wherever it is used."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import Problem, UsageError, metagrad, optim
from metalearn.execution import Loop, Vmap
from tests import problems

STRATEGIES = {
    "unrolled": metagrad.Unrolled(),
    "truncated, nothing cut": metagrad.Truncated(9),
    "truncated": metagrad.Truncated(1),
    "windows": metagrad.Truncated(2, windows=True),
    "first order": metagrad.FirstOrder(),
    "stepwise": metagrad.Stepwise(),
    "stepwise, every 2": metagrad.Stepwise(2),
    "stepwise, forward": metagrad.Stepwise(mode="forward"),
    "implicit": metagrad.Implicit(),
    "forward mode": metagrad.ForwardMode(),
    "evolution": metagrad.EvolutionStrategies(num_pairs=2),
    "persistent evolution": metagrad.PersistentEvolutionStrategies(2, num_pairs=2),
    "reptile": metagrad.Reptile(),
}
WAYS = {"alone": None, "loop": Loop(), "vmap": Vmap()}


def _times(function: Any, factor: Tensor, *, from_step: int = 0) -> Any:
    def scaled(*args: Any) -> Any:
        loss, aux = function(*args)
        return (loss * factor if args[-1] >= from_step else loss), aux

    return scaled


def _in_a_buffer(problem: Problem, factor: Tensor) -> Problem:
    def inner_loss(meta, params, buffers, batch, step):
        loss, aux = problem.inner_loss(meta, params, buffers, batch, step)
        return loss * buffers["factor"], aux

    return replace(
        problem,
        init=lambda meta, episode: ({"w": meta["init"]}, {"factor": factor * 1.0}),
        inner_loss=inner_loss,
    )


USES = {
    "outer loss": lambda problem, it: replace(problem, outer_loss=_times(problem.outer_loss, it)),
    "inner loss": lambda problem, it: replace(problem, inner_loss=_times(problem.inner_loss, it)),
    "optimizer": lambda problem, it: replace(problem, optimizer=lambda meta: optim.sgd(meta["lr"] * it)),
    "start": lambda problem, it: replace(problem, init=lambda meta, episode: ({"w": meta["init"] * it}, {})),
    "buffer": _in_a_buffer,
    "batch": lambda problem, it: replace(
        problem, batch=lambda episode, step: (episode.support[0] * it, episode.support[1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_refused(strategy: str, use: str, way: str) -> None:
    problem, meta = problems.ridge_problem(num_inner_steps=3)
    captured = USES[use](problem, torch.tensor(1.1, dtype=torch.float64, requires_grad=True))
    execution, chosen, episodes = WAYS[way], STRATEGIES[strategy], problems.values()
    alone = execution is None
    run = chosen.value_and_grad(captured) if alone else execution.value_and_grad(chosen, captured)
    with pytest.raises(UsageError, match="not passed to it"):
        run(meta, problems.one(episodes) if alone else episodes)


LATER = {
    "inner loss": lambda problem, it: replace(problem, inner_loss=_times(problem.inner_loss, it, from_step=2)),
    "optimizer": lambda problem, it: replace(
        problem, optimizer=lambda meta: optim.sgd(lambda count: meta["lr"] * (it if int(count) == 2 else 1.0))
    ),
    "weight of the loss": lambda problem, it: replace(problem, outer_weights=(0.2, 0.3, it)),
}


@pytest.mark.parametrize("use", LATER)
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if "stepwise" in name] + ["unrolled", "forward mode"])
def test_it_is_refused_when_a_later_step_alone_uses_it(strategy: str, use: str) -> None:
    problem, meta = problems.ridge_problem(num_inner_steps=3)
    captured = LATER[use](problem, torch.tensor(1.1, dtype=torch.float64, requires_grad=True))
    with pytest.raises(UsageError, match="not passed to it"):
        STRATEGIES[strategy].value_and_grad(captured)(meta, problems.one(problems.values()))
