"""MAML of modules whose parameters forward itself changes: these are state, learned and carried, and not adapted."""

import pytest
import torch
from torch import nn

from metalearn import UsageError, functionalize, tree
from metalearn.algorithms import MAML
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import ForwardMode, Stepwise, Unrolled
from metalearn.testing import assert_close, check_meta_gradient
from metalearn.types import Episodes

D = torch.float64


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(2, 1), nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.state += 1
        return self.layer(x) * self.state


class _Fades(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(2, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        y = self.layer(x)
        self.state = self.state * 0.5 + y.mean(0)
        return y.tanh() + self.state


class _Centres(nn.Module):
    """A running mean, that the parameters act upon too, and a plain tensor that it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(2, 1), nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.full((1,), 2.0))
        self.scratch = torch.zeros(2)

    def forward(self, x):
        self.state = self.state + (x.mean(0) * self.layer.weight[0].sin() - self.state) / self.count
        self.count = self.count + 1
        self.scratch.add_(1)
        return self.layer(x - self.state) * self.scratch.sum()


def _loss(outputs, targets):
    return (outputs - targets).square().mean(), {}


def _episodes() -> Episodes:
    generator = torch.Generator().manual_seed(0)
    x, y, query_x, query_y = (
        torch.randn(3, 4, size, dtype=D, generator=generator) for size in (2, 1, 2, 1)
    )  # fmt: skip
    return Episodes(support=(x, y), query=(query_x, query_y), key=torch.arange(3))


def _problem(make: type[nn.Module], adapted):
    torch.manual_seed(0)
    model = functionalize(make().to(D))
    algorithm = MAML(loss=_loss, inner_lr=0.05, num_inner_steps=3, adapted=adapted)
    return algorithm.problem(model), algorithm.init(model)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at the first jvp
@pytest.mark.parametrize("make", [_Counts, _Fades, _Centres])
def test_the_gradient_is_certified_and_the_same_in_every_way(make: type[nn.Module]) -> None:
    problem, meta = _problem(make, "layer.*")
    episodes = _episodes()
    report = check_meta_gradient(problem, meta, tree.map_tensors(lambda x: x[0], episodes))
    assert report.error < 1e-6
    _, expected, *_ = Loop().value_and_grad(Unrolled(), problem)(meta, episodes)
    assert expected["init.state"].abs().sum() > 0
    for way in (Loop(), Vmap()):
        for strategy in (Unrolled(), Stepwise(), ForwardMode()):
            _, grads, *_ = way.value_and_grad(strategy, problem)(meta, episodes)
            assert_close(grads, expected, tolerance=1e-10)


def test_adapting_it_is_refused_with_the_filter_to_write() -> None:
    problem, meta = _problem(_Counts, "*")
    with pytest.raises(UsageError, match=r'adapted=\["\*", "!state"\]'):
        Loop().value_and_grad(Unrolled(), problem)(meta, _episodes())
    problem, meta = _problem(_Counts, ["*", "!state"])
    Loop().value_and_grad(Unrolled(), problem)(meta, _episodes())
