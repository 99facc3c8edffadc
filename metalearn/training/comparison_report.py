"""What a comparison of two sides ends with: compare.json, and a few lines for people."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.files import write_atomically
from metalearn.training.comparison import Difference, difference, over_runs
from metalearn.training.results import Results, describe, summarise
from metalearn.training.run_directory import flat

JSON = "compare.json"
PICTURE = "compare.png"
_NO_DIFFERENCE = ("wall_time_seconds", "num_threads")  # of no interest beside the others
_MOST_SHOWN = 12
_METHOD = (
    "difference: mean over the episodes of A - B, each the mean over the side's runs; its variance is that of the "
    "differences over episodes / n, plus, where both sides have several runs, that of each side's run means / runs "
    "(of the differences of run means / pairs, where seeds are pairs); "
    "ci95: Student's t with Satterthwaite's degrees of freedom (pairs - 1); ci95 of one run: 1.96 std / sqrt(n)"
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """The runs of a side, and what was measured.

    Attributes:
        name: "A" or "B".
        folders: of the runs, as they were given.
        results: of each.
        values: each metric after the last inner step, `[run, episode]`.
    """

    name: str
    folders: tuple[str, ...]
    results: tuple[Results, ...]
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, name: str, folders: Sequence[str], results: Sequence[Results]) -> "Side":
        """The side of these runs."""
        metrics = [metric for metric in results[0].values if all(metric in each.values for each in results)]
        values = {metric: torch.stack([each.values[metric][:, -1] for each in results]) for metric in metrics}
        return cls(name=name, folders=tuple(folders), results=tuple(results), values=values)

    @property
    def card(self) -> Mapping[str, Any]:
        """The protocol card of the first run."""
        card: Mapping[str, Any] = self.results[0].data["protocol"]
        return card

    def summary_of(self, metric: str) -> dict[str, Any]:
        """A run's mean and interval, or those over several with their deviation."""
        values = self.values[metric]
        return summarise(values[0]) if len(values) == 1 else over_runs(values)

    def as_data(self) -> dict[str, Any]:
        """Every run's numbers and protocol card, as plain data."""
        return {
            "summary": {metric: self.summary_of(metric) for metric in self.values},
            "runs": [{"folder": folder, **each.data} for folder, each in zip(self.folders, self.results, strict=True)],
        }

    def lines(self, metric: str) -> list[str]:
        """The side for people: a line, and for several runs one more for each."""
        percent = metric == "accuracy"
        found = self.summary_of(metric)
        if len(self.folders) == 1:
            return [f"{self.name}  {describe(found, percent=percent)}  {self.folders[0]}"]
        spread = describe({"mean": found["std_over_seeds"], "ci95": None}, percent=percent)
        of_all = f"{len(self.folders)} seeds, standard deviation over them {spread}"
        runs = [
            f"     {describe(summarise(values), percent=percent)}  {folder} (seed {each.data['protocol']['seed']})"
            for values, folder, each in zip(self.values[metric], self.folders, self.results, strict=True)
        ]
        return [f"{self.name}  {describe(found, percent=percent)}  {of_all}", *runs]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two sides and their differences.

    Attributes:
        a: the first.
        b: the second.
        split: that was measured.
        differences: A - B for every metric that both have.
    """

    a: Side
    b: Side
    split: str
    differences: Mapping[str, Difference]

    @classmethod
    def of(cls, a: Side, b: Side, *, split: str, pair_seeds: bool = False) -> "Compared":
        """The comparison of two sides that were measured on the same episodes."""
        metrics = [metric for metric in a.values if metric in b.values]
        found = {
            metric: difference(a.values[metric], b.values[metric], metric=metric, pair_seeds=pair_seeds)
            for metric in metrics
        }
        return cls(a=a, b=b, split=split, differences=found)

    @property
    def metric(self) -> str:
        """The one to look at first."""
        return "accuracy" if "accuracy" in self.differences else "loss"

    @property
    def card_differences(self) -> dict[str, tuple[Any, Any]]:
        """In what the protocol cards of the first runs differ, by dotted keys."""
        cards = [flat(side.card) for side in (self.a, self.b)]
        several = max(len(self.a.folders), len(self.b.folders)) > 1
        left_out = (*_NO_DIFFERENCE, *(("seed",) if several else ()))
        keys = [key for key in dict.fromkeys([*cards[0], *cards[1]]) if key not in left_out]
        return {key: (cards[0].get(key), cards[1].get(key)) for key in keys if cards[0].get(key) != cards[1].get(key)}

    def title(self) -> str:
        """What was compared, in two lines."""
        dataset = self.a.card.get("dataset", "task")
        names = [f"{side.name}: {_shortened(side.folders)}" for side in (self.a, self.b)]
        return f"{dataset}, split {self.split!r}: {self.verdict(self.metric)}\n{', '.join(names)}"

    def verdict(self, metric: str) -> str:
        """The difference with its interval, and what it says."""
        found = self.differences[metric]
        shown = describe({"mean": found.mean, "ci95": found.ci95}, percent=metric == "accuracy")
        sign = "+" if found.mean is not None and found.mean > 0 else ""
        if found.mean is None:
            return f"{metric} A - B: {shown}: on some episodes one of them has a value that is no number"
        if found.ci95 is None:
            return f"{metric} A - B: {sign}{shown}: one episode has no interval"
        what = "not distinguishable at 95%"
        if found.distinguishable:
            what = f"{found.better} is better" if found.better else "they differ"
        return f"{metric} A - B: {sign}{shown}, p = {found.p_value:.2g}: {what}"

    def summary(self) -> str:
        """The comparison in some lines for people."""
        count = self.differences[self.metric].num_episodes
        seed = self.a.card["episodes_seed"]
        steps = [side.card["inner_steps_test"] for side in (self.a, self.b)]
        after = f"{steps[0]} inner steps" if steps[0] == steps[1] else f"{steps[0]} and {steps[1]} inner steps"
        head = f"{self.split} {self.metric} on the same {count} episodes (their seed: {seed}), after {after}"
        lines = [head, *self.a.lines(self.metric), *self.b.lines(self.metric), *map(self.verdict, self._in_order())]
        return "\n".join([*lines, *self._about(), *self._told_differences()])

    def save(self, path: Path, *, command: str) -> None:
        """Writes compare.json.

        Raises:
            UsageError: it can not be written.
        """
        data = {
            "command": command,
            "split": self.split,
            "metric": self.metric,
            "num_episodes": self.differences[self.metric].num_episodes,
            "episodes_seed": self.a.card["episodes_seed"],
            "method": _METHOD,
            "differences": {metric: asdict(found) for metric, found in self.differences.items()},
            "protocol_differences": {key: list(pair) for key, pair in self.card_differences.items()},
            "a": self.a.as_data(),
            "b": self.b.as_data(),
            "per_episode": {
                metric: {"a": _listed(self.a.values[metric]), "b": _listed(self.b.values[metric])}
                for metric in self.differences
            },
        }
        try:
            write_atomically(path, (_compact(json.dumps(data, indent=2, allow_nan=False)) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{path} can not be written ({error.strerror or error}). Choose another out=….") from None

    def _in_order(self) -> list[str]:
        return [self.metric, *(metric for metric in self.differences if metric != self.metric)]

    def _about(self) -> list[str]:
        found = self.differences[self.metric]
        if found.mean is None or found.unpaired_ci95 is None:
            return []
        percent = self.metric == "accuracy"
        alone = describe({"mean": found.unpaired_ci95, "ci95": None}, percent=percent)
        lines = [f"On different episodes the interval would be ± {alone}."]
        if len(found.includes) > 1:
            paired = ", seeds taken as pairs" if "pairs of seeds" in found.includes else ""
            return [*lines, f"The interval is about other test episodes and other seeds of the training{paired}."]
        return [*lines, "The interval is about these trained models: training with other seeds may move them further."]

    def _told_differences(self) -> list[str]:
        found = self.card_differences
        if not found:
            return ["The protocol cards do not differ."]
        lines = [f"  {key}: {_brief(pair[0])} | {_brief(pair[1])}" for key, pair in list(found.items())[:_MOST_SHOWN]]
        more = [f"  and {len(found) - _MOST_SHOWN} more in {JSON}"] if len(found) > _MOST_SHOWN else []
        return ["The protocol cards differ in (A | B)", *lines, *more]


def _listed(values: Tensor) -> list[list[float | None]]:
    """Every run's values; JSON has no number for those that are none."""
    rows = values.double().tolist()
    return [[value if abs(value) < float("inf") else None for value in row] for row in rows]


def _compact(text: str) -> str:
    """Lists of numbers on one line instead of one number a line."""
    return re.sub(
        r"\[\s+([-\d][-+\d.e,\s]*?|null[-+\d.e,\snul]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text
    )


def _brief(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shortened(folders: Sequence[str]) -> str:
    shown = ", ".join(folders[:3])
    return shown if len(folders) <= 3 else f"{shown} and {len(folders) - 3} more"
