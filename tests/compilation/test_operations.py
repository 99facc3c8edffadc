"""What is done to a graph before it is compiled."""

import torch
from torch import Tensor

from metalearn.compilation import trace

aten = torch.ops.aten


def test_what_is_repeated_is_done_once() -> None:
    def repeated(given: list[Tensor]) -> list[Tensor]:
        x, y = given
        return [(x * y).sin() + (x * y).sin(), x * 0.0, x * -0.0, x.sum([0]), x.sum([1])]

    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    graph = trace(repeated, [x, x.clone()])
    names = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    assert [names.count(each) for each in (aten.sin.default, aten.sum.dim_IntList)] == [1, 2]
    assert names.count(aten.mul.Tensor) == 3
    for found, expected in zip(graph.module(x, x), repeated([x, x]), strict=True):
        assert torch.equal(found, expected)
        assert torch.equal(found.signbit(), expected.signbit())


def test_draws_are_never_taken_for_one() -> None:
    graph = trace(lambda given: [torch.rand_like(given[0]) - torch.rand_like(given[0])], [torch.zeros(3)])
    assert bool((graph.module(torch.zeros(3))[0] != 0).all())
