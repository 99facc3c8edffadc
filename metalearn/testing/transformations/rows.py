"""The derivatives through an inner loop with a transformation, row by row against finite differences."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn import random, tree
from metalearn.errors import UsageError
from metalearn.testing.gradients import closest, dot, unit_direction
from metalearn.testing.transformations.subject import told
from metalearn.testing.transformations.trial import Trial, gradient, second_derivative
from metalearn.types import Tensors

STEP_SIZES = tuple(0.16 / 2**halvings for halvings in range(15))
_FLOOR = 1e-6


@dataclass(frozen=True)
class TransformationRow:
    """What one derivative of an inner loop was found to be.

    Attributes:
        of: `hyper-parameter 'lr'`, `initial parameters`, `initial state` or `data`.
        num_steps: the inner steps that it goes through.
        order: 1, or 2 for the derivative of the first one.
        error: the largest difference of the directional derivatives to finite differences, relative to
            `gradient_norm` (absolute below a norm of 1e-6).
        gradient_norm: of this row alone, parameters and data in their own units, state in multiples of its size, and
            hyper-parameters in multiples of theirs (or of the distance to 1, where that is less). With a norm of 0 the
            value does not depend on it at all, as the sign of a gradient does not on the data.
        finite_difference_error: by how much the finite differences differ among themselves, likewise.
        num_redrawn: directions thrown away because a kink is close to the point.
    """

    of: str
    num_steps: int
    order: int
    error: float
    gradient_norm: float
    finite_difference_error: float
    num_redrawn: int

    @property
    def name(self) -> str:
        """The row in words."""
        second = "second derivative, " if self.order == 2 else ""
        return f"{second}{self.of}, {self.num_steps} steps"


class Terms(NamedTuple):
    """How strict the comparison with finite differences is."""

    tolerance: float
    num_directions: int
    max_redrawn: int


class Probe(NamedTuple):
    """A row in one direction: its derivative in reverse mode and by finite differences, their spread, its norm."""

    got: float
    expected: float
    spread: float
    norm: float

    @property
    def error(self) -> float:
        """Relative to the norm, absolute where that is small."""
        return abs(self.got - self.expected) / max(self.norm, _FLOOR)


def derivative_rows(trials: Sequence[tuple[Trial, int]], terms: Terms) -> list[TransformationRow]:
    """Every row of the trials, each of an order; raises AssertionError that lists all the wrong ones."""
    rows, wrong = [], []
    for trial, order in trials:
        found, num_redrawn = _probes(trial, terms, order)
        for of, probes in found.items():
            row = _row(trial, of, order, probes, num_redrawn[of])
            rows.append(row)
            if not row.error <= terms.tolerance:
                wrong.append(f"  {row.name}: {_fault(probes, terms)}")
    if wrong:
        raise AssertionError("\n".join([f"{len(wrong)} of {len(rows)} derivatives are wrong:", *wrong]))
    return rows


def _probes(trial: Trial, terms: Terms, order: int) -> tuple[dict[str, list[Probe]], dict[str, int]]:
    """So many directions a row as cross no kink, and how many were redrawn."""
    rows = trial.rows()
    what = f"the {'second ' if order == 2 else ''}derivative through {trial.num_steps} inner steps"
    cause = "a write in place into what the backward pass needs, or an operation without a derivative."
    with told(what, cause):
        exact = gradient(trial)
    _require_finite(trial, exact)
    found: dict[str, list[Probe]] = {row: [] for row in rows}
    num_redrawn = dict.fromkeys(rows, 0)
    drawn = 0
    while any(len(probes) < terms.num_directions for probes in found.values()):
        key = trial.subject.key(drawn)
        directions = [_direction(trial, names, random.fold_in(key, index)) for index, names in enumerate(rows.values())]
        with told(what, cause):
            probes = _first(trial, exact, directions) if order == 1 else _second(trial, directions)
        drawn += 1
        for row, probe in zip(rows, probes, strict=True):
            if len(found[row]) == terms.num_directions:
                continue
            if probe.spread <= terms.tolerance / 2:
                found[row].append(probe)
                continue
            num_redrawn[row] += 1
            if num_redrawn[row] > terms.max_redrawn:
                raise UsageError(
                    f"finite differences by {row} disagree among themselves in {num_redrawn[row]} directions: the "
                    "transformation has kinks everywhere near these values (a rounding, a draw that changes), or its "
                    "hyper-parameters are at the edge of their range. Give others."
                )
    return found, num_redrawn


def _direction(trial: Trial, names: Sequence[str], key: Tensor) -> Tensors:
    """A random unit direction in one row, zero in the others."""
    origin = trial.origin()
    return {**origin, **unit_direction({name: origin[name] for name in names}, key)}


def _first(trial: Trial, exact: Tensors, directions: Sequence[Tensors]) -> list[Probe]:
    with torch.no_grad():
        values = torch.vmap(trial)(_points(directions)).reshape(len(directions), len(STEP_SIZES), 2)
    return [
        _probe(dot(exact, direction), of_row, _norm_of(exact, names))
        for direction, of_row, names in zip(directions, values, trial.rows().values(), strict=True)
    ]


def _second(trial: Trial, directions: Sequence[Tensors]) -> list[Probe]:
    """Of the gradient along all rows at once, seen in each row's own direction."""
    along = {name: torch.stack([each[name] for each in directions]).sum(dim=0) for name in directions[0]}
    exact = second_derivative(trial, along)
    grads = torch.vmap(torch.func.grad(trial))(_points([along]))
    probes = []
    for direction, names in zip(directions, trial.rows().values(), strict=True):
        values = sum((grads[name] * direction[name]).reshape(len(grads[name]), -1).sum(dim=1) for name in names)
        assert isinstance(values, Tensor)
        probes.append(_probe(dot(exact, direction), values.reshape(len(STEP_SIZES), 2), _norm_of(exact, names)))
    return probes


