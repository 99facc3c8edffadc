"""Ways of running tasks: what comes back, in what order, merged how."""

import pytest
import torch
from torch import nn

from metalearn import Episodes, UsageError, algorithms, functionalize, losses
from metalearn.execution import Loop, Vmap, choose
from metalearn.metagrad import Unrolled
from metalearn.testing import assert_close
from tests import problems

WAYS = {"loop": Loop(), "vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}


def _running():
    model = problems.model_of("batch norm, running statistics")
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.3, num_inner_steps=2)
    return model, maml.problem(model), maml.init(model)


@pytest.mark.parametrize("way", WAYS)
def test_the_outcome_is_the_mean_over_tasks(way: str) -> None:
    _, problem, meta = _running()
    episodes = problems.images(5)
    outcome = WAYS[way].value_and_grad(Unrolled(), problem)(meta, episodes)
    single = [Unrolled().value_and_grad(problem)(meta, problems.one(episodes, index)) for index in range(5)]
    assert_close(outcome.value, sum(one.value for one in single) / 5, tolerance=1e-13)
    assert_close(outcome.grads, {name: sum(one.grads[name] for one in single) / 5 for name in meta}, tolerance=1e-12)
    accuracies = torch.stack([one.aux.metrics["accuracy"] for one in single])
    assert torch.equal(outcome.aux.metrics["accuracy"], accuracies)


@pytest.mark.parametrize("way", WAYS)
def test_running_statistics_return_as_the_mean_over_tasks(way: str) -> None:
    model, problem, meta = _running()
    episodes = problems.images(5)
    buffers = WAYS[way].value_and_grad(Unrolled(), problem)(meta, episodes).aux.buffers
    single = [Unrolled().value_and_grad(problem)(meta, problems.one(episodes, index)).aux.buffers for index in range(5)]
    assert_close(buffers["1.running_mean"], sum(one["1.running_mean"] for one in single) / 5, tolerance=1e-13)
    assert buffers["1.num_batches_tracked"].item() == 3  # two inner steps and the query set
    assert "rng" not in buffers
    assert not torch.equal(buffers["1.running_mean"], model.buffers["1.running_mean"])


def test_the_policy_keep_returns_nothing() -> None:
    _, problem, meta = _running()
    assert Vmap(buffers="keep").value_and_grad(Unrolled(), problem)(meta, problems.images()).aux.buffers == {}


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_gives_every_task_and_step(way: str) -> None:
    _, problem, meta = _running()
    episodes = problems.images(5)
    table = WAYS[way].evaluate(problem, meta, episodes, num_inner_steps=4)
    assert {name: tuple(value.shape) for name, value in table.items()} == {"loss": (5, 5), "accuracy": (5, 5)}
    assert not table["loss"].requires_grad
    outcome = Loop().value_and_grad(Unrolled(), problem)(meta, episodes)
    assert_close(table["loss"][:, 2].mean(), outcome.value, tolerance=1e-12)
    assert_close(table, Loop().evaluate(problem, meta, episodes, num_inner_steps=4), tolerance=1e-12)


def test_dropout_differs_between_tasks_and_repeats_within_one() -> None:
    model = problems.model_of("dropout")
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.3)
    first = problems.one(problems.images(1))
    twins = Episodes(
        *((x.expand(2, *x.shape), y.expand(2, *y.shape)) for x, y in (first.support, first.query)), torch.tensor([5, 6])
    )
    losses_of = [
        Vmap().evaluate(maml.problem(model), maml.init(model), episodes, num_inner_steps=1)["loss"]
        for episodes in (twins, twins, twins._replace(key=torch.tensor([5, 5])))
    ]
    assert torch.equal(losses_of[0], losses_of[1])
    assert not torch.equal(losses_of[0][0], losses_of[0][1])
    assert torch.equal(losses_of[2][0], losses_of[2][1])


def test_the_rule_is_fixed() -> None:
    convolution, linear = nn.Sequential(nn.Conv2d(1, 1, 3)), nn.Linear(1, 1)
    assert choose("auto", model=convolution, device="cpu") == Loop()
    assert choose("auto", model=convolution, device="cuda") == Vmap()
    assert choose("auto", model=linear, device="cpu", chunk_size=4) == Vmap(chunk_size=4)
    assert choose("loop", model=linear, device="cpu", buffers="keep") == Loop(buffers="keep")


def _problem_of_images():
    model = functionalize(nn.Linear(1, 1))
    maml = algorithms.MAML(loss=losses.mean_squared_error)
    return maml.problem(model), maml.init(model)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: choose("vmapp", model=nn.Linear(1, 1), device="cpu"), ["'vmapp'", "'vmap'"]),
        (lambda: choose("loop", model=nn.Linear(1, 1), device="cpu", chunk_size=2), ["chunk_size", "vmap"]),
        (lambda: Vmap(chunk_size=0), ["chunk_size", "at least 1"]),
        (lambda: Loop(buffers="average"), ["'average'", "'mean'"]),
        (
            lambda: Loop().value_and_grad(Unrolled(), _problem_of_images()[0])(
                _problem_of_images()[1],
                Episodes((torch.ones(2, 1), torch.ones(3, 1)), (torch.ones(2, 1), torch.ones(2, 1))),
            ),
            ["task axis", "[3, 1]"],
        ),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
