"""The gradient of the point that the inner loop converges to, whatever way it went."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.func import grad

from metalearn import tree
from metalearn.diagnosis import explained
from metalearn.errors import UsageError, did_you_mean
from metalearn.inner import InnerState, inner_loss_of
from metalearn.metagrad.base import (
    MetaGradient,
    Outcome,
    Strategy,
    StrategyWarning,
    constants,
    refuse_carry,
    refuse_weights,
)
from metalearn.metagrad.pieces import Judged, Pieces, Point
from metalearn.metagrad.reverse import pullback
from metalearn.metagrad.solvers import conjugate_gradient, direct, neumann_series
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors

Solver = Literal["cg", "neumann", "direct"]

INNER_RESIDUAL = "inner_residual"
SOLVER_RESIDUAL = "solver_residual"


@dataclass(frozen=True)
class Implicit(Strategy):
    r"""The implicit function theorem at a minimum $\theta^*$ of the inner loss $L$.

    $\nabla_{meta} = \partial_{meta} F - \partial_{meta} \partial_\theta L \, v$ with $(\partial^2_\theta L + \lambda I)
    v = \partial_\theta F$ for the outer loss $F$. Memory and time of the way back do not depend on the number of steps;
    the gradient is exact as far as the inner loop has converged and the system is solved. Both relative residuals come
    back as metrics: `inner_residual`, $\lVert \partial_\theta L(\theta_K) \rVert$ over its value at the start, and
    `solver_residual`.

    A learned start gets a gradient only where the inner loss holds on to it: iMAML's proximal term,
    `MAML(proximal=…)`. Buffers count as constants at their last values.

    References: Rajeswaran, Finn, Kakade and Levine 2019, arXiv:1909.04630; Lorraine et al. 2020, arXiv:1911.02590.

    Attributes:
        solver: `"cg"` (a positive definite Hessian), `"neumann"` (small steps), or `"direct"` (any invertible Hessian
            of a small problem).
        num_iterations: of the first two.
        step_size: of the Neumann series; times the largest curvature it must be below 2.
        damping: $\lambda$, which steadies an almost singular Hessian and biases the gradient.
        tolerance: a residual above it is told.
    """

    inexact: ClassVar[str] = (
        "It is the gradient of the minimum that the inner loop converges to, as exact as the residuals in its metrics."
    )

    solver: Solver = "cg"
    num_iterations: int = 20
    step_size: float = 0.1
    damping: float = 0.0
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise UsageError(f"Implicit(solver={self.solver!r}). {did_you_mean(str(self.solver), get_args(Solver))}")
        for name, least in (("num_iterations", 1), ("damping", 0.0), ("tolerance", 0.0)):
            if getattr(self, name) < least:
                raise UsageError(f"Implicit({name}={getattr(self, name)}): it must be at least {least}.")
        if not self.step_size > 0:
            raise UsageError(f"Implicit(step_size={self.step_size}): it must be above 0.")

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; exact to its residuals, and without a carry."""
        refuse_weights(self, problem, "only the last state is a minimum of the inner loss")
        if problem.num_inner_steps == 0:
            raise UsageError("Implicit needs inner steps that lead to a minimum, but num_inner_steps is 0.")

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            pieces = Pieces(problem, *constants(meta, episode))
            began, state = pieces.ends()
            params = tuple(range(len(state.params)))  # a state's leaves begin with its parameters
            end = pieces.judge(Point(state, params), problem.num_inner_steps)
            with explained({**pieces.meta, **state.params}):
                by_meta, residuals = self._through_minimum(pieces, began, state, end)
            grads = {name: end.meta[name] - value for name, value in by_meta.items()}
            _refuse_nothing(grads)
            told = self.remark({name: value for name, value in residuals.items() if not _is_wrapped(value)})
            if told is not None:
                warnings.warn(told, StrategyWarning, stacklevel=2)
            return Outcome(end.value, grads, end.aux._replace(metrics={**end.aux.metrics, **residuals}), None)

        return run

    def remark(self, metrics: Mapping[str, float | Tensor]) -> str | None:
        """Tells a residual that is too large, by its name in the metrics."""
        inner, solver = (float(metrics.get(name, 0.0)) for name in (INNER_RESIDUAL, SOLVER_RESIDUAL))
        if not inner <= self.tolerance:
            return (
                f"the inner loop has not converged: the inner gradient is still {inner:.1e} of what it was at the "
                f"start (tolerance {self.tolerance:.0e}), so Implicit's gradient is off by about as much. Take more "
                "inner steps, or Stepwise, which needs no convergence."
            )
        if not solver <= self.tolerance:
            return (
                f"Implicit's linear system is solved to {solver:.1e} only (tolerance {self.tolerance:.0e}). Raise "
                "num_iterations or damping, or take solver=direct for a small problem."
            )
        return None

    def _through_minimum(
        self, pieces: Pieces, began: InnerState, state: InnerState, end: Judged
    ) -> tuple[Tensors, Tensors]:
        r"""$\partial_{meta} \partial_\theta L \, v$, and the residuals."""
        last = pieces.problem.num_inner_steps - 1

        def gradient(meta: Tensors, params: Tensors, buffers: Tensors) -> Tensors:
            def loss(params: Tensors) -> Tensor:
                at = InnerState(params, buffers, state.opt_state)
                return inner_loss_of(pieces.problem, meta, pieces.episode, at, last)[0]

            found: Tensors = grad(loss)(params)
            return found

        at_end, pull = pullback(lambda meta, params: gradient(meta, params, state.buffers), pieces.meta, state.params)

        def product(vector: Tensor) -> Tensor:
            image: Tensors = pull(tree.from_vector(vector, at_end))[1]
            return tree.to_vector(image) + self.damping * vector

        right = tree.to_vector(dict(zip(at_end, end.state, strict=True)))
        solution = self._solve(product, right)
        at_start = gradient(pieces.meta, began.params, began.buffers)
        tiny = torch.finfo(right.dtype).tiny
        residuals = {
            INNER_RESIDUAL: tree.norm(at_end) / tree.norm(at_start).clamp_min(tiny),
            SOLVER_RESIDUAL: (product(solution) - right).norm() / right.norm().clamp_min(tiny),
        }
        by_meta: Tensors = pull(tree.from_vector(solution, at_end))[0]
        return tree.detach((by_meta, residuals))

    def _solve(self, product: Any, right: Tensor) -> Tensor:
        if self.solver == "cg":
            return conjugate_gradient(product, right, self.num_iterations)
        if self.solver == "neumann":
            return neumann_series(product, right, self.num_iterations, self.step_size)
        return direct(product, right)


def _is_wrapped(value: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def _refuse_nothing(grads: Tensors) -> None:
    """Raises UsageError for a gradient of zeros: what is learned does not act on the minimum."""
    if any(_is_wrapped(value) or bool(value.any()) for value in grads.values()):
        return
    raise UsageError(
        "Implicit's gradient is zero for everything in meta: the minimum of the inner loss does not depend on it. A "
        "learned start needs a proximal term that holds on to it (MAML(proximal=1.0), on the command line "
        "algorithm.proximal=1.0); for a learned rate take Unrolled or Stepwise."
    )
