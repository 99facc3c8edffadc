"""An inner loop and its gradient, folded over a few compiled pieces: what is compiled does not grow with the steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.compilation import Program
from metalearn.execution.pieces import Places
from metalearn.metagrad import Outcome


class Judge(NamedTuple):
    """An outer loss and its gradients.

    Attributes:
        program: returns the loss, its gradients, and what it reports.
        meta: of which tensors of `meta` it gives a gradient.
        places: of which of the state's.
    """

    program: Program
    meta: Places
    places: Places


class Step(NamedTuple):
    """An inner step and its pullback.

    Attributes:
        forward: to the state after it, followed by what is kept for the way back.
        back: from what was kept, or from the inputs once more, and cotangents of the state after the step.
        meta: of which tensors of `meta` it gives cotangents.
        places: of which of the earlier state's.
    """

    forward: Program
    back: Program
    meta: Places
    places: Places


@dataclass(frozen=True, kw_only=True)
class Unroll:
    """The value and the gradient of a problem for inputs of one form.

    Attributes:
        start: from the inputs to the first state.
        batches: from the inputs to each step's batch; none where it is the same at all steps.
        steps: all inner steps but the last.
        end: the last step and the outer loss, in one.
        judges: the outer losses of earlier states, by how many steps these have had.
        weights: from the inputs to those of the outer losses, by the number of steps; none where only the last state
            is judged.
        finish: from the inputs, what was gathered on the way back and what the outer loss reported, to the outcome.
        close: makes an outcome of its tensors.
        every: each so many states are kept on the way there; None keeps all that the way back needs instead.
    """

    start: Program
    batches: Sequence[Program]
    steps: Sequence[Step]
    end: Judge
    judges: Mapping[int, Judge]
    weights: Callable[[list[Tensor]], Mapping[int, Tensor]]
    finish: Program
    close: Callable[[list[Tensor]], Any]
    every: int | None

    def __call__(self, tensors: list[Tensor]) -> Outcome:
        """The outcome for tensors of that form."""
        batches = [program(tensors) for program in self.batches] or [[]] * (len(self.steps) + 1)
        states, kept = self._forward(tensors, batches)
        num_steps, weights = len(self.steps), self.weights(tensors)
        way = _Way()
        weight = [weights[num_steps + 1]] if weights else []
        way.judged(self.end, self.end.program([*tensors, *states[num_steps], *batches[-1], *weight]))
        for number in reversed(range(num_steps)):
            if number + 1 in self.judges:
                judge = self.judges[number + 1]
                way.judged(judge, judge.program([*tensors, *states[number + 1], weights[number + 1]]))
            step, cotangents = self.steps[number], way.cotangents()
            del states[number + 1]
            if self.every is None:
                pulled = step.back([*kept.pop(), *cotangents])
            else:
                self._again(tensors, batches, states, number)
                pulled = step.back([*tensors, *states[number], *batches[number], *cotangents])
            way.stepped(step, pulled)
        outcome: Outcome = self.close(self.finish([*tensors, *way.cotangents(), *way.gathered(), way.value, *way.aux]))
        return outcome

    def _forward(
        self, tensors: list[Tensor], batches: list[list[Tensor]]
    ) -> tuple[dict[int, list[Tensor]], list[list[Tensor]]]:
        state, kept = self.start(tensors), []
        states = {0: state}
        for number, step in enumerate(self.steps):
            found = step.forward([*tensors, *state, *batches[number]])
            state = found[: len(state)]
            kept.append(found[len(state) :])
            if self.every is not None and number % self.every:
                del states[number]
            states[number + 1] = state
        return states, kept

    def _again(
        self, tensors: list[Tensor], batches: list[list[Tensor]], states: dict[int, list[Tensor]], number: int
    ) -> None:
        """Computes the states up to number `number` once more, from the last one before it that was kept."""
        first = number
        while first not in states:
            first -= 1
        for step in range(first, number):
            found = self.steps[step].forward([*tensors, *states[step], *batches[step]])
            states[step + 1] = found[: len(states[step])]


class _Way:
    """What has been gathered on the way back."""

    def __init__(self) -> None:
        self.value: Tensor
        self.aux: list[Tensor] = []
        self._state: dict[int, Tensor] = {}
        self._meta: dict[int, Tensor] = {}

    def judged(self, judge: Judge, found: list[Tensor]) -> None:
        """Adds an outer loss."""
        if hasattr(self, "value"):
            self.value = self.value + found[0]
        else:
            self.value, self.aux = found[0], found[1 + len(judge.meta) + len(judge.places) :]
        _add(self._meta, judge.meta, found[1:])
        _add(self._state, judge.places, found[1 + len(judge.meta) :])

    def stepped(self, step: Step, pulled: list[Tensor]) -> None:
        """Goes back by one step."""
        _add(self._meta, step.meta, pulled)
        self._state = dict(zip(step.places, pulled[len(step.meta) :], strict=True))

    def cotangents(self) -> list[Tensor]:
        """Those of the state that has been reached, in its order."""
        return [self._state[place] for place in sorted(self._state)]

    def gathered(self) -> list[Tensor]:
        """Those of `meta`, in its order."""
        return [self._meta[place] for place in sorted(self._meta)]


def _add(gathered: dict[int, Tensor], places: Places, values: Sequence[Tensor]) -> None:
    for place, value in zip(places, values, strict=False):
        gathered[place] = gathered[place] + value if place in gathered else value
