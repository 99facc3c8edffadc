"""What a first call learns changes nothing: results and gradients have the bits of a later call, in any order."""

import threading
from itertools import product

import pytest
import torch
from torch import nn
from torch.func import grad, jacfwd, jvp, vmap

from metalearn import functionalize
from tests.stateful import StatefulCounter

D = torch.float64


class _InPlace(nn.Module):
    """Writes into an activation, a buffer and a plain tensor, and uses a weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu, self.norm, self.seen = nn.Linear(3, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(3), {}
        self.scratch = torch.zeros(3)

    def forward(self, x):
        self.scratch += 2
        self.seen["calls"] = self.seen.get("calls", 0) + 1
        return self.norm(self.relu(self.layer(x) + x)) @ self.layer.weight * self.scratch * self.seen["calls"]


MODULES = {
    "counter": (StatefulCounter, (4, 1)),
    "in place": (_InPlace, (4, 3)),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(inplace=True)), (4, 3)),
    "gru": (lambda: nn.GRU(3, 3), (2, 2, 3)),
}


def _loss(model, params, x):
    total, buffers = 0, model.buffers
    for _ in range(2):
        output, buffers = model(params, buffers, x)
        total = total + (output[0] if isinstance(output, tuple) else output).square().sum()
    return total


def _plain(model, x):
    params = {name: value.clone().requires_grad_() for name, value in model.params.items()}
    return torch.autograd.grad(_loss(model, params, x), [*params.values()])


def _direction(model):
    return {name: torch.ones_like(value) for name, value in model.params.items()}


WAYS = {
    "no_grad": lambda m, x: [torch.no_grad()(_loss)(m, m.params, x)],
    "autograd": _plain,
    "grad": lambda m, x: [*grad(lambda p: _loss(m, p, x))(m.params).values()],
    "vmap": lambda m, x: [vmap(lambda x: _loss(m, m.params, x))(torch.stack([x, 2 * x]))],
    "vmap(grad)": lambda m, x: [
        *vmap(grad(lambda p, x: _loss(m, p, x)), (None, 0))(m.params, torch.stack([x, 2 * x])).values()
    ],
    "jvp": lambda m, x: jvp(lambda p: _loss(m, p, x), (m.params,), (_direction(m),)),
    "jacfwd": lambda m, x: [*jacfwd(lambda p: _loss(m, p, x))(m.params).values()],
    "grad(grad)": lambda m, x: [
        grad(lambda x: sum(g.square().sum() for g in grad(lambda p: _loss(m, p, x))(m.params).values()))(x)
    ],
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at the first jvp
@pytest.mark.parametrize("name", MODULES)
def test_any_two_ways_in_any_order(name: str) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module, x = make().to(D), torch.randn(shape, dtype=D)
    warm = functionalize(module)
    _loss(warm, warm.params, x)
    expected = {way: run(warm, x) for way, run in WAYS.items()}
    for first, second in product(WAYS, WAYS):
        model = functionalize(module)
        for way in (first, second):
            pairs = zip(WAYS[way](model, x), expected[way], strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs), (first, second, way)


def test_eight_threads_may_make_the_first_call_of_a_module_that_writes() -> None:
    torch.manual_seed(0)
    module, xs = _InPlace(), torch.randn(8, 4, 3)
    warm = functionalize(module)
    expected = [warm(warm.params, warm.buffers, x)[0] for x in xs]
    for _ in range(5):
        model, barrier = functionalize(module), threading.Barrier(8)
        results: dict[int, torch.Tensor] = {}

        def work(index: int, model=model, barrier=barrier, results=results) -> None:
            barrier.wait()
            for _ in range(3):
                results[index] = model(model.params, model.buffers, xs[index])[0]

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(results[index], expected[index]) for index in range(8))
    assert (module.scratch.abs().sum().item(), module.seen) == (0, {})
