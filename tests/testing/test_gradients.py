"""The checker itself: it accepts what is right, and refuses what is wrong by little."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from metalearn import UsageError, algorithms, functionalize, losses, tree
from metalearn.metagrad import Strategy, Unrolled
from metalearn.testing import check_meta_gradient
from tests import problems


@dataclass(frozen=True)
class Tampered(Strategy):
    """The exact gradient with one entry changed a little."""

    amount: float

    def value_and_grad(self, problem):
        exact = Unrolled().value_and_grad(problem)

        def run(meta, episode, carry=None):
            outcome = exact(meta, episode)
            name = next(iter(outcome.grads))
            change = (
                self.amount
                * tree.norm(outcome.grads)
                * torch.ones_like(outcome.grads[name])
                / outcome.grads[name].numel() ** 0.5
            )
            return outcome._replace(grads={**outcome.grads, name: outcome.grads[name] + change})

        return run


@dataclass(frozen=True)
class Forgetful(Strategy):
    def value_and_grad(self, problem):
        exact = Unrolled().value_and_grad(problem)

        def run(meta, episode, carry=None):
            outcome = exact(meta, episode)
            return outcome._replace(grads=dict(list(outcome.grads.items())[1:]))

        return run


def _case(layer: str = "plain, tanh"):
    problem, meta = problems.problem_of(problems.model_of(layer), "sgd")
    return problem, meta, problems.one(problems.images())


@pytest.mark.parametrize("amount", [1e-1, 1e-3, 1e-4])
def test_a_gradient_that_is_wrong_by_little_is_refused(amount: float) -> None:
    with pytest.raises(AssertionError, match="Tampered is wrong: relative error"):
        check_meta_gradient(*_case(), strategy=Tampered(amount))


def test_a_gradient_with_a_name_missing_is_refused() -> None:
    with pytest.raises(AssertionError, match="other names or shapes"):
        check_meta_gradient(*_case(), strategy=Forgetful())


def test_kinks_are_redrawn_and_counted_not_blamed_on_the_gradient() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 1)).double()
    model = functionalize(module)
    maml = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.05, num_inner_steps=3)
    episode = problems.one(problems.values(examples=40))
    report = check_meta_gradient(maml.problem(model), maml.init(model), episode, step_sizes=(3e-4, 1e-4))
    assert report.num_redrawn > 0
    assert report.error < 1e-6
    with pytest.raises(AssertionError):
        check_meta_gradient(maml.problem(model), maml.init(model), episode, strategy=Tampered(1e-3))


def test_float32_is_refused_with_the_fix() -> None:
    problem, meta, episode = _case()
    with pytest.raises(UsageError, match=r"module\.double\(\)"):
        check_meta_gradient(problem, tree.cast(meta, torch.float32), episode)


def test_an_objective_made_of_kinks_is_refused() -> None:
    problem, meta, episode = _case()
    rough = replace(
        problem,
        outer_loss=lambda *args: (
            (problem.outer_loss(*args)[0] * 1e5).round() * 1e-5,
            problem.outer_loss(*args)[1],
        ),
    )
    with pytest.raises(UsageError, match="kinks"):
        check_meta_gradient(rough, meta, episode, max_redrawn=3)
