"""The residual network of twelve convolutions of the few-shot literature."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.models.drop_block import DropBlock
from metalearn.models.norms import NORMS, check_filters, check_image_shape, check_option

NUM_BLOCKS = 4
NEGATIVE_SLOPE = 0.1
POOLINGS = ("average", "none")


class ResNet12(nn.Module):
    """Four residual blocks, each of which halves the image, then a linear layer.

    A block computes leaky_relu(h(x) + shortcut(x)) and pools it by 2x2 maxima. h is three 3x3 convolutions, each with a
    norm and the first two with a leaky ReLU of slope 0.1; the shortcut is a 1x1 convolution with a norm. Convolutions
    have no bias and begin as He et al.'s (normal, by the fan out).

    Lee et al. have 64-160-320-640 filters, take the last maps whole (`pooling="none"`) and drop: values after the first
    two blocks, squares of them (DropBlock) after the last two. Here the rate of dropping is constant, where they let
    DropBlock's grow linearly to 0.1 over the first steps. Oreshkin et al. have 64-128-256-512 filters and average.

    Attributes:
        features: the blocks, `features.0.conv1.weight`, `features.0.norm1.weight`, `features.0.shortcut.conv.weight` …
        head: the linear layer.

    Reference:
        Oreshkin, Rodriguez and Lacoste 2018, arXiv:1805.10123; Lee, Maji, Ravichandran and Soatto 2019,
        arXiv:1904.03758, section 4.1.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        filters: int | Sequence[int] = (64, 160, 320, 640),
        norm: str = "batch",
        pooling: str = "average",
        drop_rate: float = 0.0,
        block_size: int = 5,
    ) -> None:
        """A network for images of this shape.

        Args:
            input_shape: `(channel, height, width)` of one image.
            num_outputs: the classes.
            filters: the channels of every block, or of each of the four.
            norm: `"batch"` normalises by the batch at hand, also in evaluation, which is transductive;
                `"batch_running"` keeps running statistics for evaluation; `"layer"` is over channels and space,
                `"group"` over 8 groups of channels; `"instance"`; `"none"`.
            pooling: what the head sees: the `"average"` of the last maps over space, or, by `"none"`, all of them.
            drop_rate: the share of values that is dropped after every block in training.
            block_size: pixels a side of the squares that are dropped after the last two blocks.

        Raises:
            UsageError: for an unknown name, images that are not `[channel, height, width]`, or too small ones.
        """
        super().__init__()
        check_option("ResNet12", "norm", norm, tuple(NORMS))
        check_option("ResNet12", "pooling", pooling, POOLINGS)
        widths = check_filters(filters, blocks=NUM_BLOCKS, norm=norm)
        channels, *size = check_image_shape("ResNet12", input_shape)
        if min(size) < 2**NUM_BLOCKS:
            raise UsageError(
                f"ResNet12 halves an image four times, so it needs {2**NUM_BLOCKS} pixels a side, got {size}."
            )
        _check_dropping(drop_rate, block_size, smallest=min(size) // 2**NUM_BLOCKS)
        self.filters, self.norm, self.pooling = widths, norm, pooling
        self.drop_rate, self.block_size = drop_rate, block_size
        drops = [_drop(index, drop_rate, block_size) for index in range(NUM_BLOCKS)]
        all_widths = zip((channels, *widths[:-1]), widths, drops, strict=True)
        self.features = nn.Sequential(*(_Residual(before, after, norm, drop) for before, after, drop in all_widths))
        area = (size[0] // 2**NUM_BLOCKS) * (size[1] // 2**NUM_BLOCKS)
        self.head = nn.Linear(widths[-1] * (1 if pooling == "average" else area), num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[example, channel, height, width]` -> `[example, num_outputs]`."""
        maps = self.features(inputs)
        return self.head(maps.mean((-2, -1)) if self.pooling == "average" else maps.flatten(1))  # type: ignore[no-any-return]

    def protocol(self) -> dict[str, Any]:
        """What somebody needs to know to compare numbers, as plain data."""
        return {
            "model": "resnet12",
            "filters": list(self.filters),
            "norm": self.norm,
            "transductive": self.norm == "batch",
            "pooling": self.pooling,
            "drop_rate": self.drop_rate,
            **({"block_size": self.block_size} if self.drop_rate else {}),
        }


class _Residual(nn.Module):
    def __init__(self, channels: int, filters: int, norm: str, drop: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(channels, filters, 3), NORMS[norm](filters)
        self.conv2, self.norm2 = _convolution(filters, filters, 3), NORMS[norm](filters)
        self.conv3, self.norm3 = _convolution(filters, filters, 3), NORMS[norm](filters)
        self.shortcut = nn.Sequential(OrderedDict(conv=_convolution(channels, filters, 1), norm=NORMS[norm](filters)))
        self.relu, self.pool, self.drop = nn.LeakyReLU(NEGATIVE_SLOPE), nn.MaxPool2d(2), drop

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.relu(self.norm1(self.conv1(inputs)))
        maps = self.relu(self.norm2(self.conv2(maps)))
        maps = self.relu(self.norm3(self.conv3(maps)) + self.shortcut(inputs))
        return self.drop(self.pool(maps))  # type: ignore[no-any-return]


def _drop(index: int, rate: float, size: int) -> nn.Module:
    """What follows the block number `index`."""
    if not rate:
        return nn.Identity()
    return nn.Dropout(rate) if index < NUM_BLOCKS - 2 else DropBlock(rate, size)


def _convolution(channels: int, filters: int, size: int) -> nn.Conv2d:
    made = nn.Conv2d(channels, filters, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, NEGATIVE_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return made


def _check_dropping(rate: float, size: int, *, smallest: int) -> None:
    if not 0 <= rate < 1:
        raise UsageError(f"`drop_rate` must be a share of at least 0 and below 1, got {rate!r}.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UsageError(f"`block_size` must be a whole number of at least 1, got {size!r}.")
    if rate and size > smallest:
        raise UsageError(
            f"block_size={size} is larger than ResNet12's last maps of images of this size, {smallest} pixels a side."
            f" Set block_size <= {smallest} (model.block_size)."
        )
