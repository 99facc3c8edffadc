"""A study: Optuna proposes the points, validation judges them, and the file in the sweep's folder remembers."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError, did_you_mean
from metalearn.sweeps.points import Outcome, Trial
from metalearn.sweeps.study_file import JOURNAL, WHERE, mend, storage, told_shortly
from metalearn.training import Stopped
from metalearn.training.records import read_records
from metalearn.training.run_directory import METRICS

_NAME = "metalearn"
_SAMPLERS = ("tpe", "random")
_PRUNERS = ("median", "none")


@dataclass(frozen=True)
class Interval:
    """Numbers between two, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Choices:
    """One of these."""

    values: tuple[Any, ...]


Space = Mapping[str, Interval | Choices]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a study searches.

    Attributes:
        sampler: "tpe" or "random".
        pruner: "median" gives up a point whose validation is worse than the median of the others' at that step.
        seed: of the sampler.
        num_startup_trials: that many are drawn at random, and are not pruned.
        num_warmup_steps: the meta steps before which no point is given up.
    """

    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 0
    num_startup_trials: int = 5
    num_warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Refuses unknown names and numbers out of bounds."""
        for name, known in (("sampler", _SAMPLERS), ("pruner", _PRUNERS)):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise UsageError(f"hydra.sweeper.{name}={value} is unknown. {did_you_mean(str(value), known)}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"hydra.sweeper.seed={self.seed}: expected a number from 0 to {2**31 - 1}.")
        for name in ("num_startup_trials", "num_warmup_steps"):
            if getattr(self, name) < 0:
                raise UsageError(f"hydra.sweeper.{name}={getattr(self, name)}: expected a number of at least 0.")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial to run: its identifier in the study's file, and its values by key."""

    identifier: int
    values: Mapping[str, Any]


class Study:
    """The study in a sweep's folder. A trial that was interrupted stays open, and is the first to be proposed again."""

    def __init__(self, directory: Path, *, space: Space, settings: Settings, metric: str) -> None:
        """Opens the study, or begins it.

        Args:
            directory: the sweep's folder, which nobody else has (`directory.claimed`).
            space: what is searched.
            settings: how.
            metric: "accuracy", which is to be high, or another, which is to be low.

        Raises:
            UsageError: Optuna is not installed; the file is locked, damaged, or of a study of something else.
        """
        optuna = _optuna()
        self._directory, self._settings, self.metric = directory, settings, metric
        mend(directory / JOURNAL)
        direction = "maximize" if metric == "accuracy" else "minimize"
        with told_shortly(directory):
            self._study = optuna.create_study(
                study_name=_NAME, storage=storage(directory), direction=direction, load_if_exists=True
            )
            self._distributions = {key: _distribution(each) for key, each in space.items()}
            self._check(direction)
            trials = self._trials()
        # Nobody else has the folder: what the file calls running was interrupted, or its process was killed.
        whole = [trial for trial in trials if set(trial.params) == set(space)]
        self._open = [trial for trial in whole if trial.state.name == "RUNNING"]
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        with told_shortly(directory):
            for trial in trials:
                if trial.state.name == "RUNNING" and trial not in whole:  # killed while it was being proposed
                    self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            for trial in whole:
                if trial.state.name == "FAIL" and trial.number not in retried:
                    self._study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        self.num_done = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials)

    def ask(self) -> Proposal:
        """The next trial: one that was interrupted, else one that failed, else a new one.

        A new one depends on the study's seed, its number and the trials before it, so that a study that is gone on with
        proposes what an uninterrupted one would.
        """
        with told_shortly(self._directory):
            if self._open:
                found = self._open.pop(0)
                return Proposal(identifier=found._trial_id, values=found.params)
            self._study.sampler = self._sampler(len(self._trials()))
            trial = self._study.ask(self._distributions)
        return Proposal(identifier=trial._trial_id, values=trial.params)

    def trial(self, proposal: Proposal) -> Trial:
        """What a point needs to report to a trial."""
        return Trial(identifier=proposal.identifier, metric=self.metric, last_step=0, settings=asdict(self._settings))

    def tell(self, proposal: Proposal, outcome: Outcome) -> None:
        """Writes down what became of a trial; one that was interrupted stays open."""
        if outcome.status in ("interrupted", "missing"):
            return
        state = _optuna().trial.TrialState
        value = outcome.val.get(self.metric, {}).get("mean")
        number = next(trial.number for trial in self._trials() if trial._trial_id == proposal.identifier)
        with told_shortly(self._directory):
            if outcome.status == "finished" and value is not None:
                self._study.tell(number, value)
            elif outcome.status == "pruned":
                self._study.tell(number, state=state.PRUNED)
            else:
                self._study.tell(number, state=state.FAIL)

    def past(self) -> Iterator[Proposal]:
        """The trials that were proposed before, in order, but for failed ones that were tried again."""
        trials = self._trials()
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            if set(trial.params) == set(self._distributions) and trial.number not in retried:
                yield Proposal(identifier=trial._trial_id, values=trial.params)

    def _trials(self) -> Sequence[Any]:
        trials: Sequence[Any] = self._study.get_trials(deepcopy=False)
        return trials

    def _sampler(self, number: int) -> Any:
        samplers = _optuna().samplers
        seed = (self._settings.seed * 1_000_003 + number) % 2**31
        if self._settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar was called experimental before Optuna 5
            return samplers.TPESampler(
                n_startup_trials=self._settings.num_startup_trials, seed=seed, constant_liar=True
            )

    def _check(self, direction: str) -> None:
        if self._study.direction.name.lower() != direction:
            raise UsageError(f"{self._directory / JOURNAL} is the study of another metric. Choose another {WHERE}.")
        for trial in self._trials():
            known = trial.distributions
            changed = [key for key in known if not _same_kind(known[key], self._distributions.get(key))]
            added = set(self._distributions) - set(known) if known else set()
            if changed or added:
                keys = ", ".join(sorted({*changed, *added}))
                raise UsageError(
                    f"{self._directory / JOURNAL} searched other values of {keys}. Choose another {WHERE}."
                )


