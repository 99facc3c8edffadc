"""A learned optimizer inside MAML: its meta-parameters are among MAML's, of what is adapted alone."""

import pytest
import torch
from torch import nn

from metalearn import UsageError, functionalize, losses, optim, tree
from metalearn.algorithms import MAML
from metalearn.execution import Vmap
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.optim.learned import LSLR, CoordinateLSTM, LearnedRates, MetaCurvature, MetaSGD
from metalearn.tasks import Sinusoid
from metalearn.testing import assert_close
from tests import problems


def regressor():
    torch.manual_seed(0)
    return functionalize(nn.Sequential(nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 1)))


def maml(optimizer, **given) -> MAML:
    return MAML(loss=losses.mean_squared_error, inner_optimizer=optimizer, **{"num_inner_steps": 2, **given})


def test_meta_sgd_on_sinusoids_learns_start_and_rates() -> None:
    source, model, algorithm = Sinusoid(shots=10), regressor(), maml(MetaSGD(0.01))
    run = Vmap().value_and_grad(Unrolled(), algorithm.problem(model))
    meta = algorithm.init(model, source)
    assert {name for name in meta if name.startswith("optimizer.")} == {f"optimizer.lr.{n}" for n in model.params}
    adam = optim.adam(0.01)
    state, values = adam.init(meta), []
    for step in range(60):
        outcome = run(meta, source.episodes("train", range(16 * step, 16 * (step + 1)), seed=0))
        values.append(float(outcome.value))
        meta, _, state = adam.step(outcome.grads, state, meta)
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
    rates = torch.cat([value.flatten() for value in tree.select(meta, "optimizer.").values()])
    assert (rates - 0.01).abs().median() > 0.003
    # and on sinusoids that were not trained on, the learned rates are worth something by themselves
    episodes = source.episodes("test", range(64), seed=0)
    initial = algorithm.init(model)
    without = {name: initial[name] if name.startswith("optimizer.") else value for name, value in meta.items()}
    learned, fixed = (
        Vmap().evaluate(algorithm.problem(model), each, episodes, num_inner_steps=2)["loss"][:, -1].mean()
        for each in (meta, without)
    )
    assert learned < fixed


@pytest.mark.parametrize("optimizer", [MetaSGD(0.1), LSLR(0.1, 2), MetaCurvature(lr=0.1), CoordinateLSTM(3)])
def test_adapt_takes_the_steps_of_the_problem(optimizer) -> None:
    model, algorithm = regressor(), maml(optimizer)
    meta = {name: value + 0.01 for name, value in algorithm.init(model).items()}
    episode = tree.entry(Sinusoid(shots=5).episodes("train", [0]), 0)
    adapted = algorithm.adapt(model, meta, model.buffers, episode.support)
    predicted = algorithm.predict(model, meta, adapted, episode.query[0])
    value = Unrolled().value_and_grad(algorithm.problem(model))(meta, episode).value
    assert_close(losses.mean_squared_error(predicted, episode.query[1])[0], value, tolerance=1e-6)


def test_only_what_is_adapted_has_rates() -> None:
    model = regressor()
    anil = maml(MetaSGD(0.1), adapted="2.*")
    meta = anil.init(model)
    assert [name for name in meta if name.startswith("optimizer.")] == ["optimizer.lr.2.weight", "optimizer.lr.2.bias"]
    episode = tree.entry(Sinusoid(shots=5).episodes("train", [0]), 0)
    grads = Unrolled().value_and_grad(anil.problem(model))(meta, episode).grads
    assert all(value.abs().max() > 0 for name, value in grads.items() if name.startswith("optimizer."))


def test_first_order_learns_the_rates_too() -> None:
    # theta' = theta - rate * g with the gradient for a constant: d / d rate is -g times the outer gradient.
    model = problems.model_of("plain, tanh")
    algorithm = MAML(loss=losses.cross_entropy, inner_optimizer=MetaSGD(0.1))
    meta, episode = algorithm.init(model), problems.one(problems.images())
    grads = FirstOrder().value_and_grad(algorithm.problem(model))(meta, episode).grads

    def loss(params, data):
        return losses.cross_entropy(model(params, model.buffers, data[0])[0], data[1])[0]

    inner = torch.func.grad(loss)(dict(model.params), episode.support)
    moved = {name: value - 0.1 * inner[name] for name, value in model.params.items()}
    outer = torch.func.grad(loss)(moved, episode.query)
    assert_close(tree.select(grads, "optimizer.lr."), {n: -inner[n] * outer[n] for n in inner}, tolerance=1e-12)


def test_a_rate_beside_a_learned_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"MAML got inner_lr=0\.1 and inner_optimizer=LearnedRates\(lr=0\.2.*None"):
        maml(MetaSGD(0.2), inner_lr=0.1)
    with pytest.raises(UsageError, match="inner_optimizer=GradientTransformation: expected a function from a rate"):
        maml(optim.sgd(0.1))


def test_the_rate_is_told_and_is_none_where_it_is_learned() -> None:
    assert maml(optim.sgd).inner_lr == 0.01
    assert maml(LearnedRates(0.1)).inner_lr is None
