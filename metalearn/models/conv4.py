"""The four-block convolutional network of the few-shot literature."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.models.norms import NORMS, check_filters, check_image_shape, check_option

NUM_BLOCKS = 4
INITIALISATIONS = ("torch", "maml")
DOWNSAMPLINGS = ("pool", "stride")
EMBEDDINGS = ("last", "last_two")


class Conv4(nn.Module):
    """Four blocks of a 3x3 convolution, a norm and ReLU, each of which halves the image, then a linear layer.

    With `downsampling="pool"` a block ends with 2x2 max-pooling and the last one is flattened: most re-implementations.
    With `"stride"` the convolutions have stride 2 and the last block is averaged over space: what MAML's code does on
    Omniglot. (TensorFlow pads an even image on one side only, torch on both: the one deviation.)

    With `filters=[96, 192, 384, 512]`, `negative_slope=0.1`, `dropout=0.1` and `embedding="last_two"` it is the network
    of R2-D2 as its authors' code has it (there the dropout is 0.4 on CIFAR-FS): the last pooling has stride 1, and the
    third block's maps, pooled once more with stride 1, are part of the features. Of images of 84 pixels these are
    (384 + 512) * 9 * 9 = 72,576, the paper's number.

    Attributes:
        features: the blocks, `features.0.conv.weight`, `features.0.norm.weight` …
        head: the linear layer.

    Reference:
        Vinyals et al. 2016, arXiv:1606.04080; Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.2; Bertinetto,
        Henriques, Torr and Vedaldi 2019, arXiv:1805.08136, section 4.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        filters: int | Sequence[int] = 64,
        norm: str = "batch",
        downsampling: str = "pool",
        init: str = "torch",
        negative_slope: float = 0.0,
        dropout: float = 0.0,
        embedding: str = "last",
    ) -> None:
        """A network for images of this shape.

        Args:
            input_shape: `(channel, height, width)` of one image.
            num_outputs: the classes.
            filters: the channels of every block, or of each of the four.
            norm: `"batch"` normalises by the batch at hand, also in evaluation, which is transductive, as in MAML;
                `"batch_running"` keeps running statistics for evaluation; `"layer"` is over channels and space,
                `"group"` over 8 groups of channels; `"instance"`; `"none"`.
            downsampling: `"pool"` or `"stride"`.
            init: `"torch"`, torch's default; or `"maml"`, which MAML's code takes on Omniglot: Glorot-uniform
                convolutions, a standard normal head, biases zero.
            negative_slope: of the leaky ReLU; 0 is ReLU.
            dropout: the probability with which values after the third and the fourth block are dropped in training.
            embedding: what the head sees: the `"last"` block's maps, or those of the `"last_two"` blocks (above).

        Raises:
            UsageError: for an unknown name, images that are not `[channel, height, width]`, or too small ones.
        """
        super().__init__()
        check_option("Conv4", "norm", norm, tuple(NORMS))
        check_option("Conv4", "downsampling", downsampling, DOWNSAMPLINGS)
        check_option("Conv4", "init", init, INITIALISATIONS)
        check_option("Conv4", "embedding", embedding, EMBEDDINGS)
        widths = check_filters(filters, blocks=NUM_BLOCKS, norm=norm)
        _check_ranges(negative_slope, dropout)
        if embedding == "last_two" and downsampling == "stride":
            raise UsageError("Conv4 embedding='last_two' pools, so it needs downsampling='pool', got 'stride'.")
        channels, *size = check_image_shape("Conv4", input_shape)
        if downsampling == "pool" and min(size) < 2**NUM_BLOCKS:
            raise UsageError(
                f"Conv4 halves an image four times, so it needs {2**NUM_BLOCKS} pixels a side, got {size}."
                " Use larger images or downsampling='stride'."
            )
        self.filters = filters if isinstance(filters, int) else widths
        self.norm, self.downsampling, self.init = norm, downsampling, init
        self.negative_slope, self.dropout, self.embedding = negative_slope, dropout, embedding
        self.features = nn.Sequential(*(self._block(index, (channels, *widths)) for index in range(NUM_BLOCKS)))
        self.head = nn.Linear(self._num_features(widths, size), num_outputs)
        if init == "maml":
            self.apply(_initialise_as_maml)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[example, channel, height, width]` -> `[example, num_outputs]`."""
        if self.embedding == "last_two":
            return self.head(self._last_two(inputs))  # type: ignore[no-any-return]
        maps = self.features(inputs)
        return self.head(maps.flatten(1) if self.downsampling == "pool" else maps.mean((-2, -1)))  # type: ignore[no-any-return]

    def protocol(self) -> dict[str, Any]:
        """What somebody needs to know to compare numbers, as plain data."""
        others = {"negative_slope": self.negative_slope, "dropout": self.dropout}
        return {
            "model": "conv4",
            "filters": self.filters if isinstance(self.filters, int) else list(self.filters),
            "norm": self.norm,
            "transductive": self.norm == "batch",
            "downsampling": self.downsampling,
            "init": self.init,
            **{name: value for name, value in others.items() if value},
            **({} if self.embedding == "last" else {"embedding": self.embedding}),
        }

    def _last_two(self, inputs: Tensor) -> Tensor:
        """The maps of the third block, pooled, and of the fourth, `[example, feature]`."""
        before, maps = inputs, inputs
        for block in self.features:
            before, maps = maps, block(maps)
        return torch.cat([nn.functional.max_pool2d(before, 2, stride=1), maps], 1).flatten(1)

    def _block(self, index: int, widths: Sequence[int]) -> nn.Sequential:
        """The block number `index`; `widths` begins with the images' channels."""
        pooled, last = self.downsampling == "pool", index == NUM_BLOCKS - 1
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(widths[index], widths[index + 1], 3, stride=1 if pooled else 2, padding=1)
        layers["norm"] = NORMS[self.norm](widths[index + 1])
        layers["relu"] = nn.LeakyReLU(self.negative_slope) if self.negative_slope else nn.ReLU()
        if pooled:
            layers["pool"] = nn.MaxPool2d(2, stride=1 if last and self.embedding == "last_two" else 2)
        if self.dropout and index >= NUM_BLOCKS - 2:
            layers["dropout"] = nn.Dropout(self.dropout)
        return nn.Sequential(layers)

    def _num_features(self, widths: Sequence[int], size: Sequence[int]) -> int:
        height, width = size
        if self.embedding == "last_two":
            return sum(widths[-2:]) * (height // 2**3 - 1) * (width // 2**3 - 1)
        return widths[-1] * ((height // 2**NUM_BLOCKS) * (width // 2**NUM_BLOCKS) if self.downsampling == "pool" else 1)


def _initialise_as_maml(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _check_ranges(negative_slope: float, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UsageError(f"`dropout` must be a probability of at least 0 and below 1, got {dropout!r}.")
    if not 0 <= negative_slope <= 1:
        raise UsageError(f"`negative_slope` must be from 0 (ReLU) to 1, got {negative_slope!r}.")
