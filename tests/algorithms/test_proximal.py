"""iMAML's proximal term: what it adds to the inner loop, and that an implicit gradient needs it."""

import pytest
import torch
from torch import nn

from metalearn import Episodes, algorithms, functionalize, losses
from metalearn.errors import UsageError
from metalearn.metagrad import Implicit, Stepwise, Unrolled
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems

D = torch.float64


def linear(**settings) -> tuple[algorithms.MAML, object, Episodes]:
    torch.manual_seed(0)
    model = functionalize(nn.Linear(3, 1, bias=False).double())
    maml = algorithms.MAML(loss=losses.mean_squared_error, **settings)
    return maml, model, problems.one(problems.values())


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_the_inner_loop_ends_at_the_closed_form(strength: float) -> None:
    maml, model, episode = linear(inner_lr=0.2, num_inner_steps=400, proximal=strength)
    (x, y), began = episode.support, model.params["weight"]
    # mean((x w - y)^2) + strength / 2 |w - w0|^2
    hessian = 2 * x.T @ x / len(x) + strength * torch.eye(3, dtype=D)
    expected = torch.linalg.solve(hessian, 2 * x.T @ y / len(x) + strength * began.T).T
    adapted = maml.adapt(model, maml.init(model), model.buffers, episode.support)
    assert_close(adapted.params["weight"], expected, tolerance=1e-12)


def test_the_implicit_gradient_is_that_of_a_long_inner_loop() -> None:
    maml, model, episode = linear(inner_lr=0.2, num_inner_steps=400, proximal=1.0)
    problem, meta = maml.problem(model), maml.init(model)
    expected = Unrolled().value_and_grad(problem)(meta, episode).grads
    for solver in ("cg", "direct"):
        got = Implicit(solver=solver).value_and_grad(problem)(meta, episode)
        assert_close(got.grads, expected, tolerance=1e-12)
        assert got.aux.metrics["inner_residual"] < 1e-12


@pytest.mark.parametrize("strategy", [Unrolled(), Stepwise()])
def test_its_gradient_is_certified(strategy) -> None:
    model = problems.model_of("plain, tanh")
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.3, num_inner_steps=3, proximal=0.7)
    check_meta_gradient(maml.problem(model), maml.init(model), problems.one(problems.images()), strategy=strategy)


def test_without_it_an_implicit_gradient_is_refused() -> None:
    maml, model, episode = linear(inner_lr=0.2, num_inner_steps=5)
    with pytest.raises(UsageError, match=r"proximal=1\.0"):
        Implicit().value_and_grad(maml.problem(model))(maml.init(model), episode)


def test_a_weight_below_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 0"):
        algorithms.MAML(loss=losses.cross_entropy, proximal=-1.0)
