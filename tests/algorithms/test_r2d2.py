"""R2-D2: ridge regression in both forms, and a meta-gradient by the closed form."""

import pytest
import torch

from metalearn import algorithms, functionalize, losses
from metalearn.algorithms.r2d2 import ridge
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from metalearn.models import MLP
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems
from tests.algorithms.test_protonet import episode, linear

D = torch.float64
LOSS = losses.cross_entropy


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=D)


@pytest.mark.parametrize("num_examples", [2, 5, 9])
def test_both_forms_minimise_the_same(num_examples: int) -> None:
    x, y, strength = drawn(num_examples, 5), drawn(num_examples, 3), torch.tensor(0.3, dtype=D)
    found = ridge(x, y, strength)
    primal = torch.linalg.inv(x.T @ x + strength * torch.eye(5, dtype=D)) @ x.T @ y
    dual = x.T @ torch.linalg.inv(x @ x.T + strength * torch.eye(num_examples, dtype=D)) @ y
    torch.testing.assert_close(found, primal)
    torch.testing.assert_close(found, dual)
    slope = 2 * x.T @ (x @ found - y) + 2 * strength * found
    assert slope.abs().max() < 1e-12
    assert torch.autograd.gradcheck(ridge, (x.requires_grad_(), y.requires_grad_(), strength.requires_grad_()))
    assert torch.autograd.gradgradcheck(ridge, (x, y, strength))


def test_a_system_that_is_lost_in_rounding_is_no_number() -> None:
    x = torch.ones(4, 2) * 1e6
    assert ridge(x, torch.ones(4, 1), 1e-9).isnan().all()


@pytest.mark.parametrize("shots", [1, 4])
def test_a_meta_gradient_by_the_closed_form(shots: int) -> None:
    r2d2, model, data = algorithms.R2D2(loss=LOSS, regularisation=0.7, scale=2.0), linear(), episode(shots=shots)
    meta = r2d2.init(model)
    assert {name: float(value) for name, value in meta.items() if value.dim() == 0} == pytest.approx(
        {"log_regularisation": -0.35667494393873245, "log_scale": 0.6931471805599453, "shift": 0.0}
    )
    point = {name: value.clone().requires_grad_() for name, value in meta.items()}
    (x, labels), (queries, wanted), _ = data
    # The form that the algorithm does not take: primal for few examples, dual for many.
    phi, psi = (
        torch.cat([each @ point["init.features.weight"].T, torch.ones(len(each), 1, dtype=D)], 1)
        for each in (x, queries)
    )
    targets, strength = torch.eye(2, dtype=D)[labels], point["log_regularisation"].exp()
    if len(x) < 3:
        weights = torch.linalg.inv(phi.T @ phi + strength * torch.eye(3, dtype=D)) @ phi.T @ targets
    else:
        weights = phi.T @ torch.linalg.inv(phi @ phi.T + strength * torch.eye(len(x), dtype=D)) @ targets
    outputs = point["log_scale"].exp() * psi @ weights + point["shift"]
    loss = torch.nn.functional.cross_entropy(outputs, wanted)
    expected = dict(zip(point, torch.autograd.grad(loss, list(point.values())), strict=True))
    found = Unrolled().value_and_grad(r2d2.problem(model))(meta, data)
    torch.testing.assert_close(found.value, loss.detach())
    assert_close(found.grads, expected, tolerance=1e-12)
    assert float(found.grads["log_regularisation"].abs()) > 1e-4
    report = check_meta_gradient(r2d2.problem(model), meta, data)
    assert report.error < 1e-6


def test_a_regression_has_its_own_targets() -> None:
    torch.manual_seed(0)
    model = functionalize(MLP(input_shape=(3,), num_outputs=1, hidden=(4,)).double())
    r2d2, batch = algorithms.R2D2(loss=losses.mean_squared_error), problems.values(2)
    meta = r2d2.init(model, type("Values", (), {"kind": "regression", "name": "values"}))
    assert float(meta["log_scale"]) == 0.0
    data = problems.one(batch)
    phi, psi = (
        torch.cat(
            [
                model.without("head")(model.without("head").params, model.without("head").buffers, x)[0],
                torch.ones(6, 1),
            ],
            1,
        )
        for x in (data.support[0], data.query[0])
    )
    expected = psi @ torch.linalg.solve(phi.T @ phi + torch.eye(5), phi.T @ data.support[1])
    outputs = r2d2.predict(model, meta, r2d2.adapt(model, meta, model.buffers, data.support), data.query[0])
    torch.testing.assert_close(outputs, expected)
    problem = r2d2.problem(model)
    assert check_meta_gradient(problem, meta, data, num_directions=2).error < 1e-6
    padded = problems.padded(problems.of_several_sizes("regression"), num_outputs=1)
    found = [way.value_and_grad(Unrolled(), problem)(meta, padded) for way in (Loop(), Vmap())]
    assert_close(found[0].grads, found[1].grads, tolerance=1e-10)
