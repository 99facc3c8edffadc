"""`check_transformation`: the tests that our optimizers get, for a user's own transformation."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from metalearn import random, tree
from metalearn.errors import UsageError, did_you_mean
from metalearn.optim import GradientTransformation
from metalearn.testing.transformations.form import check_direction, check_form, check_vmap
from metalearn.testing.transformations.purity import check_purity
from metalearn.testing.transformations.rows import Terms, TransformationRow, derivative_rows
from metalearn.testing.transformations.subject import Subject
from metalearn.testing.transformations.trial import trials
from metalearn.testing.transformations.values import Reference, check_singular_points, reference_error
from metalearn.testing.transformations.ways import forward_error, strategies_error
from metalearn.types import Tensors


@dataclass(frozen=True)
class TransformationReport:
    """What `check_transformation` found out about a transformation that has no mistake.

    Attributes:
        rows: every derivative that was certified.
        forward_error: the largest difference of forward to reverse mode, relative to a row's gradient norm.
        strategies_error: of Stepwise and of vmap to Unrolled in a loop, relative to a meta-parameter's gradient norm.
        reference_error: of the parameters to the reference's, relative to their size above 1; None without a reference.
    """

    rows: tuple[TransformationRow, ...]
    forward_error: float
    strategies_error: float
    reference_error: float | None

    @property
    def error(self) -> float:
        """The largest of the rows'."""
        return max(row.error for row in self.rows)

    def row(self, of: str, num_steps: int, *, order: int = 1) -> TransformationRow:
        """One row: of a hyper-parameter by its name, or of what the row itself says.

        Raises:
            UsageError: there is none.
        """
        for row in self.rows:
            if (row.num_steps, row.order) == (num_steps, order) and of in (row.of, *row.of.split("'")[1:2]):
                return row
        raise UsageError(f"there is no row of {of!r}. {did_you_mean(of, {row.of for row in self.rows})}")

    def __str__(self) -> str:
        equal = "" if self.reference_error is None else f", to the reference {self.reference_error:.0e}"
        lines = [
            f"{row.name:<60} {row.error:.0e} of {row.gradient_norm:.1e}"
            + (f", {row.num_redrawn} redrawn" if row.num_redrawn else "")
            for row in self.rows
        ]
        ways = f"forward mode {self.forward_error:.0e}, strategies {self.strategies_error:.0e}{equal}"
        return "\n".join([*lines, ways])


