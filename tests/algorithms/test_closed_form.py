"""What ProtoNet, R2D2 and the baselines have in common: an outer loss without inner steps, however it is run."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metalearn import algorithms, functionalize, losses, metagrad
from metalearn.algorithms.fine_tuning import LinearProbe
from metalearn.errors import UsageError
from metalearn.execution import Loop, Vmap
from metalearn.functional import FunctionalModel
from metalearn.metagrad import Implicit, Reptile, Stepwise, Truncated, Unrolled
from metalearn.models import MLP
from metalearn.optim import sgd
from metalearn.tasks import ClassificationSource
from metalearn.testing import assert_close, check_meta_gradient
from metalearn.types import Episodes
from tests import problems

D = torch.float64
LOSS = losses.cross_entropy
CLOSED = {
    "protonet": algorithms.ProtoNet(loss=LOSS),
    "protonet, cosine": algorithms.ProtoNet(loss=LOSS, distance="cosine", learn_scale=True),
    "r2d2": algorithms.R2D2(loss=LOSS, regularisation=0.5, scale=3.0),
}


class Net(nn.Module):
    """Features with a norm that tracks, and a head."""

    def __init__(self, num_outputs: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 6)
        )
        self.head = nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def net(num_outputs: int = 3) -> FunctionalModel:
    torch.manual_seed(0)
    return functionalize(Net(num_outputs).double())


def perceptron() -> FunctionalModel:
    torch.manual_seed(0)
    return functionalize(MLP(input_shape=(3,), num_outputs=1, hidden=(4,)).double())


def episodes() -> Episodes:
    """Two tasks whose support sets have every class."""
    batch = problems.images(2)
    return batch._replace(support=(batch.support[0], torch.arange(batch.support[1].shape[1]).remainder(3).repeat(2, 1)))


def start(algorithm, model: FunctionalModel) -> dict[str, Tensor]:
    meta = algorithm.init(model)
    assert all("head" not in name for name in meta)
    return meta


@pytest.mark.parametrize("normalisation", ["module", "task", "set"])
@pytest.mark.parametrize("name", CLOSED)
def test_the_meta_gradient_is_certified(name: str, normalisation: str) -> None:
    algorithm, model = replace(CLOSED[name], normalisation=normalisation), net()
    problem, meta, episode = algorithm.problem(model), start(algorithm, model), problems.one(episodes(), 1)
    # The running statistics that "task" normalises the query by are constants, as they are for torch.
    report = check_meta_gradient(problem, meta, episode, num_directions=3, replay_constants=normalisation == "task")
    assert report.gradient_norm > 1e-3
    assert report.error < 1e-6


@pytest.mark.parametrize("name", CLOSED)
def test_every_way_of_running_it_gives_the_same(name: str) -> None:
    algorithm, model = CLOSED[name], net()
    problem, meta = algorithm.problem(model), start(algorithm, model)
    expected = Loop().value_and_grad(Unrolled(), problem)(meta, episodes())
    assert float(expected.value) > 0.1
    ways = [(Vmap(), Unrolled()), (Vmap(chunk_size=1), Stepwise()), (Loop(), Truncated(num_steps=2))]
    ways += [
        (Vmap(), metagrad.ForwardMode()),
        (Vmap(), metagrad.Auto().plan(problem, meta, problems.one(episodes())).recommended),
    ]
    for execution, strategy in ways:
        found = execution.value_and_grad(strategy, problem)(meta, episodes(), held=model.buffers)
        assert_close(found.grads, expected.grads, tolerance=1e-10)
        assert_close(found.aux.buffers["features.1.running_mean"], expected.aux.buffers["features.1.running_mean"])
    rows = Vmap().evaluate(problem, meta, episodes(), num_inner_steps=0)
    assert rows["loss"].shape == (2, 1)
    torch.testing.assert_close(rows["loss"].mean(), expected.value)


TESTERS = {**CLOSED, "probe": LinearProbe(loss=LOSS, optimizer=sgd(0.1), num_steps=3)}


@pytest.mark.parametrize("normalisation", ["module", "task"])
@pytest.mark.parametrize("way", [Loop(), Vmap()])
@pytest.mark.parametrize("name", TESTERS)
def test_a_padded_batch_equals_its_episodes_alone(name: str, way, normalisation: str) -> None:
    algorithm, parts = replace(TESTERS[name], normalisation=normalisation), problems.of_several_sizes()
    model = net()
    problem, meta = algorithm.problem(model), start(algorithm, model)
    got = way.value_and_grad(Unrolled(), problem)(meta, problems.padded(parts))
    alone = [Unrolled().value_and_grad(problem)(meta, part) for part in parts]
    assert_close(got.value, sum(each.value for each in alone) / len(parts), tolerance=1e-12)
    mean = {each: sum(one.grads[each] for one in alone) / len(parts) for each in meta}
    assert_close(got.grads, mean, tolerance=1e-10)
    accuracies = torch.stack([each.aux.metrics["accuracy"] for each in alone])
    torch.testing.assert_close(got.aux.metrics["accuracy"], accuracies)


@pytest.mark.parametrize("name", TESTERS)
def test_fewer_classes_than_outputs_are_as_if_the_model_had_no_more(name: str) -> None:
    algorithm, episode = TESTERS[name], problems.one(problems.padded(problems.of_several_sizes()), 1)  # two classes
    few, many = (algorithm.test_problem(net(number)) for number in (3, 20))
    meta = start(algorithm, net())
    for problem in (few, many):
        assert not problem.outer_loss(meta, {}, net().without("head").buffers, episode, 0)[0].isinf()
    values = [Unrolled().value_and_grad(problem)(meta, episode) for problem in (few, many)]
    assert_close(values[0].grads, values[1].grads, tolerance=1e-12)


@pytest.mark.parametrize("norm", ["module", "set", "task", "frozen"])
@pytest.mark.parametrize("name", TESTERS)
def test_adapt_and_predict_are_what_evaluation_does(name: str, norm: str) -> None:
    algorithm, model, episode = replace(TESTERS[name], normalisation=norm), net().eval(), problems.one(episodes())
    meta = start(algorithm, model)
    adapted = algorithm.adapt(model, meta, model.buffers, episode.support)
    outputs = algorithm.predict(model, meta, adapted, episode.query[0])
    expected = Loop().evaluate(algorithm.test_problem(model), meta, episodes(), num_inner_steps=0)
    torch.testing.assert_close(LOSS(outputs, episode.query[1])[0], expected["loss"][0, 0])


def test_support_and_query_are_one_batch_where_they_are_normalised_alike() -> None:
    algorithm, model, episode = CLOSED["protonet"], net(), problems.one(episodes())
    meta = start(algorithm, model)
    embedding = algorithm._embedding(model)
    support, query, _ = embedding.of_episode(meta, embedding.buffers(None), episode.support, episode.query[0])
    both = torch.cat([episode.support[0], episode.query[0]])
    expected = model.without("head")(model.without("head").params, embedding.model.buffers, both)[0]
    torch.testing.assert_close(torch.cat([support, query]), expected)
    alone, _ = embedding.of_set(meta, embedding.buffers(None), episode.support)
    assert (alone - support).abs().max() > 1e-3
    apart = replace(algorithm, normalisation="task")._embedding(model)
    torch.testing.assert_close(apart.of_episode(meta, apart.buffers(None), episode.support, both)[0], alone)


def test_what_is_exact_without_inner_steps_has_no_name_that_says_otherwise() -> None:
    windows = metagrad.PersistentEvolutionStrategies(num_steps=1)
    for strategy in (metagrad.FirstOrder(), Truncated(num_steps=1), windows):
        with pytest.raises(UsageError, match=f"metagrad {type(strategy).__name__} is .*Leave metagrad at unrolled"):
            CLOSED["protonet"].check_strategy(strategy)


@pytest.mark.parametrize("strategy", [Reptile(), Implicit()])
def test_strategies_that_are_about_inner_steps_are_refused(strategy) -> None:
    for algorithm in (CLOSED["r2d2"], algorithms.PretrainedPrototypes(loss=LOSS)):
        with pytest.raises(UsageError, match=rf"without inner steps, and metagrad {type(strategy).__name__} is the"):
            algorithm.check_strategy(strategy)
        algorithm.check_strategy(Unrolled())
    problem = CLOSED["r2d2"].problem(net())
    with pytest.raises(UsageError, match="num_inner_steps is 0"):
        strategy.value_and_grad(problem)(CLOSED["r2d2"].init(net()), problems.one(episodes()))
    with pytest.raises(UsageError, match="no inner steps"):
        Loop().evaluate(problem, CLOSED["r2d2"].init(net()), episodes(), num_inner_steps=1)


def test_mistakes_are_told() -> None:
    with pytest.raises(UsageError, match=r"has no submodule 'haed'\. Did you mean 'head'"):
        algorithms.ProtoNet(loss=LOSS, head="haed").init(net())
    with pytest.raises(UsageError, match=r"head='features\.2' is a Tanh, expected the linear layer"):
        algorithms.ProtoNet(loss=LOSS, head="features.2").init(net())
    with pytest.raises(UsageError, match="Take normalisation='shared'"):
        algorithms.R2D2(loss=LOSS, normalisation="step").init(net())
    with pytest.raises(UsageError, match="train_ways=1"):
        algorithms.ProtoNet(loss=LOSS, train_ways=1)
    with pytest.raises(UsageError, match=r"'euclidian'.*Did you mean 'euclidean'"):
        algorithms.ProtoNet(loss=LOSS, distance="euclidian")
    with pytest.raises(UsageError, match=r"regularisation=0\): it must be above 0"):
        algorithms.R2D2(loss=LOSS, regularisation=0)
    with pytest.raises(UsageError, match="for classifications"):
        Loop().evaluate(
            CLOSED["protonet"].problem(perceptron()), start(CLOSED["protonet"], perceptron()), problems.values(1),
            num_inner_steps=0,
        )  # fmt: skip


def test_more_ways_in_training_than_in_the_test() -> None:
    classes = {split: torch.rand(8 - 3 * number, 6, 4) for number, split in enumerate(("train", "val"))}
    source = ClassificationSource(name="few", classes=classes, ways=3, shots=1, query_shots=2)
    algorithm = algorithms.ProtoNet(loss=LOSS, train_ways=7)
    wide = algorithm.training_source(source)
    assert (wide.splits, wide.num_outputs, source.num_outputs, source.ways) == (("train",), 7, 3, 3)
    batch = wide.episodes("train", [0, 1])
    assert sorted(set(batch.query[1][0].tolist())) == list(range(7))
    model = functionalize(MLP(input_shape=(4,), num_outputs=3, hidden=(5,)))
    outcome = Vmap().value_and_grad(Unrolled(), algorithm.problem(model))(algorithm.init(model, source), batch)
    assert 0 < float(outcome.value) < 10
    tested = Vmap().evaluate(
        algorithm.test_problem(model), algorithm.init(model), source.episodes("val", [0]), num_inner_steps=0
    )
    assert tested["loss"].isfinite().all()
    with pytest.raises(UsageError, match="ways=9 is more than the 8 classes"):
        replace(algorithm, train_ways=9).training_source(source)
    with pytest.raises(UsageError, match="has no method with_ways"):
        algorithm.training_source(object())
