"""An episode is a function of (split, index, seed): of nothing else, and of each of the three."""

import random as python_random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy
import torch
from torch import Tensor

from metalearn.tasks.checks import Finding, batch_findings, real_rows
from metalearn.types import Episodes

_FROM_INDEX = (
    "Draw from metalearn.random with metalearn.tasks.base.episode_keys(split, indices, …), or from a generator of "
    "the episode's own: numpy.random.default_rng([seed, index])."
)


class Broken(Exception):  # noqa: N818 - it carries a finding to the list of them
    """The source raised: nothing more can be asked of it.

    Attributes:
        finding: which says so.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@dataclass(frozen=True)
class Draws:
    """Asks a source for episodes, and turns what it raises into a finding.

    Attributes:
        source: the task source.
        num_episodes: of a batch, by default.
        seed: of the episodes, by default.
    """

    source: Any
    num_episodes: int
    seed: int

    def __call__(
        self, split: str, indices: Sequence[int] | None = None, *, seed: int | None = None, source: Any = None
    ) -> Episodes:
        """The episodes of `split`, from `source` where another one is given; `Broken` where they are no episodes."""
        source = self.source if source is None else source
        indices = range(self.num_episodes) if indices is None else indices
        found = self.unchecked(split, indices, seed=seed, source=source)
        # Every batch, before anything is taken apart: a later one may have another form than the first.
        findings = batch_findings(source, found, num_tasks=len(indices))
        if findings:
            which = f"{indices}, seed={self.seed if seed is None else seed}"
            first = findings[0]
            raise Broken(replace(first, text=f"in episodes({split!r}, {which}), {first.text}"))
        return found

    def unchecked(
        self, split: str, indices: Sequence[int] | None = None, *, seed: int | None = None, source: Any = None
    ) -> Episodes:
        """The same before any look at what the source returned."""
        source = self.source if source is None else source
        indices = range(self.num_episodes) if indices is None else indices
        seed = self.seed if seed is None else seed
        try:
            found: Episodes = source.episodes(split, indices, seed=seed)
        except (Exception, SystemExit) as error:
            text = f"episodes({split!r}, {indices}, seed={seed}) raised {type(error).__name__}: {error}."
            fix = "It has to take any list of whole numbers. The traceback is above this error."
            raise Broken(Finding("raises", text, fix, error)) from error
        return found


def contents(episodes: Episodes, task: int) -> list[Tensor]:
    """One task's real inputs and targets, on the CPU."""
    parts: list[Tensor] = []
    for examples in (episodes.support, episodes.query):
        rows = real_rows(examples)[task]
        parts += [part[task][rows].cpu() for part in examples[:2]]
    return parts


def equal(one: Episodes, task: int, other: Episodes, other_task: int) -> bool:
    """Whether two tasks have the same bits."""
    return all(map(torch.equal, contents(one, task), contents(other, other_task)))


def close(one: Episodes, task: int, other: Episodes, other_task: int) -> bool:
    """Whether two tasks are the same up to how a batched operation rounds."""
    pairs = zip(contents(one, task), contents(other, other_task), strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def determinism_finding(draws: Draws, split: str, reference: Episodes) -> Finding | None:
    """The first sign that an episode depends on something else than its split, index and seed."""
    everything = range(draws.num_episodes)
    with _other_seeds():  # a source that seeds a generator leaves it as its last call did
        before = _generators()
        other = draws(split)
        used = [name for name, state in _generators().items() if not _same_state(state, before[name])]
    if used:
        text = f"episodes({split!r}, …) changes the state of the global generator of {' and '.join(used)}."
        return Finding("global generator", text, _FROM_INDEX)
    again = draws(split)
    if not all(equal(reference, task, again, task) for task in everything):
        text = f"two calls of episodes({split!r}, …) with the same arguments gave different episodes."
        return Finding("determinism", text, f"Keep no position and no generator between calls. {_FROM_INDEX}")
    if not all(equal(reference, task, other, task) for task in everything):
        text = f"episodes({split!r}, …) depends on the global seeds of torch, numpy or random."
        return Finding("determinism", text, _FROM_INDEX)
    return _batch_finding(draws, split, reference)


def _batch_finding(draws: Draws, split: str, reference: Episodes) -> Finding | None:
    last = draws.num_episodes - 1
    asked = {
        "alone": [last],
        "in another order": list(range(last, -1, -1)),
        "in a smaller batch": list(range(draws.num_episodes // 2)),
    }
    for how, indices in asked.items():
        found = draws(split, indices)
        if not all(close(found, position, reference, index) for position, index in enumerate(indices)):
            text = f"an episode of {split!r} is another one when it is asked for {how}."
            fix = "Episode i has to depend on i, and not on the other entries of `indices` or on its place among them."
            return Finding("determinism", text, f"{fix} {_FROM_INDEX}")
    return None


def difference_findings(draws: Draws, batches: dict[str, Episodes]) -> list[Finding]:
    """Signs that the index, the seed or the split changes nothing."""
    findings: list[Finding] = []
    split, batch = next(iter(batches.items()))
    count = draws.num_episodes
    repeated = sum(any(equal(batch, task, batch, before) for before in range(task)) for task in range(count))
    if repeated > count // 2:
        text = f"only {count - repeated} of {count} episodes of {split!r} are different ones."
        findings.append(Finding("indices", text, "Every index has to be an episode of its own: draw from the index."))
    other = draws(split, seed=draws.seed + 1)
    if repeated <= count // 2 and all(equal(batch, task, other, task) for task in range(count)):
        text = f"episodes({split!r}, …) are the same for seed={draws.seed} and seed={draws.seed + 1}."
        findings.append(Finding("seed", text, "Draw from the seed too, so that a run can be repeated with others."))
    for (one, first), (two, second) in combinations(batches.items(), 2):
        if all(equal(first, task, second, task) for task in range(count)):
            text = f"the splits {one!r} and {two!r} have the same episodes."
            findings.append(Finding("splits", text, "Draw from the split too, or keep different classes in them."))
            break
    key = batch.key
    if key is not None and not findings and len(set(key.tolist())) < count:
        text = f"`key` is the same for several episodes of {split!r}."
        findings.append(Finding("key", text, "Take metalearn.tasks.base.episode_keys(split, indices, …)."))
    return findings


@contextmanager
def generators_restored() -> Iterator[None]:
    """Leaves the global generators of torch, numpy and random as they were."""
    states = _generators()
    try:
        yield
    finally:
        torch.set_rng_state(states["torch"])
        numpy.random.set_state(states["numpy"])
        python_random.setstate(states["random"])


@contextmanager
def _other_seeds() -> Iterator[None]:
    with generators_restored():
        torch.manual_seed(987654321)
        numpy.random.seed(987654321)
        python_random.seed(987654321)
        yield


def _generators() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "numpy": numpy.random.get_state(),
        "random": python_random.getstate(),
    }


def _same_state(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, numpy.ndarray):
        return bool((one == other).all())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same_state, one, other))
    return bool(one == other)
