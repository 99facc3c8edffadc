"""`check_task`: everything that a task source promises, tried on one; every mistake is told with its fix."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.checks import Finding, attribute_findings, batch_findings
from metalearn.testing.determinism import Broken, Draws, determinism_finding, difference_findings, generators_restored
from metalearn.testing.leakage import Leaks, class_leakage, class_warnings, example_leakage, within_episodes
from metalearn.testing.portability import device_findings, pickling_finding, protocol_finding
from metalearn.testing.speed import Speed, measure_speed
from metalearn.types import Episodes

CHECKS = (
    "attributes", "episodes", "determinism", "differences", "leakage", "class leakage", "pickling", "devices",
    "protocol", "speed",
)  # fmt: skip


_NEEDED = {
    "train": "a run trains on it.",
    "val": "a run chooses its checkpoint on it (eval.val_episodes=0 for a run without).",
    "test": "a run ends with a test on it (test_task=… for the one of another source).",
}
"""The splits that a run asks for, and what for."""


@dataclass(frozen=True)
class TaskReport:
    """What `check_task` found out about a source that has no mistake.

    Attributes:
        name: the source's name.
        splits: those that were looked at.
        num_episodes: how many of each.
        warnings: what is allowed and may be unintended, a sentence or two each.
        milliseconds_per_episode: time of sampling one episode, in a batch.
        share_of_meta_step: that time as a part of a MAML step of Conv-4 on the same episode; `None` unless the inputs
            are images.
        checks: what was tried.
    """

    name: str
    splits: tuple[str, ...]
    num_episodes: int
    warnings: tuple[str, ...]
    milliseconds_per_episode: float
    share_of_meta_step: float | None
    checks: tuple[str, ...] = CHECKS

    def __str__(self) -> str:
        share = "" if self.share_of_meta_step is None else f", {self.share_of_meta_step:.1%} of a Conv-4 meta-step"
        lines = [
            f"{self.name}: no mistake in {self.num_episodes} episodes of each of {', '.join(self.splits)}; "
            f"{self.milliseconds_per_episode:.2g} ms an episode{share}."
        ]
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])


def check_task(
    source: Any,
    *,
    num_episodes: int = 16,
    splits: Sequence[str] | None = None,
    seed: int = 0,
    allow_duplicates: bool = False,
) -> TaskReport:
    """Tries a task source on a few episodes of every split, and tells its author everything that is wrong with it.

    Looked at: attributes and methods; shapes, dtypes, finite inputs, labels and masks of the episodes; that an episode
    depends on its split, index and seed alone, and on all of them; examples in both the support and the query set;
    classes and examples of one split in another; pickling; devices; the protocol; the time that sampling takes. Global
    random generators are left as they were.

    Args:
        source: any object with the attributes and methods of `metalearn.tasks.TaskSource`.
        num_episodes: how many of each split; 4 or more.
        splits: which; by default all that the source has.
        seed: of the episodes.
        allow_duplicates: the data hold identical examples (as small tables do), so they are no sign of leakage.

    Returns:
        The report, with warnings and the speed, if there is no mistake.

    Raises:
        AssertionError: listing every mistake, each with its fix.
        UsageError: no such split, or too few episodes.

    Example:
        >>> from metalearn.tasks import Sinusoid
        >>> check_task(Sinusoid(shots=5)).warnings
        ()
    """
    if num_episodes < 4:
        raise UsageError(f"num_episodes is {num_episodes}; check_task needs at least 4 to compare them.")
    _raise_if(source, attribute_findings(source))
    chosen = tuple(source.splits if splits is None else splits)
    for split in chosen:
        if split not in source.splits:
            raise UsageError(f"there is no split {split!r}. {did_you_mean(split, source.splits)}")
    with generators_restored():
        draws = Draws(source, num_episodes, seed)
        batches, findings = _batches(source, draws, chosen)
        _raise_if(source, findings)
        leaks = Leaks(allowed=allow_duplicates)
        findings = _deep_findings(source, draws, batches, leaks)
        _raise_if(source, findings)
        try:
            speed = measure_speed(draws, chosen[0])
        except Broken as broken:
            _raise_if(source, [broken.finding])
            raise
    return TaskReport(
        name=source.name,
        splits=chosen,
        num_episodes=num_episodes,
        warnings=tuple(_warnings(source, batches, leaks, speed)),
        milliseconds_per_episode=speed.milliseconds,
        share_of_meta_step=speed.share,
    )


def _batches(source: Any, draws: Draws, splits: Sequence[str]) -> tuple[dict[str, Episodes], list[Finding]]:
    """A batch of each split and what is wrong with it; a mistake that several splits have is told once."""
    batches: dict[str, Episodes] = {}
    found: dict[str, tuple[Finding, list[str]]] = {}
    for split in splits:
        try:
            batches[split] = draws.unchecked(split)
            findings = batch_findings(source, batches[split], num_tasks=draws.num_episodes)
        except Broken as broken:
            findings = [broken.finding]
        for finding in findings:
            found.setdefault(finding.check, (finding, []))[1].append(split)
    told = [
        replace(each, text=f"in the episodes of {' and '.join(map(repr, where))}, {each.text}")
        for each, where in found.values()
    ]
    return batches, told


def _deep_findings(source: Any, draws: Draws, batches: dict[str, Episodes], leaks: Leaks) -> list[Finding]:
    findings: list[Finding | None] = []
    try:
        for split, batch in batches.items():
            finding = determinism_finding(draws, split, batch)
            if finding is not None:
                # What is random in a call can not be compared with another call.
                findings.append(finding)
                break
        else:
            alike = difference_findings(draws, batches)
            findings += alike
            findings.append(within_episodes(source, batches, leaks))
            findings.append(class_leakage(source, tuple(batches)))
            if not any(each.check in ("splits", "indices") for each in alike) and findings[-1] is None:
                findings.append(example_leakage(source, batches, leaks))
            findings.append(pickling_finding(source, draws, batches))
            findings += device_findings(source, draws, batches)
    except Broken as broken:
        findings.append(broken.finding)
    findings.append(protocol_finding(source))
    return [each for each in findings if each is not None]


def _warnings(source: Any, batches: dict[str, Episodes], leaks: Leaks, speed: Speed) -> list[str]:
    warnings = [*leaks.warnings, *class_warnings(source, tuple(batches)), *speed.warnings()]
    warnings += [f"There is no split {split!r}: {needed}" for split, needed in _NEEDED.items()
                 if split not in source.splits]  # fmt: skip
    if any(batch.key is None for batch in batches.values()):
        warnings.append(
            "The episodes have no `key`: a model with dropout draws the same mask in every one. Add "
            "key=metalearn.tasks.base.episode_keys(split, indices, seed=seed, splits=self.splits)."
        )
    return warnings


def _raise_if(source: Any, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    count = "a mistake" if len(findings) == 1 else f"{len(findings)} mistakes"
    lines = [f"  {number}. {finding.check}: {finding}" for number, finding in enumerate(findings, start=1)]
    cause = next((finding.cause for finding in findings if finding.cause is not None), None)
    raise AssertionError("\n".join([f"{type(source).__name__} has {count}:", *lines])) from cause
