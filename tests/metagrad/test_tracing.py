"""Where an outer gradient grows on its way back, and where an inner loop diverges."""

import math

import pytest
import torch

from metalearn import optim, tree
from metalearn.metagrad import Unrolled, trace
from metalearn.metagrad.tracing import MetaTrace
from metalearn.problem import Problem
from metalearn.types import Aux
from tests import problems

D = torch.float64


def quadratic(lr: float, num_inner_steps: int) -> Problem:
    """Descent on w**2 / 2: each step multiplies w, and each pullback the gradient, by 1 - lr."""
    return Problem(
        init=lambda meta, episode: ({"w": meta["w"]}, {}),
        inner_loss=lambda meta, params, buffers, batch, step: (0.5 * params["w"].square().sum(), Aux(buffers, {})),
        optimizer=lambda meta: optim.sgd(lr),
        outer_loss=lambda meta, params, buffers, episode, step: (params["w"].sum(), Aux(buffers, {})),
        num_inner_steps=num_inner_steps,
        batch=lambda episode, step: episode,
    )


META = {"w": torch.tensor([3.0], dtype=D)}


def test_norms_are_those_by_hand() -> None:
    found = trace(quadratic(0.1, 4), META, torch.zeros(()))
    torch.testing.assert_close(torch.tensor(found.meta_grad_norms), torch.tensor([0.9**k for k in (4, 3, 2, 1, 0)]))
    torch.testing.assert_close(torch.tensor(found.inner_losses), torch.tensor([4.5 * 0.81**k for k in range(4)]))
    assert found.told() is None


def test_the_first_norm_is_that_of_the_gradient() -> None:
    problem, meta = problems.problem_of(problems.model_of("batch norm, running statistics"), "adam", num_inner_steps=3)
    episode = problems.one(problems.images())
    grads = Unrolled().value_and_grad(problem)(meta, episode).grads
    expected = tree.norm(tree.select(grads, "init.")).item()
    assert trace(problem, meta, episode).meta_grad_norms[0] == pytest.approx(expected, rel=1e-12)


def test_a_rate_too_high_is_told_with_its_step() -> None:
    found = trace(quadratic(4.0, 12), META, torch.zeros(()))
    assert found.diverges_at == 0
    assert "diverges from inner step 1" in found.told()
    assert found.explodes_at is not None
    overflowing = trace(quadratic(1e80, 9), META, torch.zeros(()))
    assert math.isfinite(overflowing.inner_losses[1])
    assert overflowing.diverges_at == next(
        k for k, loss in enumerate(overflowing.inner_losses) if not math.isfinite(loss)
    )


@pytest.mark.parametrize(
    ("norms", "at"),
    [
        ((1.0, 1.0, 1.0), None),
        ((1e5, 1e5, 1.0), 1),
        ((1e5, 1e4, 1.0), 1),
        ((1e9, 1.0, 1.0), 0),
        ((math.inf, 2.0, 1.0), 0),
    ],
)
def test_the_step_at_which_it_explodes(norms, at) -> None:
    found = MetaTrace((1.0, 1.0), norms)
    assert found.explodes_at == at
    assert (found.told() is None) == (at is None)
    assert at is None or f"inner step {at + 1}" in found.told()
