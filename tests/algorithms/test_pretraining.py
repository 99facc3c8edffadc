"""The baselines: plain training by hand, minibatches of all classes, and what the test does with the features."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metalearn import Episodes, algorithms, functionalize, inner, losses, optim
from metalearn.errors import UsageError
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from metalearn.models import MLP
from metalearn.optim.learned import MetaSGD
from metalearn.tasks import ClassificationSource, Sinusoid
from metalearn.tasks.classes import Classes
from metalearn.testing import assert_close, check_meta_gradient
from metalearn.training.task_card import TaskCard

D = torch.float64
LOSS = losses.cross_entropy
PROTOTYPES = algorithms.PretrainedPrototypes(loss=LOSS, num_examples=9)
FINE_TUNED = algorithms.PretrainedFineTuned(loss=LOSS, num_examples=9, tuning_steps=4)


class Linear(nn.Module):
    """Features A x, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 3, bias=False), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.features(x))


def linear():
    torch.manual_seed(2)
    return functionalize(Linear().double())


def source(*, rotations: bool = False) -> ClassificationSource:
    """Seven classes of 4 to 10 rows, in each of which stands which row it is; or square images likewise."""
    counts = torch.arange(4, 11)
    rows = torch.arange(int(counts.sum()), dtype=torch.float32)
    examples = rows[:, None].expand(-1, 4).clone()
    if rotations:
        examples = rows[:, None, None, None] * torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    classes = {
        split: Classes(examples, counts, names=tuple(f"{split}{n}" for n in range(7))) for split in ("train", "val")
    }
    return ClassificationSource(name="rows", classes=classes, ways=2, shots=1, query_shots=2, rotations=rotations)


def test_minibatches_are_of_all_classes_and_pure() -> None:
    batches = source().minibatches(9)
    assert (batches.splits, batches.num_outputs, source().num_training_classes) == (("train",), 7, 7)
    drawn = batches.episodes("train", range(200), seed=3)
    x, y = drawn.query
    assert x.shape == (200, 9, 4)
    ends = torch.arange(4, 11).cumsum(0)
    assert torch.equal(torch.searchsorted(ends, x[..., 0].long(), right=True), y)
    assert all(len(set(row.tolist())) == 9 for row in x[..., 0])  # no row twice in a minibatch
    counts = torch.bincount(y.flatten(), minlength=7) / y.numel()
    torch.testing.assert_close(counts, torch.arange(4, 11) / 49, atol=0.02, rtol=0)  # each row as likely as any other
    again = batches.episodes("train", [17], seed=3)
    assert torch.equal(again.query[0][0], x[17])
    assert not torch.equal(batches.episodes("train", [17], seed=4).query[0][0], x[17])
    assert drawn.support[0] is drawn.query[0]
    with pytest.raises(UsageError, match="num_examples=50 of a minibatch is more than the 49 training"):
        source().minibatches(50)


def test_turned_classes_are_classes_of_their_own() -> None:
    batches = source(rotations=True).minibatches(20)
    assert batches.num_outputs == 28
    x, y = batches.episodes("train", range(50)).query
    row = x.flatten(2).amax(-1) / 4
    turns = y // 7
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}
    for turn in range(4):
        chosen = (turns == turn) & (row > 0)
        expected = torch.rot90(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), turn)
        unit = x[chosen][:, 0] / row[chosen][:, None, None]
        torch.testing.assert_close(unit, expected.expand_as(unit))


def test_a_meta_gradient_by_hand() -> None:
    model = linear()
    meta = PROTOTYPES.init(model, source())
    assert {name: tuple(value.shape) for name, value in meta.items()} == {
        "init.features.weight": (3, 4), "classifier.weight": (7, 3), "classifier.bias": (7,),
    }  # fmt: skip
    assert 0.5 < float(meta["classifier.weight"].abs().max()) * 3**0.5 <= 1
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=D)
    y = torch.arange(9) % 7
    episode = Episodes((x, y), (x, y))
    features = x @ meta["init.features.weight"].T
    shares = (features @ meta["classifier.weight"].T + meta["classifier.bias"]).softmax(1)
    # dL/dz = (p - e_y) / n; z = W A x + b.
    error = (shares - torch.eye(7, dtype=D)[y]) / 9
    by_hand = {
        "init.features.weight": (error @ meta["classifier.weight"]).T @ x,
        "classifier.weight": error.T @ features,
        "classifier.bias": error.sum(0),
    }
    problem = PROTOTYPES.problem(model)
    found = Unrolled().value_and_grad(problem)(meta, episode)
    assert_close(found.grads, by_hand, tolerance=1e-12)
    assert float(found.value) == pytest.approx(-float(shares[torch.arange(9), y].log().mean()), rel=1e-12)
    assert check_meta_gradient(problem, meta, episode).error < 1e-6
    batch = Episodes((x[None].expand(2, -1, -1), y.expand(2, -1)), (torch.stack([x, 2 * x]), y.expand(2, -1)))
    both = [way.value_and_grad(Unrolled(), problem)(meta, batch).grads for way in (Loop(), Vmap())]
    assert_close(both[0], both[1], tolerance=1e-12)


