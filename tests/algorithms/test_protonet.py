"""ProtoNet by hand: its equations, and a meta-gradient derived on paper."""

import pytest
import torch
from torch import nn

from metalearn import Episodes, algorithms, functionalize, losses
from metalearn.errors import UsageError
from metalearn.execution import Vmap
from metalearn.metagrad import Unrolled
from metalearn.models import MLP
from metalearn.tasks import Sinusoid
from metalearn.testing import assert_close, check_meta_gradient

D = torch.float64
LOSS = losses.cross_entropy


class Linear(nn.Module):
    """Features A x, and a head."""

    def __init__(self, num_outputs: int = 2) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(3, 2, bias=False), nn.Linear(2, num_outputs)

    def forward(self, x):
        return self.head(self.features(x))


def linear(num_outputs: int = 2):
    torch.manual_seed(1)
    return functionalize(Linear(num_outputs).double())


def episode(ways: int = 2, shots: int = 2, queries: int = 3) -> Episodes:
    generator = torch.Generator().manual_seed(0)
    sets = [
        (torch.randn(ways * count, 3, generator=generator, dtype=D), torch.arange(ways).repeat_interleave(count))
        for count in (shots, queries)
    ]
    return Episodes(*sets)


def test_equations_1_and_2() -> None:
    protonet, model, (support, query, _) = algorithms.ProtoNet(loss=LOSS), linear(3), episode(3)
    meta = protonet.init(model)
    assert list(meta) == ["init.features.weight"]
    features = [x @ meta["init.features.weight"].T for x in (support[0], query[0])]
    expected = torch.empty(9, 3, dtype=D)
    for row in range(9):
        for way in range(3):
            prototype = features[0][2 * way : 2 * way + 2].sum(0) / 2
            expected[row, way] = -((features[1][row] - prototype) ** 2).sum()
    adapted = protonet.adapt(model, meta, model.buffers, support)
    torch.testing.assert_close(protonet.predict(model, meta, adapted, query[0]), expected)


def test_a_meta_gradient_by_hand() -> None:
    protonet, model, (support, query, key) = algorithms.ProtoNet(loss=LOSS), linear(), episode()
    meta = protonet.init(model)
    weight, loss, gradient = meta["init.features.weight"], 0.0, torch.zeros(2, 3, dtype=D)
    means = torch.stack([support[0][:2].mean(0), support[0][2:].mean(0)])
    # L = -z_y + log sum exp z with z_k = -|A (x - m_k)|^2, so dL/dA = sum_k (p_k - [k = y]) (-2 A d_k d_k^T).
    for x, label in zip(*query, strict=True):
        apart = x - means
        logits = -((apart @ weight.T) ** 2).sum(1)
        shares = logits.exp() / logits.exp().sum()
        loss -= float(shares[label].log()) / 6
        for way in range(2):
            error = shares[way] - float(way == label)
            gradient += error * -2 * torch.outer(weight @ apart[way], apart[way]) / 6
    problem, episode_ = protonet.problem(model), Episodes(support, query, key)
    found = Unrolled().value_and_grad(problem)(meta, episode_)
    assert float(found.value) == pytest.approx(loss, rel=1e-12)
    assert_close(found.grads, {"init.features.weight": gradient}, tolerance=1e-12)
    assert check_meta_gradient(problem, meta, episode_).error < 1e-6


def test_cosines_with_a_learned_scale() -> None:
    protonet, model = algorithms.ProtoNet(loss=LOSS, distance="cosine", learn_scale=True, scale=4.0), linear()
    meta, (support, query, _) = protonet.init(model), episode()
    assert meta["log_scale"].dtype == D
    features = [x @ meta["init.features.weight"].T for x in (support[0], query[0])]
    means = torch.stack([features[0][:2].mean(0), features[0][2:].mean(0)])
    expected = 4 * torch.nn.functional.cosine_similarity(features[1][:, None], means[None], dim=-1)
    outputs = protonet.predict(model, meta, protonet.adapt(model, meta, {}, support), query[0])
    torch.testing.assert_close(outputs, expected)
    dead = {**meta, "init.features.weight": torch.zeros(2, 3, dtype=D)}  # features of 0 have no direction
    grads = Unrolled().value_and_grad(protonet.problem(model))(dead, Episodes(support, query)).grads
    assert all(value.isfinite().all() for value in grads.values())


def test_it_is_for_classifications() -> None:
    model = functionalize(MLP(input_shape=(1,), num_outputs=1))
    with pytest.raises(UsageError, match=r"ProtoNet is for a classification, and the task 'sinusoid' is a regression"):
        algorithms.ProtoNet(loss=LOSS).init(model, Sinusoid())


def test_a_class_without_an_example_is_never_chosen() -> None:
    protonet, model, (support, query, _) = algorithms.ProtoNet(loss=LOSS), linear(4), episode()
    outputs = protonet.predict(model, protonet.init(model), protonet.adapt(model, {}, {}, support), query[0])
    assert (outputs[:, 2:] == -torch.inf).all()
    assert outputs[:, :2].isfinite().all()


def test_half_precision_is_of_the_features_alone() -> None:
    torch.manual_seed(0)
    model = functionalize(MLP(input_shape=(3,), num_outputs=2, hidden=(16, 16)))
    batch = Episodes(*[(x[None].float(), y[None]) for x, y in episode()[:2]])
    for algorithm in (algorithms.ProtoNet(loss=LOSS), algorithms.R2D2(loss=LOSS)):
        problem, meta = algorithm.problem(model), algorithm.init(model)
        exact, rough = (
            Vmap(precision=precision).value_and_grad(Unrolled(), problem)(meta, batch)
            for precision in ("float32", "bf16")
        )
        assert {value.dtype for value in rough.grads.values()} == {torch.float32}
        assert_close(rough.grads, exact.grads, tolerance=0.1)
        assert (rough.grads["init.features.0.weight"] - exact.grads["init.features.0.weight"]).abs().max() > 0
