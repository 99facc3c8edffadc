"""Convolutions of several tasks, each with weights of its own, as products of matrices.

`torch.vmap` makes one convolution with a group a task of them. Within `convolutions_as("products")` the windows of an
image are traced as the columns of a matrix (im2col) in its place, and all tasks are one batched product.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import product
from typing import Any, Literal, TypeAlias, get_args

import torch.nn.functional as F
from torch import Tensor

from metalearn.compilation.operations import aten

Convolutions: TypeAlias = Literal["grouped", "products"]
"""What is made of convolutions whose weights differ from task to task."""

CONVOLUTIONS: tuple[Convolutions, ...] = get_args(Convolutions)

_taken: ContextVar[Convolutions] = ContextVar("convolutions", default="grouped")

FEWEST = 8
"""Rows and columns of a group's matrix from which on a product pays; depthwise convolutions stay what they are."""

MOST_ENTRIES = 49
"""Of a kernel; the way back to the images of one with more is left to torch's compiler."""


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    if not _is_product(weight, groups, back=transposed):
        return NotImplemented
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:  # the way back of the convolution whose outputs have the form of x
        windows = _Windows(None, x, weight, more=output_padding, **options)
        out = windows.back(windows.matrix(weight).mT @ windows.to_outputs(x))
    else:
        windows = _Windows(x, None, weight, **options)
        out = windows.of_outputs(windows.matrix(weight) @ windows.columns(x))
    return out if bias is None else out + bias.view(-1, *[1] * len(windows.sizes))


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, wanted: Sequence[bool],
) -> Any:  # fmt: skip
    if not _is_product(weight, groups, back=wanted[0] and not transposed):
        return NotImplemented
    large, small = (grad, x) if transposed else (x, grad)
    windows = _Windows(large, small, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    rows, columns = windows.to_outputs(small), windows.columns(large)
    of_x = None
    if wanted[0]:
        matrix = windows.matrix(weight)
        of_x = windows.of_outputs(matrix @ columns) if transposed else windows.back(matrix.mT @ rows)
    of_weight = (rows @ columns.mT).reshape(weight.shape) if wanted[1] else None
    of_bias = grad.sum([0, *range(2, grad.dim())]) if wanted[2] else None
    return of_x, of_weight, of_bias


@contextmanager
def convolutions_as(taken: Convolutions) -> Iterator[None]:
    """Within it, what is traced has convolutions with groups as they are, or as products."""
    token = _taken.set(taken)
    try:
        yield
    finally:
        _taken.reset(token)


def _is_product(weight: Tensor, groups: int, *, back: bool) -> bool:
    """Whether a convolution has groups, as one of several tasks has, with matrices that are worth a product.

    `back`: it goes from windows back to images.
    """
    if _taken.get() != "products" or groups == 1 or (back and math.prod(weight.shape[2:]) > MOST_ENTRIES):
        return False
    return min(weight.shape[0] // groups, weight[0].numel()) >= FEWEST


class _Windows:
    """The windows that a convolution of `groups` groups looks at, of images `[image, group and channel, *sizes]`.

    Along an axis there are as many as the outputs have places there, by `outputs`; as many as fit, where it is None.
    With `images` None these are as large as such outputs need them, and by `more` larger.
    """

    def __init__(
        self, images: Tensor | None, outputs: Tensor | None, weight: Tensor, *, stride: Sequence[int],
        padding: Sequence[int], dilation: Sequence[int], groups: int, more: Sequence[int] = (0,),
    ) -> None:  # fmt: skip
        self.groups, self.channels, self.kernel = groups, weight.shape[1], list(weight.shape[2:])
        self.stride, self.padding, self.dilation = map(self._each, (stride, padding, dilation))
        self.reach = [step * (size - 1) + 1 for step, size in zip(self.dilation, self.kernel, strict=True)]
        along = list(zip(self.stride, self.padding, self.reach, self._each(more), strict=True))
        if images is not None:
            self.num_images, self.sizes = images.shape[0], list(images.shape[2:])
        if outputs is not None:
            self.num_images, self.numbers = outputs.shape[0], list(outputs.shape[2:])
        if images is None:
            self.sizes = [
                (number - 1) * step - 2 * pad + reach + extra
                for number, (step, pad, reach, extra) in zip(self.numbers, along, strict=True)
            ]
        if outputs is None:
            self.numbers = [
                (size + 2 * pad - reach) // step + 1
                for size, (step, pad, reach, _) in zip(self.sizes, along, strict=True)
            ]

    def matrix(self, weight: Tensor) -> Tensor:
        """Weights as `[group, output, channel and entry of the kernel]`."""
        return weight.reshape(self.groups, -1, weight[0].numel())

    def columns(self, x: Tensor) -> Tensor:
        """Windows as `[group, channel and entry of the kernel, image and place]`."""
        x = F.pad(x, [pad for pad in reversed(self.padding) for _ in range(2)])
        for axis, number in enumerate(self.numbers):
            windows = x.unfold(2 + axis, self.reach[axis], self.stride[axis])
            x = windows.narrow(2 + axis, 0, number)[..., :: self.dilation[axis]]
        x = x.reshape(self.num_images, self.groups, self.channels, *self.numbers, *self.kernel)
        places, entries = self._axes(3), self._axes(3 + len(self.kernel))
        columns = x.permute(1, 2, *entries, 0, *places)
        return columns.reshape(self.groups, self.channels * math.prod(self.kernel), -1)

    def of_outputs(self, rows: Tensor) -> Tensor:
        """From `[group, output, image and place]` to `[image, group and output, *numbers]`."""
        rows = rows.view(self.groups, rows.shape[1], self.num_images, *self.numbers)
        return rows.permute(2, 0, 1, *self._axes(3)).reshape(self.num_images, -1, *self.numbers)

    def to_outputs(self, grad: Tensor) -> Tensor:
        """The other way round."""
        grad = grad.reshape(self.num_images, self.groups, -1, *self.numbers)
        return grad.permute(1, 2, 0, *self._axes(3)).reshape(self.groups, grad.shape[2], -1)

    def back(self, columns: Tensor) -> Tensor:
        """The images' gradient, from that of their windows: each entry of the kernel gives to where it looked."""
        entries = math.prod(self.kernel)
        columns = columns.view(self.groups, self.channels, entries, self.num_images, *self.numbers)
        apart = columns.permute(2, 3, 0, 1, *self._axes(4)).flatten(2, 3)
        for axis in range(len(self.kernel)):
            apart = self._with_zeros(apart, axis)
        found: Tensor | None = None
        for number, entry in enumerate(product(*map(range, self.kernel))):
            margins = []
            for axis in reversed(range(len(self.kernel))):
                before = entry[axis] * self.dilation[axis] - self.padding[axis]
                margins += [before, self.sizes[axis] - before - apart.shape[3 + axis]]
            placed = F.pad(apart[number], margins)
            found = placed if found is None else found + placed
        assert found is not None
        return found

    def _with_zeros(self, value: Tensor, axis: int) -> Tensor:
        """`[entry, image, channel, *numbers]` with the stride between neighbours along an axis."""
        step, axis = self.stride[axis], 3 + axis
        if step == 1:
            return value
        behind = [0, 0] * (value.dim() - 1 - axis)
        return F.pad(value.unsqueeze(axis + 1), [*behind, 0, step - 1]).flatten(axis, axis + 1)

    def _axes(self, first: int) -> range:
        return range(first, first + len(self.kernel))

    def _each(self, values: Sequence[int]) -> list[int]:
        """One value an axis, where one may stand for all."""
        return [*values] * (len(self.kernel) if len(values) == 1 else 1)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}
