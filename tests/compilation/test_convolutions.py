"""Convolutions with groups as products of matrices are torch's: values, ways back, and second derivatives."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metalearn.compilation import Graph, convolutions_as, trace
from metalearn.compilation.convolutions import DECOMPOSITIONS

aten = torch.ops.aten
FORWARD = DECOMPOSITIONS[aten.convolution.default]
BACKWARD = DECOMPOSITIONS[aten.convolution_backward.default]
SIZE = [9, 8, 7]


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [2, 3])
def test_every_entry_is_torchs(num_axes: int, groups: int) -> None:
    size = SIZE[:num_axes]
    for kernel, stride, padding, dilation in product((1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2)):
        options = ([stride] * num_axes, [padding] * num_axes, [dilation] * num_axes, False, [0] * num_axes, groups)
        x, bias = _drawn(2, groups * 8, *size), _drawn(groups * 8)
        weight = _drawn(groups * 8, 8, *[kernel] * num_axes)
        value = aten.convolution(x, weight, bias, *options)
        cotangent = _drawn(*value.shape)
        back = aten.convolution_backward(cotangent, x, weight, [groups * 8], *options, [True] * 3)
        with convolutions_as("products"):
            found = [FORWARD(x, weight, bias, *options)]
            found += BACKWARD(cotangent, x, weight, [groups * 8], *options, [True] * 3)
        torch.testing.assert_close(found, [value, *back], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_axes", [1, 2])
def test_transposed_ones_too(num_axes: int) -> None:
    size = SIZE[:num_axes]
    for kernel, stride, padding, more, dilation in product((1, 3), (1, 2, 3), (0, 1), (0, 1), (1, 2)):
        if more >= max(stride, dilation):
            continue
        options = ([stride] * num_axes, [padding] * num_axes, [dilation] * num_axes, True, [more] * num_axes, 2)
        if any((length - 1) * stride - 2 * padding + dilation * (kernel - 1) + more < 0 for length in size):
            continue
        x, bias, weight = _drawn(2, 2 * 8, *size), _drawn(2 * 9), _drawn(2 * 8, 9, *[kernel] * num_axes)
        value = aten.convolution(x, weight, bias, *options)
        cotangent = _drawn(*value.shape)
        back = aten.convolution_backward(cotangent, x, weight, [2 * 9], *options, [True] * 3)
        with convolutions_as("products"):
            found = [FORWARD(x, weight, bias, *options)]
            found += BACKWARD(cotangent, x, weight, [2 * 9], *options, [True] * 3)
        torch.testing.assert_close(found, [value, *back], rtol=1e-12, atol=1e-12)


def test_axes_may_differ() -> None:
    x, weight = _drawn(2, 16, 9, 8), _drawn(20, 8, 3, 2)
    options = ([2, 1], [0, 1], [1, 3], False, [0, 0], 2)
    value = aten.convolution(x, weight, None, *options)
    wanted = aten.convolution_backward(value.sin(), x, weight, None, *options, [True, True, False])
    with convolutions_as("products"):
        found = BACKWARD(value.sin(), x, weight, None, *options, [True, True, False])
        torch.testing.assert_close(FORWARD(x, weight, None, *options), value, rtol=1e-12, atol=1e-12)
        assert found[2] is None
        assert BACKWARD(value, x, weight, None, *options, [False, True, False])[0] is None
    torch.testing.assert_close(found[:2], wanted[:2], rtol=1e-12, atol=1e-12)


def test_others_are_left_as_they_are() -> None:
    x, options = _drawn(2, 16, 9, 8), ([1, 1], [0, 0], [1, 1], False, [0, 0])
    weight, depthwise = _drawn(16, 8, 3, 3), _drawn(16, 1, 3, 3)
    assert FORWARD(x, weight, None, *options, 2) is NotImplemented  # unless it is asked for
    with convolutions_as("products"):
        assert FORWARD(x, weight, None, *options, 2) is not NotImplemented
        assert FORWARD(x, depthwise, None, *options, 16) is NotImplemented
        assert FORWARD(x, _drawn(16, 16, 3, 3), None, *options, 1) is NotImplemented
        large = _drawn(16, 8, 8, 8)
        value = FORWARD(x, large, None, *options, 2)
        assert BACKWARD(value, x, large, None, *options, 2, [True, True, False]) is NotImplemented
        assert BACKWARD(value, x, large, None, *options, 2, [False, True, False]) is not NotImplemented


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "stride": 2}], ids=str)
def test_both_derivatives_of_a_traced_convolution(options: dict[str, Any]) -> None:
    def energy(weight: Tensor, x: Tensor) -> Tensor:
        return F.conv2d(x, weight, **options).sin().square().sum()

    def slope(weight: Tensor, x: Tensor) -> Tensor:
        stepped = weight - 0.1 * grad(energy)(weight, x)
        return energy(stepped, x)

    weights, x = _drawn(3, 10, 8, 3, 3), _drawn(3, 2, 8, 6, 6)
    second = vmap(grad(slope, argnums=(0, 1)))

    def graph() -> Graph:
        return trace(lambda given: second(*given), [weights, x])

    assert _groups(graph()) == {3}
    with convolutions_as("products"):
        traced = graph()
    assert _groups(traced) == set()
    found = [traced.module(*[(weights, x)[place] for place in traced.needs])[number] for number in range(2)]
    torch.testing.assert_close(tuple(found), second(weights, x), rtol=1e-11, atol=1e-11)


def _groups(graph: Graph) -> set[int]:
    places = {aten.convolution.default: 8, aten.convolution_backward.default: 9}
    return {
        int(node.args[place])  # type: ignore[arg-type]
        for target, place in places.items()
        for node in graph.module.graph.find_nodes(op="call_function", target=target)
    }
