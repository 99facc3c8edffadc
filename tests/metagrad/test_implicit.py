"""The gradient of a minimum against closed forms, and what the residuals tell."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad

from metalearn import Aux, Problem, UsageError, optim, tree
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Implicit, Stepwise, StrategyWarning, Unrolled
from metalearn.metagrad.solvers import conjugate_gradient, direct, neumann_series
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems

D = torch.float64
SOLVERS = {
    "cg": Implicit(solver="cg", num_iterations=6),
    "neumann": Implicit(solver="neumann", num_iterations=300, step_size=0.05),
    "direct": Implicit(solver="direct"),
}
WAYS = {"loop": Loop(), "vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}


def _ridge(num_inner_steps: int = 300) -> tuple[Problem, dict[str, Tensor], Any]:
    problem, meta = problems.ridge_problem(num_inner_steps)
    return problem, meta, problems.one(problems.values())


def _closed_form(penalty: Tensor, center: Tensor, episode: Any) -> Tensor:
    """The outer loss at the minimum of 1/2 |x w - y|^2 + penalty / 2 |w - center|^2."""
    (x, y), (xq, yq) = episode.support, episode.query
    w = torch.linalg.solve(x.T @ x + penalty * torch.eye(3, dtype=D), x.T @ y + penalty * center)
    return 0.5 * (xq @ w - yq).square().sum()


def _proximal(num_inner_steps: int = 300) -> Problem:
    """Ridge regression towards its own start: iMAML's inner problem."""
    problem, _ = problems.ridge_problem(num_inner_steps)

    def inner_loss(meta: Any, params: Any, buffers: Any, batch: Any, step: int) -> tuple[Tensor, Aux]:
        x, y = batch
        away = (params["w"] - meta["init"]).square().sum()
        return 0.5 * (x @ params["w"] - y).square().sum() + 0.5 * meta["penalty"] * away, Aux(buffers, {})

    return replace(problem, inner_loss=inner_loss)


@pytest.mark.parametrize("solver", SOLVERS)
def test_ridge_regression_in_closed_form(solver: str) -> None:
    problem, meta, episode = _ridge()
    got = SOLVERS[solver].value_and_grad(problem)(meta, episode)
    zero = torch.zeros(3, 1, dtype=D)
    assert_close(got.value, _closed_form(meta["penalty"], zero, episode), tolerance=1e-12)
    assert_close(got.grads["penalty"], grad(_closed_form)(meta["penalty"], zero, episode), tolerance=1e-8)
    assert not got.grads["init"].any()
    assert not got.grads["lr"].any()
    assert got.aux.metrics["inner_residual"] < 1e-12
    assert got.aux.metrics["solver_residual"] < 1e-10


@pytest.mark.parametrize("solver", SOLVERS)
def test_imamls_proximal_term_in_closed_form(solver: str) -> None:
    _, meta, episode = _ridge()
    got = SOLVERS[solver].value_and_grad(_proximal())(meta, episode).grads
    by_penalty, by_start = grad(_closed_form, argnums=(0, 1))(meta["penalty"], meta["init"], episode)
    assert_close(got["penalty"], by_penalty, tolerance=1e-8)
    assert_close(got["init"], by_start, tolerance=1e-8)
    assert by_start.abs().min() > 1e-2
    # Rajeswaran et al. 2019, equation 6: the inverse of I + H / penalty on the outer gradient.
    (x, y), (xq, yq) = episode.support, episode.query
    hessian = x.T @ x
    w = torch.linalg.solve(hessian + meta["penalty"] * torch.eye(3, dtype=D), x.T @ y + meta["penalty"] * meta["init"])
    paper = torch.linalg.solve(torch.eye(3, dtype=D) + hessian / meta["penalty"], xq.T @ (xq @ w - yq))
    assert_close(got["init"], paper, tolerance=1e-8)


def test_it_is_certified_by_finite_differences_once_converged() -> None:
    _, meta, episode = _ridge()
    report = check_meta_gradient(
        _proximal(200), meta, episode, strategy=SOLVERS["cg"], num_directions=1, step_sizes=(1e-2, 3e-3)
    )
    assert report.gradient_norm > 1e-2


