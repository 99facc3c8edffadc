"""The four-block convolutional network of the few-shot literature."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from metalearn.errors import UsageError, did_you_mean

NUM_BLOCKS = 4
INITIALISATIONS = ("torch", "maml")
DOWNSAMPLINGS = ("pool", "stride")
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda filters: nn.BatchNorm2d(filters, track_running_stats=False),
    "batch_running": nn.BatchNorm2d,
    "layer": lambda filters: nn.GroupNorm(1, filters),
    "group": lambda filters: nn.GroupNorm(8, filters),
    "instance": lambda filters: nn.InstanceNorm2d(filters, affine=True),
    "none": lambda filters: nn.Identity(),
}


class Conv4(nn.Module):
    """Four blocks of a 3x3 convolution, a norm and ReLU, each of which halves the image, then a linear layer.

    With `downsampling="pool"` a block ends with 2x2 max-pooling and the last one is flattened: most re-implementations.
    With `"stride"` the convolutions have stride 2 and the last block is averaged over space: what MAML's code does on
    Omniglot. (TensorFlow pads an even image on one side only, torch on both: the one deviation.)

    Attributes:
        features: the blocks, `features.0.conv.weight`, `features.0.norm.weight` …
        head: the linear layer.

    Reference:
        Vinyals et al. 2016, arXiv:1606.04080; Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.2.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        filters: int = 64,
        norm: str = "batch",
        downsampling: str = "pool",
        init: str = "torch",
    ) -> None:
        """A network for images of this shape.

        Args:
            input_shape: `(channel, height, width)` of one image.
            num_outputs: the classes.
            filters: the channels of every block.
            norm: `"batch"` normalises by the batch at hand, also in evaluation, which is transductive, as in MAML;
                `"batch_running"` keeps running statistics for evaluation; `"layer"` is over channels and space,
                `"group"` over 8 groups of channels; `"instance"`; `"none"`.
            downsampling: `"pool"` or `"stride"`.
            init: `"torch"`, torch's default; or `"maml"`, which MAML's code takes on Omniglot: Glorot-uniform
                convolutions, a standard normal head, biases zero.

        Raises:
            UsageError: for an unknown name, images that are not `[channel, height, width]`, or too small ones.
        """
        super().__init__()
        for option, value, known in (
            ("norm", norm, tuple(NORMS)),
            ("downsampling", downsampling, DOWNSAMPLINGS),
            ("init", init, INITIALISATIONS),
        ):
            if value not in known:
                raise UsageError(f"Unknown Conv4 {option} {value!r}. {did_you_mean(str(value), known)}")
        _check_filters(filters, norm)
        channels, *size = _checked_shape(input_shape)
        if downsampling == "pool" and min(size) < 2**NUM_BLOCKS:
            raise UsageError(
                f"Conv4 halves an image four times, so it needs {2**NUM_BLOCKS} pixels a side, got {size}."
                " Use larger images or downsampling='stride'."
            )
        self.filters, self.norm, self.downsampling, self.init = filters, norm, downsampling, init
        widths = (channels, *[filters] * NUM_BLOCKS)
        blocks = [_block(widths[index], filters, norm, downsampling) for index in range(NUM_BLOCKS)]
        pooled = filters * (size[0] // 2**NUM_BLOCKS) * (size[1] // 2**NUM_BLOCKS)
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(pooled if downsampling == "pool" else filters, num_outputs)
        if init == "maml":
            self.apply(_initialise_as_maml)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[example, channel, height, width]` -> `[example, num_outputs]`."""
        maps = self.features(inputs)
        return self.head(maps.flatten(1) if self.downsampling == "pool" else maps.mean((-2, -1)))  # type: ignore[no-any-return]

    def protocol(self) -> dict[str, Any]:
        """What somebody needs to know to compare numbers, as plain data."""
        return {
            "model": "conv4",
            "filters": self.filters,
            "norm": self.norm,
            "transductive": self.norm == "batch",
            "downsampling": self.downsampling,
            "init": self.init,
        }


def _block(channels: int, filters: int, norm: str, downsampling: str) -> nn.Sequential:
    stride = 2 if downsampling == "stride" else 1
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(channels, filters, 3, stride=stride, padding=1)
    layers["norm"] = NORMS[norm](filters)
    layers["relu"] = nn.ReLU()
    if downsampling == "pool":
        layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def _initialise_as_maml(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _check_filters(filters: int, norm: str) -> None:
    if isinstance(filters, bool) or not isinstance(filters, int) or filters < 1:
        raise UsageError(f"`filters` must be a whole number of at least 1, got {filters!r}.")
    if norm == "group" and filters % 8:
        raise UsageError(f"norm='group' has 8 groups, so `filters` must be a multiple of 8, got {filters}.")


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(input_shape)
    if len(shape) != 3:
        raise UsageError(
            f"Conv4 takes images [channel, height, width], got examples of shape {list(shape)}."
            " For vectors use model=mlp."
        )
    return shape
