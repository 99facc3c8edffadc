"""Pooling of all kinds."""

import torch
from torch import Tensor, nn

from tests.zoo.rows import SPACE, Row, convolutional

_D = (1, 2, 3)


class Unpooled(nn.Module):
    """Max-pooling with indices, and its undoing."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{dims}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{dims}d")(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled, indices = self.pool(x)
        return self.unpool(pooled * pooled, indices, output_size=x.shape)


def _pooled(name: str, dims: int, *args, **kwargs) -> Row:
    return Row(lambda: convolutional(getattr(nn, f"{name}{dims}d")(*args, **kwargs), nn.Tanh(), dims=dims), SPACE[dims])


def _fractional(dims: int, *, samples: bool) -> nn.Sequential:
    drawn = torch.rand(1, 4, dims, dtype=torch.float64).expand((3, 2)[dims - 2], 4, dims) if samples else None
    pool = getattr(nn, f"FractionalMaxPool{dims}d")(2, output_size=2, _random_samples=drawn)
    return convolutional(nn.Upsample(5), pool, nn.Tanh(), dims=dims)


ROWS = {
    **{f"max pool {d}d": _pooled("MaxPool", d, 2) for d in _D},
    **{
        f"max pool {d}d, padded, dilated, ceiled": _pooled("MaxPool", d, 2, padding=1, dilation=2, ceil_mode=True)
        for d in _D
    },
    **{
        f"max pool {d}d with indices, unpooled": Row(lambda d=d: convolutional(Unpooled(d), dims=d), SPACE[d])
        for d in _D
    },
    **{f"average pool {d}d": _pooled("AvgPool", d, 2) for d in _D},
    **{
        f"average pool {d}d, padded": _pooled("AvgPool", d, 3, padding=1, count_include_pad=False, ceil_mode=True)
        for d in _D
    },
    **{f"adaptive average pool {d}d": _pooled("AdaptiveAvgPool", d, 2) for d in _D},
    **{f"adaptive max pool {d}d": _pooled("AdaptiveMaxPool", d, 2) for d in _D},
    **{f"LP pool {d}d": _pooled("LPPool", d, 2, 2) for d in _D},
    "LP pool 2d, p=3": Row(lambda: convolutional(nn.Softplus(), nn.LPPool2d(3, 2)), SPACE[2]),
    **{
        f"fractional max pool {d}d, samples given": Row(
            lambda d=d: _fractional(d, samples=True), SPACE[d], slow_batching="aten::fractional_max_pool"
        )
        for d in (2, 3)
    },
    **{
        f"fractional max pool {d}d": Row(
            lambda d=d: _fractional(d, samples=False), SPACE[d], draws=True, slow_batching="aten::fractional_max_pool"
        )
        for d in (2, 3)
    },
}