def reporter(directory: Path, trial: Trial) -> Callable[[int, Mapping[str, float]], None]:
    """What a point's run calls after each validation: tells the study; raises `Stopped` if the point is given up."""
    optuna = _optuna()
    settings = Settings(**trial.settings)
    with told_shortly(directory):
        study = optuna.load_study(
            study_name=_NAME,
            storage=storage(directory),
            pruner=_pruner(settings),
            sampler=optuna.samplers.RandomSampler(),  # a trial asks a sampler for values that this one has
        )
        live = optuna.trial.Trial(study, trial.identifier)
    known = set(next(each for each in study.get_trials() if each._trial_id == trial.identifier).intermediate_values)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        value = metrics[trial.metric]
        if step not in known and math.isfinite(value):
            with told_shortly(directory):
                live.report(value, step)
            known.add(step)
        if step < trial.last_step and step in known:
            with told_shortly(directory):
                hopeless = live.should_prune()
            if hopeless:
                raise Stopped(step)

    return report


def best_validation(folder: Path) -> dict[str, Any]:
    """The best validation in a run's metrics.jsonl so far, as a summary without an interval; empty if there is none."""
    try:
        found = [record for record in read_records(folder / METRICS) if record.get("split") == "val"]
    except (OSError, ValueError):  # killed in the middle of a line
        return {}
    metric, sign = ("accuracy", 1.0) if found and "accuracy" in found[0] else ("loss", -1.0)
    scored = [record for record in found if record.get(metric) is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda record: sign * record[metric])
    names = [name for name in best if name not in ("step", "split")]
    return {name: {"mean": best[name], "ci95": None, "num_episodes": None} for name in names}


def check_installed() -> None:
    """Asks for Optuna before anything is begun.

    Raises:
        UsageError: it is not installed.
    """
    _optuna()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError('A study needs Optuna: pip install "metalearn-torch[sweep]".') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells every trial; so does the sweep
    return optuna


def _pruner(settings: Settings) -> Any:
    pruners = _optuna().pruners
    if settings.pruner == "none":
        return pruners.NopPruner()
    return pruners.MedianPruner(n_startup_trials=settings.num_startup_trials, n_warmup_steps=settings.num_warmup_steps)


def _distribution(each: Interval | Choices) -> Any:
    distributions = _optuna().distributions
    if isinstance(each, Choices):
        return distributions.CategoricalDistribution(each.values)
    if isinstance(each.low, int) and isinstance(each.high, int):
        return distributions.IntDistribution(each.low, each.high, log=each.log, step=int(each.step or 1))
    return distributions.FloatDistribution(each.low, each.high, log=each.log, step=each.step)


def _same_kind(then: Any, now: Any) -> bool:
    # An interval may have grown; a choice is a place in a list, which has to stay the same list.
    return type(then) is type(now) and (not hasattr(then, "choices") or then.choices == now.choices)