def test_a_loss_that_is_not_quadratic_with_any_optimizer() -> None:
    # The way there does not matter: Adam's minimum has the gradient that unrolled descent tends to.
    _, meta, episode = _ridge()

    def inner_loss(meta: Any, params: Any, buffers: Any, batch: Any, step: int) -> tuple[Tensor, Aux]:
        x, y = batch
        away = (params["w"] - meta["init"]).square().sum()
        return ((x @ params["w"] - y).square() + 1).sqrt().sum() + meta["penalty"] * away, Aux(buffers, {})

    problem = replace(_proximal(300), inner_loss=inner_loss)
    expected = Unrolled().value_and_grad(problem)(meta, episode).grads
    adam = replace(problem, num_inner_steps=1500, optimizer=lambda meta: optim.adam(lambda count: 0.1 * 0.98**count))
    for each in (problem, adam):
        got = Implicit(num_iterations=10).value_and_grad(each)(meta, episode).grads
        assert_close((got["init"], got["penalty"]), (expected["init"], expected["penalty"]), tolerance=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_way_of_running_tasks_gives_the_same(solver: str, way: str) -> None:
    _, meta, _ = _ridge()
    got = WAYS[way].value_and_grad(SOLVERS[solver], _proximal(150))(meta, problems.values())
    alone = [
        SOLVERS[solver].value_and_grad(_proximal(150))(meta, problems.one(problems.values(), task)) for task in range(3)
    ]
    assert_close(got.grads, {name: sum(each.grads[name] for each in alone) / 3 for name in meta}, tolerance=1e-10)
    assert_close(got.value, sum(each.value for each in alone) / 3, tolerance=1e-12)
    assert got.aux.metrics["solver_residual"].shape == (3,)


def test_an_inner_loop_that_has_not_converged_is_told_with_its_residual() -> None:
    problem, meta, episode = _ridge(num_inner_steps=3)
    with pytest.warns(StrategyWarning, match=r"still \d\.\de-\d+ of what it was .*Stepwise, which needs no conv"):
        got = Implicit().value_and_grad(problem)(meta, episode)
    x, y = episode.support
    w, norms = meta["init"], []
    for _ in range(4):
        slope = x.T @ (x @ w - y) + meta["penalty"] * w
        norms.append(slope.norm())
        w = w - meta["lr"] * slope
    assert_close(got.aux.metrics["inner_residual"], norms[3] / norms[0], tolerance=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Implicit(tolerance=1.0).value_and_grad(problem)(meta, episode)


def test_a_system_that_is_not_solved_is_told() -> None:
    problem, meta, episode = _ridge()
    with pytest.warns(StrategyWarning, match=r"solved to \d\.\de-\d+ only .*solver=direct"):
        got = Implicit(solver="neumann", num_iterations=2, step_size=0.01).value_and_grad(problem)(meta, episode)
    assert 0.01 < got.aux.metrics["solver_residual"] < 1


def test_its_error_is_of_the_size_of_the_residual() -> None:
    _, meta, episode = _ridge()
    exact = grad(_closed_form, argnums=1)(meta["penalty"], meta["init"], episode)
    for steps in (10, 20, 40):
        got = Implicit(tolerance=1.0, num_iterations=6).value_and_grad(_proximal(steps))(meta, episode)
        error = ((got.grads["init"] - exact).norm() / exact.norm()).item()
        residual = got.aux.metrics["inner_residual"].item()
        assert 0.01 * residual < error < 30 * residual


def test_damping_is_a_bias_that_is_known() -> None:
    _, meta, episode = _ridge()
    got = Implicit(solver="direct", damping=0.7, tolerance=10.0).value_and_grad(_proximal())(meta, episode)
    (x, y), (xq, yq) = episode.support, episode.query
    identity = torch.eye(3, dtype=D)
    w = torch.linalg.solve(x.T @ x + meta["penalty"] * identity, x.T @ y + meta["penalty"] * meta["init"])
    matrix = x.T @ x + (meta["penalty"] + 0.7) * identity
    expected = meta["penalty"] * torch.linalg.solve(matrix, xq.T @ (xq @ w - yq))
    assert_close(got.grads["init"], expected, tolerance=1e-8)
    undamped = Implicit(solver="direct").value_and_grad(_proximal())(meta, episode).grads["init"]
    assert 0.01 < ((got.grads["init"] - undamped).norm() / undamped.norm()).item() < 0.5


def test_meta_parameters_of_the_outer_loss_and_minibatches() -> None:
    problem, meta, episode = _ridge()

    def outer_loss(meta: Any, params: Any, buffers: Any, episode: Any, step: int) -> tuple[Tensor, Aux]:
        loss, aux = problem.outer_loss(meta, params, buffers, episode, step)
        return loss * meta["scale"].square(), aux

    scaled = replace(problem, outer_loss=outer_loss)
    meta = {**meta, "scale": torch.tensor(3.0, dtype=D)}
    got = SOLVERS["direct"].value_and_grad(scaled)(meta, episode).grads
    plain = _closed_form(meta["penalty"], torch.zeros(3, 1, dtype=D), episode)
    assert_close(got["scale"], 6.0 * plain, tolerance=1e-10)


def test_a_gradient_of_nothing_is_refused() -> None:
    problem, meta, episode = _ridge()
    start_alone = problems.given(problem, {name: meta[name] for name in ("penalty", "lr")})
    with pytest.raises(UsageError, match=r"gradient is zero .*MAML\(proximal=1\.0\)"):
        Implicit().value_and_grad(start_alone)({"init": meta["init"]}, episode)


def test_what_it_can_not_do_is_refused_before_a_run() -> None:
    problem, _, _ = _ridge(2)
    with pytest.raises(UsageError, match="num_inner_steps is 0"):
        Implicit().value_and_grad(replace(problem, num_inner_steps=0))
    with pytest.raises(UsageError, match="Implicit can not differentiate a loss after every step"):
        Implicit().value_and_grad(replace(problem, outer_weights=(0.5, 0.5)))
    for wrong in ({"solver": "ccg"}, {"num_iterations": 0}, {"damping": -1.0}, {"step_size": 0.0}, {"tolerance": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Implicit(**wrong)


def test_an_exact_strategy_has_no_remark() -> None:
    assert Stepwise().remark({"inner_residual": 5.0}) is None
    assert "has not converged" in (Implicit().remark({"inner_residual": 5.0}) or "")
    assert Implicit().remark({"inner_residual": 1e-9, "solver_residual": 1e-9, "loss": 7.0}) is None
    assert "has not converged" in (Implicit().remark({"inner_residual": float("nan")}) or "")


def test_solvers_on_a_system_of_their_own() -> None:
    generator = torch.Generator().manual_seed(2)
    half = torch.randn(12, 12, generator=generator, dtype=D)
    matrix, right = half @ half.T / 12 + torch.eye(12, dtype=D), torch.randn(12, generator=generator, dtype=D)
    expected = torch.linalg.solve(matrix, right)

    def product(vector: Tensor) -> Tensor:
        return matrix @ vector

    assert_close(conjugate_gradient(product, right, 12), expected, tolerance=1e-9)
    assert_close(conjugate_gradient(product, right, 100), expected, tolerance=1e-12)
    assert_close(neumann_series(product, right, 400, 0.2), expected, tolerance=1e-12)
    assert_close(direct(product, right), expected, tolerance=1e-13)
    indefinite = matrix - 2 * torch.eye(12, dtype=D)
    assert_close(direct(lambda v: indefinite @ v, right), torch.linalg.solve(indefinite, right), tolerance=1e-12)
    assert not conjugate_gradient(product, torch.zeros(12, dtype=D), 5).any()


def test_the_errors_of_solvers_fall_as_theory_says() -> None:
    scale = torch.tensor([1.0, 3.0], dtype=D)
    right = torch.ones(2, dtype=D)
    for count in (1, 5, 20):  # the remainder of a geometric series
        error = neumann_series(lambda v: scale * v, right, count, 0.25) - right / scale
        assert_close(error, -((1 - 0.25 * scale) ** (count + 1)) / scale, tolerance=1e-12)
    assert_close(conjugate_gradient(lambda v: scale * v, right, 2), right / scale, tolerance=1e-14)


def test_float32_agrees_to_its_precision() -> None:
    _, meta, episode = _ridge()
    got, expected = (
        Implicit().value_and_grad(_proximal(200))(tree.cast(meta, dtype), tree.cast(episode, dtype)).grads
        for dtype in (torch.float32, D)
    )
    assert got["init"].dtype == torch.float32
    assert_close(got["init"], expected["init"], tolerance=1e-4)