def check_transformation(
    make: Callable[[Tensors], GradientTransformation] | GradientTransformation,
    *,
    hypers: Mapping[str, Tensor | float] = MappingProxyType({}),
    params: Tensors | None = None,
    num_steps: Sequence[int] = (5, 20),
    tolerance: float = 1e-6,
    num_directions: int = 1,
    reference: Reference | None = None,
    is_whole: bool = True,
    max_redrawn: int = 40,
    seed: int = 0,
) -> TransformationReport:
    r"""Gives a transformation the tests that every optimizer of `metalearn.optim` gets, in float64 unless said.

    In this order, and up to the first that fails:

    - **Form**: updates have the parameters' names, shapes, dtypes and devices, also in float32. The state holds tensors
      alone, keeps its structure, shapes and dtypes from step to step, and can be saved by names.
    - **Purity**: inputs stay as they are, the same inputs give the same outputs, with grad and without, nothing is kept
      outside the state, and `step` is parameters plus updates. The first update of a whole optimizer goes downhill.
    - **vmap**: over batches of parameters, gradients, hyper-parameters and states of different ages it is the loop.
    - **Zero gradients**: values, first and second derivatives are finite for dead entries, gradients that are all zero,
      zero parameters, and at the first step.
    - **Derivatives** of the loss after an inner loop on a small smooth problem, in reverse mode against finite
      differences: of every hyper-parameter alone, the initial parameters, the initial state (a warm one) and the data;
      and the second derivatives, through the fewest steps. Directions that cross a kink are redrawn and counted.
    - **Ways**: forward mode is reverse mode; `Unrolled`, `Stepwise`, a loop and vmap give one meta-gradient, to 1e-10.
    - **Reference**: equal to a `torch.optim` over 100 steps of five problems, zero gradients among them, to 1e-12;
      both are given the gradients at the reference's parameters.

    Args:
        make: from named hyper-parameters (float64 tensors) to the transformation, a pure function; or the
            transformation, where there is no hyper-parameter to certify.
        hypers: the values at which it is certified, inside their range: each is moved by up to 16 % of itself, or of
            its distance to 1 where that is less.
        params: where the inner loop starts, float64; by default a matrix, a vector and a scalar, ten numbers together.
        num_steps: through how many inner steps derivatives are certified.
        tolerance: largest error accepted, relative to the norm of the row's own gradient (absolute below 1e-6).
        num_directions: random unit directions a row.
        reference: from a list of parameters, in the order of `params`, to what it has to be equal to.
        is_whole: False for a part of an optimizer (a clip, a preconditioner), which is then chained with a rate of 0.1,
            and for one that goes uphill (`maximize`).
        max_redrawn: how many kinks to bear in a row.
        seed: of the data, the gradients and the directions.

    Returns:
        The report, if there is no mistake.

    Raises:
        AssertionError: the fault, where it shows, and its likely cause.
        UsageError: `make` makes no transformation, a parameter is not float64, or there are kinks wherever one looks.

    Example:
        >>> def signed_root(hypers):  # u = -lr * g / sqrt(|g| + eps)
        ...     def update(updates, state, params):
        ...         def root(g):
        ...             return -hypers["lr"] * g / (g.square() + hypers["eps"]).sqrt().sqrt()
        ...         return {name: root(g) for name, g in updates.items()}, state
        ...     return GradientTransformation(lambda params: {}, update)
        >>> report = check_transformation(signed_root, hypers={"lr": 0.1, "eps": 1e-2})
        >>> [row.of for row in report.rows if row.num_steps == 20]
        ["hyper-parameter 'lr'", "hyper-parameter 'eps'", 'initial parameters', 'data']
    """
    subject = _subject(make, hypers, params, is_whole, seed)
    steps = sorted({_checked_steps(count) for count in num_steps})
    if not steps or num_directions < 1:
        raise UsageError("num_steps and num_directions have to be 1 or more: there would be nothing to certify.")
    check_form(subject)
    check_purity(subject)
    check_direction(subject)
    check_vmap(subject)
    check_singular_points(subject)
    terms = Terms(tolerance, num_directions, max_redrawn)
    shortest = trials(subject, steps[0])
    first = [(trial, 1) for count in steps for trial in trials(subject, count)]
    return TransformationReport(
        (*derivative_rows(first, terms), *derivative_rows([(trial, 2) for trial in shortest], terms)),
        max(forward_error(trial) for trial in shortest),
        strategies_error(subject, steps[0]),
        None if reference is None else reference_error(subject, reference),
    )


def _subject(
    make: Callable[[Tensors], GradientTransformation] | GradientTransformation,
    hypers: Mapping[str, Tensor | float],
    params: Tensors | None,
    is_whole: bool,
    seed: int,
) -> Subject:
    start = _default_params(seed) if params is None else tree.detach(dict(params))
    if not start:
        raise UsageError("params is empty: there is nothing to move. Leave it out for the default ones.")
    for name, value in start.items():
        if value.dtype != torch.float64:
            raise UsageError(f"params[{name!r}] is {value.dtype}: finite differences need float64 (value.double()).")
    values = {
        name: torch.as_tensor(value, dtype=torch.float64, device=next(iter(start.values())).device).detach()
        for name, value in hypers.items()
    }
    if not isinstance(make, GradientTransformation):
        _refuse_keywords(make, values)
        return Subject(make, values, start, is_whole, seed)
    if values:
        raise UsageError(
            "hypers are given with a transformation that is made already, and can not reach it: pass a function "
            "`lambda hypers: my_transformation(**hypers)`."
        )
    return Subject(lambda hypers: make, values, start, is_whole, seed)


def _refuse_keywords(make: Any, hypers: Tensors) -> None:
    """A factory that takes hyper-parameters by keyword would take the dict of all for the first of them."""
    if not callable(make):
        raise UsageError(f"make is a {type(make).__name__}, expected a GradientTransformation, or what makes one.")
    try:
        names = inspect.signature(make).parameters
    except ValueError:  # some callables of C have none
        return
    if any(name in names for name in hypers):
        raise UsageError(
            "make takes hyper-parameters by keyword, and is called with one dict of them: pass "
            "`lambda hypers: make(**hypers)`."
        )


def _default_params(seed: int) -> Tensors:
    key = random.fold_in(random.key(seed), 20)
    shapes = {"weight": (2, 3), "bias": (3,), "scale": ()}
    return {
        name: 0.5 * random.normal(random.fold_in(key, index), shape, dtype=torch.float64)
        for index, (name, shape) in enumerate(shapes.items())
    }


def _checked_steps(count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"num_steps has {count!r}, but each must be an integer of at least 1.")
    return count
