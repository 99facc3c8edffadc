"""Padded episodes are certified: each one's value and gradient are those it has alone, without any padding."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metalearn import UsageError, algorithms, functionalize, losses
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.tasks.padding import unpadded
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems

STRATEGIES = {"unrolled": Unrolled(), "first order": FirstOrder()}
WAYS = {"loop": Loop(), "vmap": Vmap(), "chunks of 3": Vmap(chunk_size=3)}


def _alone(model, optimizer: str, strategy, parts):
    """Every episode by itself: torch's own layers, no mask, and the logits of its own classes cut out."""
    outcomes = []
    for part in parts:
        ways = problems.num_ways(part, 3)

        def loss(outputs: Tensor, targets: Tensor, ways: int = ways):
            return losses.cross_entropy(outputs[:, :ways], targets)

        problem, meta = problems.problem_of(model, optimizer, loss=loss)
        outcomes.append(strategy.value_and_grad(problem)(meta, part))
    return outcomes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layer", problems.LAYERS)
def test_a_padded_batch_equals_its_episodes_alone(layer: str, strategy: str, way: str) -> None:
    model, parts = problems.model_of(layer), problems.of_several_sizes()
    problem, meta = problems.problem_of(model, "sgd, momentum learned")
    got = WAYS[way].value_and_grad(STRATEGIES[strategy], problem)(meta, problems.padded(parts))
    alone = _alone(model, "sgd, momentum learned", STRATEGIES[strategy], parts)
    assert_close(got.value, sum(each.value for each in alone) / len(parts), tolerance=1e-12)
    mean = {name: sum(each.grads[name] for each in alone) / len(parts) for name in meta}
    assert_close(got.grads, mean, tolerance=1e-10)
    for name, grad in mean.items():
        torch.testing.assert_close(got.grads[name], grad, rtol=1e-9, atol=1e-12)
    accuracies = torch.stack([each.aux.metrics["accuracy"] for each in alone])
    torch.testing.assert_close(got.aux.metrics["accuracy"], accuracies, rtol=1e-15, atol=0)
    floating = [name for name, value in got.aux.buffers.items() if value.is_floating_point()]
    for name in floating:
        assert_close(got.aux.buffers[name], sum(each.aux.buffers[name] for each in alone) / len(parts), tolerance=1e-12)


@pytest.mark.parametrize("layer", problems.LAYERS)
def test_a_padded_episode_against_finite_differences(layer: str) -> None:
    problem, meta = problems.problem_of(problems.model_of(layer), "sgd")
    padded = problems.padded(problems.of_several_sizes())
    for index in (1, 2):  # one padded in the rows and the classes, one in the rows of the query alone
        assert check_meta_gradient(problem, meta, problems.one(padded, index), num_directions=2).gradient_norm > 1e-2


@pytest.mark.parametrize("optimizer", problems.OPTIMIZERS)
def test_every_optimizer_on_a_padded_batch(optimizer: str) -> None:
    model, parts = problems.model_of("batch norm, current statistics"), problems.of_several_sizes()
    problem, meta = problems.problem_of(model, optimizer)
    got = Vmap().value_and_grad(Unrolled(), problem)(meta, problems.padded(parts))
    alone = _alone(model, optimizer, Unrolled(), parts)
    assert_close(got.grads, {name: sum(each.grads[name] for each in alone) / len(parts) for name in meta})


@pytest.mark.parametrize("way", WAYS)
def test_a_padded_regression_equals_its_episodes_alone(way: str) -> None:
    model = functionalize(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double())
    problem = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.1, num_inner_steps=3).problem(model)
    meta = {f"init.{name}": value for name, value in model.params.items()}
    parts = problems.of_several_sizes("regression")
    got = WAYS[way].value_and_grad(Unrolled(), problem)(meta, problems.padded(parts, num_outputs=1))
    alone = [Unrolled().value_and_grad(problem)(meta, part) for part in parts]
    assert_close(got.value, sum(each.value for each in alone) / len(parts), tolerance=1e-12)
    assert_close(got.grads, {name: sum(each.grads[name] for each in alone) / len(parts) for name in meta})


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_of_a_padded_batch(way: str) -> None:
    parts = problems.of_several_sizes()
    problem, meta = problems.problem_of(problems.model_of("batch norm, running statistics"), "sgd")
    table = WAYS[way].evaluate(problem, meta, problems.padded(parts), num_inner_steps=3)
    for index, part in enumerate(parts):
        ways = problems.num_ways(part, 3)
        alone = problems.problem_of(
            problems.model_of("batch norm, running statistics"), "sgd",
            loss=lambda outputs, targets, ways=ways: losses.cross_entropy(outputs[:, :ways], targets),
        )[0]  # fmt: skip
        expected = Loop().evaluate(replace(alone), meta, type(part)(*_batched(part)), num_inner_steps=3)
        assert_close({name: value[index] for name, value in table.items()}, expected, tolerance=1e-12)


def test_unpadded_takes_the_real_rows() -> None:
    parts = problems.of_several_sizes()
    padded = problems.padded(parts)
    for index, part in enumerate(parts):
        one = problems.one(padded, index)
        assert torch.equal(unpadded(one.support)[0], part.support[0])
        assert torch.equal(unpadded(one.query)[1], part.query[1])


def test_batch_norm_that_sees_other_rows_is_refused() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(27), nn.Linear(81, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x.reshape(-1, 27)).reshape(len(x), 81))

    problem, meta = problems.problem_of(functionalize(Patches().double()), "sgd")
    with pytest.raises(UsageError, match="a batch norm sees 18 rows of a padded set of 6 examples"):
        Vmap().value_and_grad(Unrolled(), problem)(meta, problems.padded(problems.of_several_sizes()))


def test_code_that_does_not_know_of_padding_is_stopped() -> None:
    padded = problems.padded(problems.of_several_sizes())
    with pytest.raises(ValueError, match="too many values"):
        _, _ = problems.one(padded).support


def _batched(part):
    from metalearn import tree

    return tree.map_tensors(lambda leaf: leaf[None], part)


def test_a_loop_shows_the_model_no_padding() -> None:
    seen = []

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    module = Watching(nn.Flatten(), nn.Linear(81, 3)).double()
    problem, meta = problems.problem_of(functionalize(module), "sgd", num_inner_steps=1)
    padded = problems.padded(problems.of_several_sizes())
    Loop().value_and_grad(Unrolled(), problem)(meta, padded)  # the first call runs forward twice
    assert set(seen) == {rows for _, *sizes in problems.SIZES for rows in sizes}
    seen.clear()
    Loop().value_and_grad(Unrolled(), problem)(meta, padded)
    assert seen == [rows for _, *sizes in problems.SIZES for rows in sizes]