def _points(directions: Sequence[Tensors]) -> Tensors:
    """Where finite differences look: `[direction x step size x 2]` in front of every shape, up and down in turn."""
    steps = [sign * h for h in STEP_SIZES for sign in (1, -1)]
    return {
        name: torch.stack([step * direction[name] for direction in directions for step in steps])
        for name in directions[0]
    }


def _probe(got: float, values: Tensor, norm: float) -> Probe:
    """From the values at the points up and down a direction, `[step size, 2]`."""
    central = [(up - down) / (2 * h) for (up, down), h in zip(values.tolist(), STEP_SIZES, strict=True)]
    expected, spread = closest([(4 * half - whole) / 3 for whole, half in itertools.pairwise(central)])
    # Of the larger norm: a gradient that is zero by mistake is wrong, and not a kink.
    return Probe(got, expected, spread / max(norm, abs(expected), _FLOOR), norm)


def _norm_of(named: Tensors, names: Sequence[str]) -> float:
    return tree.norm([named[name] for name in names]).item()


def _require_finite(trial: Trial, exact: Tensors) -> None:
    value = trial(trial.origin())
    if not value.isfinite():
        raise AssertionError(
            f"the loss is {value.item()} after {trial.num_steps} inner steps. Likely cause: hyper-parameters out of "
            "their range, or a division by zero."
        )
    for row, names in trial.rows().items():
        if not all(exact[name].isfinite().all() for name in names):
            raise AssertionError(
                f"the derivative of {row} through {trial.num_steps} steps is not finite. Likely cause: a square root, "
                "norm or division whose derivative is infinite at a value that occurs, such as a second moment of 0: "
                "select with torch.where before it and after it."
            )


def _row(trial: Trial, of: str, order: int, probes: Sequence[Probe], num_redrawn: int) -> TransformationRow:
    return TransformationRow(
        of, trial.num_steps, order, max(probe.error for probe in probes), probes[0].norm,
        max(probe.spread for probe in probes), num_redrawn,
    )  # fmt: skip


def _fault(probes: Sequence[Probe], terms: Terms) -> str:
    worst = max(probes, key=lambda probe: probe.error)
    if worst.norm == 0:
        cause = (
            "nothing flows back at all, and the value depends on it. Likely cause: .detach(), .item(), float(), .data "
            "or torch.no_grad() on the way, which leave a number where a tensor was."
        )
    elif abs(worst.expected) < terms.tolerance * worst.norm:
        cause = "the value does not depend on it. Likely cause: a straight-through estimator, or a rounding."
    else:
        cause = (
            "a part of it is lost. Likely cause: a .detach(), .item() or .data on one of several ways, or a backward "
            "written by hand."
        )
    return f"{worst.got:.6g} in reverse mode, {worst.expected:.6g} by finite differences; {cause}"
