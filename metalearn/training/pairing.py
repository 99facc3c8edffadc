"""Measuring several runs on the same episodes, and making sure that they are the same."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.training.evaluation import check_split
from metalearn.training.experiment import Experiment
from metalearn.training.guard import blamed
from metalearn.training.progress import Phase, Progress
from metalearn.training.report import evaluate
from metalearn.training.results import Results
from metalearn.types import Episodes

_FIRST = 2  # episodes that are drawn from every run's task before anything is measured
_BY_SPLIT = ("classes", "groups", "alphabets")  # counts of which those of the other splits play no part


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A run that is measured beside others.

    Attributes:
        name: for people, such as "A".
        experiment: with the settings of the measurement: episodes, their seed, inner steps.
        checkpoint: the folder of the one to measure.
    """

    name: str
    experiment: Experiment
    checkpoint: Path

    @property
    def source(self) -> Any:
        """Where its test episodes come from."""
        return self.experiment.source if self.experiment.test_source is None else self.experiment.test_source


def measure_together(contestants: Sequence[Contestant], *, split: str, progress: Progress) -> list[Results]:
    """The results of every contestant on the same episodes, with their values an episode.

    Raises:
        UsageError: they would be, or were, measured on other episodes; or what `evaluate` refuses.
    """
    check_same_episodes(contestants, split=split)
    found: list[Results] = []
    first: Tensor | None = None
    for each in contestants:
        prints: list[Tensor] = []
        results = evaluate(
            each.experiment,
            each.checkpoint,
            split=split,
            baseline=False,
            progress=_Named(progress, each.name),
            watch=lambda episodes, prints=prints: prints.append(fingerprints(episodes)),  # type: ignore[misc]
        )
        seen = torch.cat(prints)
        first = seen if first is None else first
        _check_prints(first, seen, contestants[0].name, each.name)
        found.append(results)
    return found


def check_same_episodes(contestants: Sequence[Contestant], *, split: str) -> None:
    """Refuses runs whose tasks do not draw the same episodes of a split, before anything is measured.

    What the protocol cards of the tasks say is told; what decides is the episodes themselves.

    Raises:
        UsageError: with the difference and its fix.
    """
    first, *others = contestants
    drawn = _drawn(first, split)
    for other in others:
        check_same_kind(first, other)
        if not _alike(drawn, _drawn(other, split)):
            raise UsageError(_told(first, other, split))


def check_same_kind(first: Contestant, other: Contestant) -> None:
    """Refuses a classification beside a regression.

    Raises:
        UsageError: naming the two tasks.
    """
    kinds = [each.source.kind for each in (first, other)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{first.name} is tested on a {kinds[0]} ({first.source.name}), {other.name} on a {kinds[1]} "
            f"({other.source.name}): they have no episode in common. Compare runs of one task."
        )


def fingerprints(episodes: Episodes) -> Tensor:
    """A number an episode, `[task]`, that differs wherever an example, a target or their order does (but by chance)."""
    sums = []
    for position, leaf in enumerate(tree.tensors((episodes.support, episodes.query)), start=1):
        exact = torch.float32 if leaf.device.type == "mps" else torch.float64  # which has no float64
        # An example at a time: a copy of a batch of pictures in float64 would be as large as what a model needs.
        rows = leaf.flatten(2).sum(2, dtype=exact) if leaf.dim() > 2 else leaf.to(exact)
        places = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=exact)
        sums.append(position * (rows * places).sum(1))
    return torch.stack(sums).sum(0).double().cpu()


def _check_prints(first: Tensor, seen: Tensor, name: str, other: str) -> None:
    # Two devices may sum in another order.
    if len(first) == len(seen) and torch.allclose(first, seen, rtol=1e-6, atol=1e-6, equal_nan=True):
        return
    raise UsageError(
        f"{name} and {other} were measured on other episodes, though the first ones agreed. Give both the same data, "
        "and a task source that is a function of (split, index, seed) alone (metalearn.testing.check_task)."
    )


def _drawn(contestant: Contestant, split: str) -> Episodes:
    source = contestant.source
    check_split(source, split, wanted_for=f"the comparison ({contestant.name})")
    with blamed(f"{type(source).__name__}.episodes({split!r}, …)", plugin=source):
        seed = contestant.experiment.settings.seed_of_test
        episodes: Episodes = source.episodes(split, range(_FIRST), seed=seed)
    return episodes


def _alike(first: Episodes, other: Episodes) -> bool:
    leaves = [tree.tensors((each.support, each.query)) for each in (first, other)]
    return len(leaves[0]) == len(leaves[1]) and all(torch.equal(x, y) for x, y in zip(*leaves, strict=True))


def _told(first: Contestant, other: Contestant, split: str) -> str:
    cards = [_card(each, split) for each in (first, other)]
    between = [key for key in _in_order(cards) if cards[0].get(key) != cards[1].get(key)]
    if not between:
        return (
            f"{first.name} and {other.name} have tasks that say the same of themselves, but draw other episodes of "
            f"{split!r}. Give both the same data, as they were when the runs were trained."
        )
    shown = "; ".join(
        f"{key}: {cards[0].get(key)!r} in {first.name}, {cards[1].get(key)!r} in {other.name}" for key in between[:3]
    )
    more = f"; {len(between) - 3} more" if len(between) > 3 else ""
    return f"{first.name} and {other.name} are tested on other episodes ({shown}{more}). {_fix(between[0])}"


def _fix(key: str) -> str:
    if key in ("shots", "query_shots"):
        return f"To measure both on the same add task.{key}=…."
    if key == "ways":
        return "Compare runs with the same number of ways."
    return (
        "Compare runs of one task, or measure both on the same: test_task=NAME, with test_task.KEY=… for its arguments."
    )


def _card(contestant: Contestant, split: str) -> dict[str, Any]:
    """What the task says of itself, as far as it is about the split."""
    source = contestant.source
    with blamed(f"{type(source).__name__}.protocol()", plugin=source):
        card = {"name": source.name, **source.protocol()}
    for key in _BY_SPLIT:
        if isinstance(card.get(key), Mapping):
            card[key] = card[key].get(split)
    # Of the training images alone.
    card.pop("augmentation", None)
    return card


def _in_order(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys, those first that explain the others."""
    known = ("dataset", "ways", "shots", "query_shots")
    rest = [key for card in cards for key in card if key not in (*known, "name")]
    counts = [key for key in rest if key in _BY_SPLIT]  # what other arguments lead to
    return [*known, *dict.fromkeys(key for key in rest if key not in counts), *dict.fromkeys(counts), "name"]


@dataclass(frozen=True)
class _Named:
    """Progress whose phases say whose they are."""

    progress: Progress
    name: str

    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps") -> AbstractContextManager[Phase]:
        return self.progress.phase(f"{self.name} {name}", total, done=done, unit=unit)

    def message(self, text: str) -> None:
        self.progress.message(text)
