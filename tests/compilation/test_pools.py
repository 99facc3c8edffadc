"""Max-pools by comparisons are torch's, entry by entry: ties, NaN and minus infinity too."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metalearn.compilation import split, trace
from metalearn.compilation.pools import DECOMPOSITIONS

aten = torch.ops.aten
FORWARD = DECOMPOSITIONS[aten.max_pool2d_with_indices.default]
BACKWARD = DECOMPOSITIONS[aten.max_pool2d_with_indices_backward.default]
OPTIONS = [
    (kernel, stride, padding, ceil)
    for kernel, stride, padding, ceil in product(
        ([2, 2], [3, 3], [3, 2], [1, 2]), ([], [1, 1], [2, 2], [3, 1]), ([0, 0], [1, 1], [1, 0]), (False, True)
    )
    if all(2 * pad <= size for pad, size in zip(padding, kernel, strict=True))
]


def _images(shape: tuple[int, ...], kind: str) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if kind == "ties":
        return (x * 1.5).round().clamp_min(0)
    if kind == "no numbers":
        x[..., 1:4, 1:3], x[..., 4, 0], x[..., 0, :] = float("-inf"), float("nan"), float("-inf")
    return x


@pytest.mark.parametrize("kind", ["any", "ties", "no numbers"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (3, 8, 8), (1, 1, 5, 4)], ids=str)
def test_every_entry_is_torchs(shape: tuple[int, ...], kind: str) -> None:
    x = _images(shape, kind)
    for kernel, stride, padding, ceil in OPTIONS:
        value, indices = aten.max_pool2d_with_indices(x, kernel, stride, padding, [1, 1], ceil)
        found, places = FORWARD(x, kernel, stride, padding, [1, 1], ceil)
        torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(places, indices)
        cotangent = torch.randn_like(value.nan_to_num())
        arguments = (cotangent, x, kernel, stride or kernel, padding, [1, 1], ceil, indices)
        back = aten.max_pool2d_with_indices_backward(*arguments)
        torch.testing.assert_close(BACKWARD(*arguments), back, rtol=0, atol=1e-14)


def test_others_are_left_to_the_compiler() -> None:
    x = torch.randn(1, 1, 20, 20)
    assert FORWARD(x, [6, 6]) is NotImplemented
    assert FORWARD(x, [2, 2], [2, 2], [0, 0], [2, 2]) is NotImplemented
    dilated = aten.max_pool2d_with_indices(x, [2, 2], [2, 2], [0, 0], [2, 2])
    assert BACKWARD(dilated[0], x, [2, 2], [2, 2], [0, 0], [2, 2], False, dilated[1]) is NotImplemented


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str)
def test_both_derivatives_of_a_traced_pool(options: dict[str, Any]) -> None:
    def energy(x: Tensor) -> Tensor:
        return F.max_pool2d(x.sin() * x, **options).square().sum()

    def slope(x: Tensor) -> Tensor:
        return grad(energy)(x).square().sum()

    x = _images((4, 2, 3, 7, 8), "any")
    traced = trace(lambda given: [vmap(grad(slope))(given[0])], [x])
    names = {str(node.target) for node in traced.module.graph.nodes}
    assert not any("max_pool" in name for name in names)
    torch.testing.assert_close(traced.module(x)[0], vmap(grad(slope))(x), rtol=1e-12, atol=1e-12)


def test_the_way_back_keeps_the_number_of_the_largest_entry() -> None:
    """Four bytes a window, and not eight for where it lies, nor a mask of the image for every comparison with it."""

    def joint(given: list[Tensor]) -> list[Tensor]:
        x, cotangent = given
        value, indices = aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
        back = aten.max_pool2d_with_indices_backward(cotangent, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
        return [value, back.square().flatten(-2).gather(-1, indices.flatten(-2))]

    x = torch.randn(2, 3, 8, 8)
    graph = trace(joint, [x, torch.randn(2, 3, 4, 4)])
    forward, _ = split(graph, num_inputs=1, num_outputs=1)
    kept = [form for form in forward.forms()[1:] if form.shape != x.shape]
    assert [(form.dtype, tuple(form.shape)) for form in kept] == [(torch.int32, (2, 3, 4, 4))]
