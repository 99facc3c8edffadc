"""Runs on the same episodes: what makes them the same, and that others are found."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import Sinusoid
from metalearn.training import SilentProgress, train
from metalearn.training.pairing import Contestant, check_same_episodes, fingerprints, measure_together
from metalearn.types import Episodes, Present


def episodes(**changes: torch.Tensor) -> Episodes:
    x, y = torch.arange(24.0).reshape(2, 3, 4), torch.arange(6).reshape(2, 3)
    return Episodes(support=(changes.get("x", x), y), query=(x, changes.get("y", y)))


def test_a_fingerprint_is_of_an_episode_alone_and_of_all_that_is_in_it() -> None:
    found = fingerprints(episodes())
    assert found.shape == (2,)
    x, y = episodes().support
    for changed in ({"x": x.flip(1)}, {"y": y.flip(1)}, {"x": x + 1e-3}):
        assert (fingerprints(episodes(**changed)) != found).all()
    one = Episodes(*((x[1:], y[1:]) for x, y in (episodes().support, episodes().query)))
    assert fingerprints(one) == found[1:]
    rows = Present(examples=torch.tensor([[True, True, False]] * 2), outputs=torch.ones(2, 5, dtype=torch.bool))
    assert (fingerprints(Episodes(support=(x, y, rows), query=(x, y))) != found).all()


class Wandering(Sinusoid):
    """Episodes that depend on how many were drawn before, which none may."""

    drawn = 0

    def episodes(self, split: str, indices: Any, *, seed: int = 0) -> Episodes:
        type(self).drawn += 1
        return super().episodes(split, indices, seed=seed + (type(self).drawn > 3))


def contestants(folder: Path, make_experiment: Any, *sources: Any, **numbers: Any) -> list[Contestant]:
    train(make_experiment(), folder)
    return [
        Contestant(name=name, experiment=make_experiment(source=source, **numbers), checkpoint=folder)
        for name, source in zip("ABC", sources, strict=False)
    ]


def test_values_are_of_the_same_episodes(tmp_path: Path, make_experiment) -> None:
    source = partial(Sinusoid, shots=5, query_shots=5)
    first, second = contestants(tmp_path, make_experiment, source(), source(), test_seed=3)
    second = replace(second, experiment=replace(second.experiment, settings=replace(
        second.experiment.settings, seed=8, num_inner_steps_eval=4)))  # fmt: skip
    a, b = measure_together([first, second], split="test", progress=SilentProgress())
    assert a.values["loss"].shape == (6, 3)
    assert b.values["loss"].shape == (6, 5)
    assert torch.equal(a.values["loss"], b.values["loss"][:, :3])
    assert a.data["protocol"]["episodes_seed"] == b.data["protocol"]["episodes_seed"] == 3


def test_episodes_that_differ_later_are_found(tmp_path: Path, make_experiment) -> None:
    runs = contestants(tmp_path, make_experiment, Sinusoid(shots=5, query_shots=5), Wandering(shots=5, query_shots=5))
    Wandering.drawn = 0
    with pytest.raises(UsageError, match=r"A and B were measured on other episodes, though the first ones agreed"):
        measure_together(runs, split="test", progress=SilentProgress())


def test_tasks_that_say_the_same_and_are_not_are_found(tmp_path: Path, make_experiment) -> None:
    source = partial(Sinusoid, shots=5, query_shots=5)
    runs = contestants(tmp_path, make_experiment, source(), source())
    Wandering.drawn = 9
    runs[1] = replace(runs[1], experiment=replace(runs[1].experiment, source=Wandering(shots=5, query_shots=5)))
    with pytest.raises(UsageError, match="tasks that say the same of themselves, but draw other episodes"):
        check_same_episodes(runs, split="test")
    with pytest.raises(UsageError, match="Did you mean 'val'"):
        check_same_episodes(runs, split="vall")
