"""An execution that compiles nothing, and a compiler beside the run that does what a test says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from metalearn import execution, tree
from metalearn.training import SilentProgress
from metalearn.training.ahead import Ready


class Telling:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps") -> Any:
        return SilentProgress().phase(name, total, done=done, unit=unit)

    def message(self, text: str) -> None:
        self.told.append(text)


@dataclass(frozen=True, kw_only=True)
class Faked(execution.Vmap):
    """Where it is compiled, its gradients are the eager ones times `factor`, and each call is counted."""

    factor: float = 1.0 + 1e-6
    fails: Any = None

    made: ClassVar[list[str]] = []
    calls: ClassVar[list[Any]] = []

    def value_and_grad(self, strategy: Any, problem: Any) -> Any:
        if self.compiled is None:
            return super().value_and_grad(strategy, problem)
        eager = replace(self, compiled=None).value_and_grad(strategy, problem)
        self.made.append(repr(strategy))

        def run(meta: Any, episodes: Any, carry: Any = None, held: Any = None) -> Any:
            self.calls.append(None)
            if self.fails is not None:
                self.fails(len(self.calls))
            outcome = eager(meta, episodes, carry, held)
            return outcome._replace(grads=tree.map_tensors(lambda leaf: leaf * self.factor, outcome.grads))

        return run


class Compiler:
    """Is ready at its `polls`-th look; None for never."""

    def __init__(self, polls: int | None, error: str = "") -> None:
        self.left, self.error, self.started, self.closed = polls, error, 0, 0

    def start(self, command: Sequence[str]) -> "Compiler":
        self.started += 1
        return self

    def poll(self) -> Ready | None:
        if self.left is None:
            return None
        self.left -= 1
        return Ready(1.5, self.error) if self.left < 0 else None

    def close(self) -> None:
        self.closed += 1


def forgotten() -> None:
    """Begins counting anew."""
    Faked.made.clear()
    Faked.calls.clear()


Start = Callable[[Sequence[str]], Compiler]
