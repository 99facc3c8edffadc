"""What a run is made of: plain objects, however they were configured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metalearn.algorithms import Algorithm
from metalearn.errors import UsageError, did_you_mean
from metalearn.metagrad import Strategy
from metalearn.types import Episodes, Tensors


class Source(Protocol):
    """What the room asks of a task source; `metalearn.tasks.TaskSource` is one."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names that `episodes` knows."""

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """The episodes of `split` with these indices: a pure function of (split, index, seed)."""

    def to(self, device: torch.device | str) -> "Source":
        """The same source with its tensors on `device`."""

    def protocol(self) -> dict[str, Any]:
        """What the protocol card says of the data."""


MEASURABLE = ("loop", "vmap")

LARGEST_SEED = 2**63 - 1  # the keys of random numbers are int64


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The numbers of a run. Every name in an error is also given as the command line spells it.

    Attributes:
        num_steps: meta steps.
        batch_size: tasks a meta step.
        seed: of all the episodes; the module's initial state is its builder's affair.
        device: a torch device, or "auto" (CUDA where there is one).
        log_every: meta steps between two training records of metrics.jsonl.
        eval_every: meta steps between two validations; 0 for none (the last checkpoint is then tested).
        val_episodes: episodes a validation, always the same ones; 0 for none.
        checkpoint_every: meta steps between two checkpoints; one is also written at each validation and at the end.
        test_episodes: episodes of the final test.
        test_batch_size: tasks evaluated at once in validation and test.
        num_inner_steps_eval: inner steps in validation and test.
        clip: the largest norm of the meta-gradient; `None` for no clipping.
        baseline: whether to test the same adaptation from the untrained initialisation too.
        profile: whether to measure where the time of a meta-step goes, and write it into the run directory.
        switch_at: the meta step (0, 1, …) from which a compiled execution is compiled, waited for where needed; None
            runs meta-gradients as they are until the compiled ones are ready.
        measures: which of "loop" and "vmap" are tried, compiled and not, to choose the execution by measurement; none
            for the execution as it is.
        test_seed: of the test episodes, so that runs with several seeds are tested on the same; `None` for `seed`.
    """

    num_steps: int
    batch_size: int
    seed: int = 0
    device: str = "auto"
    log_every: int = 10
    eval_every: int = 500
    val_episodes: int = 100
    checkpoint_every: int = 500
    test_episodes: int = 600
    test_batch_size: int = 50
    num_inner_steps_eval: int = 10
    clip: float | None = None
    baseline: bool = True
    profile: bool = False
    switch_at: int | None = None
    measures: tuple[str, ...] = ()
    test_seed: int | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that make no run."""
        for name, (least, spelt) in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{spelt} is {value!r}; it has to be a whole number of at least {least}.")
        if self.seed > LARGEST_SEED:
            raise UsageError(f"seed is {self.seed}; it has to be at most {LARGEST_SEED}.")
        of_test = self.test_seed
        if of_test is not None and (type(of_test) is not int or not 0 <= of_test <= LARGEST_SEED):
            raise UsageError(
                f"eval.seed is {of_test!r}; it has to be a whole number from 0 to {LARGEST_SEED}, or null for seed."
            )
        at = self.switch_at
        if at is not None and (isinstance(at, bool) or not isinstance(at, int) or at < 0):
            raise UsageError(f"execution.switch_at is {at!r}; it has to be a meta step of at least 0, or null.")
        for name in self.measures:
            if name not in MEASURABLE:
                raise UsageError(f"measures has {name!r}, which can not be measured. {did_you_mean(name, MEASURABLE)}")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"meta.clip is {self.clip!r}; it has to be above 0, or null for no clipping.")

    @property
    def seed_of_test(self) -> int:
        """The seed of the test episodes."""
        return self.seed if self.test_seed is None else self.test_seed

    @property
    def validates(self) -> bool:
        """Whether the run looks at validation episodes at all."""
        return self.eval_every > 0 and self.val_episodes > 0