def few_shot() -> Episodes:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(6) % 2
    support, query = ((torch.randn(6, 4, generator=generator, dtype=D) + y[:, None], y) for _ in range(2))
    return Episodes(support, query)


def test_nearest_prototypes_are_protonets_with_the_features_as_they_are() -> None:
    model, episode = linear(), few_shot()
    meta = PROTOTYPES.init(model, source())
    adapted = PROTOTYPES.adapt(model, meta, model.buffers, episode.support)
    outputs = PROTOTYPES.predict(model, meta, adapted, episode.query[0])
    features = [x @ meta["init.features.weight"].T for x in (episode.support[0], episode.query[0])]
    means = torch.stack([features[0][::2].mean(0), features[0][1::2].mean(0)])
    expected = 10 * torch.nn.functional.cosine_similarity(features[1][:, None], means[None], dim=-1)
    torch.testing.assert_close(outputs, expected)


def test_a_head_is_trained_as_torch_would() -> None:
    tuned = replace(FINE_TUNED, inner_optimizer=lambda lr: optim.sgd(lr, momentum=0.9), tuning_steps=20)
    model, episode = linear(), few_shot()
    meta = tuned.init(model, source())
    features = [x @ meta["init.features.weight"].T for x in (episode.support[0], episode.query[0])]
    head = nn.Linear(3, 2).double()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features[0]), episode.support[1]).backward()
        optimizer.step()
    adapted = tuned.adapt(model, meta, model.buffers, episode.support)
    torch.testing.assert_close(tuned.predict(model, meta, adapted, episode.query[0]), head(features[1]).detach())
    loss = inner.evaluate(tuned.test_problem(model), meta, episode)["loss"]
    expected = nn.functional.cross_entropy(head(features[1]), episode.query[1])
    torch.testing.assert_close(loss, expected.detach().reshape(1))


def test_the_whole_model_is_tuned_as_torch_would() -> None:
    tuned, model, episode = replace(FINE_TUNED, tuned="all", tuning_steps=7), linear(), few_shot()
    meta = {name: 0.5 * value for name, value in tuned.init(model, source()).items()}
    net = Linear().double()
    net.load_state_dict({**model.params, "features.weight": meta["init.features.weight"]})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(7):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(episode.support[0]), episode.support[1]).backward()
        optimizer.step()
    adapted = tuned.adapt(model, meta, model.buffers, episode.support)
    torch.testing.assert_close(tuned.predict(model, meta, adapted, episode.query[0]), net(episode.query[0]).detach())
    for way in (Loop(), Vmap()):
        batch = Episodes(*[(x[None], y[None]) for x, y in episode[:2]])
        found = way.evaluate(tuned.test_problem(model), meta, batch, num_inner_steps=0)
        expected = nn.functional.cross_entropy(net(episode.query[0]), episode.query[1])
        torch.testing.assert_close(found["loss"], expected.detach().reshape(1, 1))


def test_mistakes_are_told() -> None:
    with pytest.raises(UsageError, match=r"PretrainedPrototypes is for a classification, and the task 'sinusoid'"):
        PROTOTYPES.training_source(Sinusoid())
    with pytest.raises(UsageError, match=r"all classes at once, and the task source SimpleNamespace can not"):
        PROTOTYPES.training_source(SimpleNamespace(kind="classification"))
    with pytest.raises(UsageError, match=r"how many there are 'sinusoid' does not say"):
        PROTOTYPES.init(functionalize(MLP(input_shape=(1,), num_outputs=1)), Sinusoid())
    with pytest.raises(UsageError, match="was given no source"):
        PROTOTYPES.init(linear())
    with pytest.raises(UsageError, match="num_examples=0"):
        replace(PROTOTYPES, num_examples=0)
    with pytest.raises(UsageError, match="inner_optimizer=LearnedRates"):
        replace(FINE_TUNED, inner_optimizer=MetaSGD(0.1))
    with pytest.raises(UsageError, match=r"tuned='heads'\)\. Did you mean 'head'"):
        replace(FINE_TUNED, tuned="heads")
    with pytest.raises(UsageError, match="tuning_steps=0"):
        replace(FINE_TUNED, tuning_steps=0)


def test_a_task_card_is_enough_of_a_source() -> None:
    card = TaskCard.of(source())
    assert TaskCard._from_dict(card._to_dict()) == card
    assert PROTOTYPES.init(linear(), card)["classifier.bias"].shape == (7,)
