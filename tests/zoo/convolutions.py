"""Linear and convolutional layers, and layers that move values about."""

from torch import nn

from tests.zoo.rows import SPACE, VECTORS, Row, convolutional, dense, given, normal

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _first(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


ROWS = {
    "linear": Row(lambda: dense(nn.Tanh())),
    "linear, no bias": Row(lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))),
    "bilinear": Row(lambda: nn.Bilinear(3, 2, 4), given(normal(5, 3), normal(5, 2))),
    **{f"convolution {d}d": Row(lambda c=c: _first(c(1, 3, 3)), SPACE[d]) for d, c in _CONVOLUTIONS.items()},
    **{
        f"convolution {d}d, strided and dilated": Row(lambda c=c: _first(c(1, 3, 2, stride=2, dilation=2)), SPACE[d])
        for d, c in _CONVOLUTIONS.items()
    },
    **{
        f"convolution {d}d, depthwise": Row(lambda c=c, d=d: convolutional(c(4, 4, 3, groups=4), dims=d), SPACE[d])
        for d, c in _CONVOLUTIONS.items()
    },
    **{
        f"convolution {d}d, grouped": Row(lambda c=c, d=d: convolutional(c(4, 6, 3, groups=2), dims=d), SPACE[d])
        for d, c in _CONVOLUTIONS.items()
    },
    **{
        f"convolution 2d, {mode} padding": Row(
            lambda mode=mode: _first(nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode)), SPACE[2]
        )
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
    "convolution 2d, same padding": Row(lambda: _first(nn.Conv2d(1, 2, 3, dilation=2, padding="same")), SPACE[2]),
    "convolution 1d, causal padding": Row(
        lambda: nn.Sequential(nn.ConstantPad1d((2, 0), 0.5), _first(nn.Conv1d(1, 3, 3))), SPACE[1]
    ),
    **{
        f"transposed convolution {d}d": Row(lambda c=c: _first(c(1, 2, 3, stride=2, output_padding=1)), SPACE[d])
        for d, c in _TRANSPOSED.items()
    },
    **{
        f"transposed convolution {d}d, grouped and dilated": Row(
            lambda c=c, d=d: convolutional(c(4, 2, 2, groups=2, dilation=2, bias=False), dims=d), SPACE[d]
        )
        for d, c in _TRANSPOSED.items()
    },
    "lazy convolution": Row(
        lambda: nn.Sequential(nn.LazyConv2d(3, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)), SPACE[2]
    ),
    "unfold and fold": Row(lambda: convolutional(nn.Unfold(2), nn.Tanh(), nn.Fold((5, 5), 2)), SPACE[2]),
    "pixel shuffle": Row(lambda: convolutional(nn.PixelShuffle(2)), SPACE[2]),
    "pixel unshuffle": Row(lambda: convolutional(nn.ZeroPad2d((0, 1, 0, 1)), nn.PixelUnshuffle(2)), SPACE[2]),
    "channel shuffle": Row(lambda: convolutional(nn.ChannelShuffle(2)), SPACE[2]),
    "unflatten": Row(lambda: dense(nn.Unflatten(1, (2, 3)), nn.Flatten()), VECTORS),
    **{
        f"upsampling, {mode}": Row(lambda mode=mode: convolutional(nn.Upsample(scale_factor=2, mode=mode)), SPACE[2])
        for mode in ("nearest", "bilinear", "bicubic")
    },
    "upsampling, linear": Row(
        lambda: convolutional(nn.Upsample(7, mode="linear", align_corners=True), dims=1), SPACE[1]
    ),
    "upsampling, trilinear": Row(lambda: convolutional(nn.Upsample(4, mode="trilinear"), dims=3), SPACE[3]),
    "upsampling, nearest 2d": Row(lambda: convolutional(nn.UpsamplingNearest2d(scale_factor=2)), SPACE[2]),
    "upsampling, bilinear 2d": Row(lambda: convolutional(nn.UpsamplingBilinear2d(scale_factor=2)), SPACE[2]),
    **{
        f"padding, {name} {d}d": Row(
            lambda name=name, d=d: convolutional(getattr(nn, f"{name}Pad{d}d")(1), dims=d), SPACE[d]
        )
        for name in ("Zero", "Reflection", "Replication", "Circular")
        for d in (1, 2, 3)
    },
    "padding, constant 2d": Row(lambda: convolutional(nn.ConstantPad2d(1, 0.5)), SPACE[2]),
    "padding, constant 3d": Row(lambda: convolutional(nn.ConstantPad3d(1, 0.5), dims=3), SPACE[3]),
}