_LEAST = {
    "num_steps": (0, "meta.num_steps"),
    "batch_size": (1, "meta.batch_size"),
    "seed": (0, "seed"),
    "log_every": (1, "meta.log_every"),
    "eval_every": (0, "eval.every"),
    "val_episodes": (0, "eval.val_episodes"),
    "checkpoint_every": (1, "meta.checkpoint_every"),
    "test_episodes": (1, "eval.num_episodes"),
    "test_batch_size": (1, "eval.batch_size"),
    "num_inner_steps_eval": (0, "eval.num_inner_steps"),
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run needs.

    Attributes:
        source: where training episodes come from.
        test_source: where the episodes of the final test, and of `evaluate`, come from; `None` for `source`. Training
            never sees it: validation, which chooses the checkpoint, is on `source`.
        module: the model, as its builder initialised it; a run leaves it untouched.
        algorithm: such as `metalearn.algorithms.MAML`.
        strategy: how the meta-gradient flows, such as `metalearn.metagrad.Unrolled()`.
        execution: how tasks are run, such as `metalearn.execution.Vmap()`.
        outer_optimizer: makes a `torch.optim` optimizer over the list of meta-parameters.
        settings: the numbers of the run.
        schedule: the factor on the outer learning rate at a meta step (0, 1, ...); `None` for a constant rate. A
            function of the step, so that there is no scheduler state to save.
        config: the configuration as plain data; stored with the checkpoints and compared on resuming.
    """

    source: Source
    module: nn.Module
    algorithm: Any
    strategy: Any
    execution: Any
    outer_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    settings: TrainingSettings
    test_source: Source | None = None
    schedule: Callable[[int], float] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """An algorithm without inner steps is validated and tested without any, whatever the settings say."""
        if not has_inner_steps(self.algorithm) and self.settings.num_inner_steps_eval:
            object.__setattr__(self, "settings", replace(self.settings, num_inner_steps_eval=0))

    def strategy_at(self, meta_step: int) -> Any:
        """The strategy of a meta step, counted from 0."""
        return self.strategy.at(meta_step) if isinstance(self.strategy, Strategy) else self.strategy

    def algorithm_at(self, meta_step: int) -> Any:
        """The algorithm of a meta step, counted from 0."""
        return self.algorithm.at(meta_step) if isinstance(self.algorithm, Algorithm) else self.algorithm

    def held_at(self, meta_step: int) -> Tensors:
        """What the algorithm's problem finds among its model's buffers at a meta step (`Algorithm.held`)."""
        return self.algorithm.held(meta_step) if isinstance(self.algorithm, Algorithm) else {}


def has_inner_steps(algorithm: Any) -> bool:
    """Whether an algorithm adapts by inner steps: one of a user's own that does not say so, does."""
    return bool(getattr(algorithm, "has_inner_steps", True))


def refuse_inner_steps(algorithm: Any, what: str) -> None:
    """Raises UsageError where inner steps, or their options, are asked for of an algorithm that takes none."""
    if not has_inner_steps(algorithm):
        raise UsageError(
            f"{what} is of inner steps, which {type(algorithm).__name__} does not take (what it does with a support "
            "set is set by options of its own, algorithm.…). Leave it out."
        )


def resolve_device(name: str) -> torch.device:
    """The torch device of that name, once it is known to be there; "auto" is CUDA where there is one, else the CPU.

    Raises:
        UsageError: a name that is no device, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        hint = did_you_mean(name, ["auto", "cpu", "cuda", "cuda:0", "mps"])
        raise UsageError(f"device={name!r} is not a device. {hint}") from None
    try:
        torch.empty(0, device=device)
    # torch says "not compiled with CUDA" with an AssertionError, "invalid device ordinal" with a RuntimeError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"device={name!r} is not there ({reason}). Use device=cpu or device=auto.") from None
    return device
