"""The package's own backbones, tiny."""

from collections.abc import Callable
from typing import Any

from torch import nn

from metalearn.models import Conv4, ResNet12, TorchvisionModel
from tests.zoo.rows import Row, given, normal

SHAPE = (3, 32, 32)
IMAGES = given(normal(4, *SHAPE))
BEFORE_BATCH_NORM = ("features.*.conv.bias",)  # a bias that the norm takes off again


def _row(build: Callable[..., nn.Module], *, inert: tuple[str, ...] = (), draws: bool = False, **options: Any) -> Row:
    # Steps as short as those of the ResNet-18: with longer ones some unit of a batch norm over few values has a kink.
    return Row(
        lambda: build(input_shape=SHAPE, num_outputs=3, **options), IMAGES, inert=inert, draws=draws,
        num_inner_steps=1, lr=0.01, num_directions=1, step_sizes=(1e-4, 3e-5, 1e-5),
    )  # fmt: skip


ROWS = {
    "Conv-4": _row(Conv4, filters=4, inert=BEFORE_BATCH_NORM),
    "Conv-4, strided": _row(Conv4, filters=16, norm="group", downsampling="stride"),
    "Conv-4 of R2-D2": _row(
        Conv4, filters=[2, 3, 4, 5], negative_slope=0.1, dropout=0.2, embedding="last_two", draws=True,
        inert=BEFORE_BATCH_NORM,
    ),
    "ResNet-12": _row(ResNet12, filters=[2, 3, 4, 5]),
    "ResNet-12, running statistics": _row(ResNet12, filters=4, norm="batch_running", pooling="none"),
    "ResNet-12, dropping": _row(ResNet12, filters=[2, 3, 4, 5], norm="layer", drop_rate=0.1, block_size=1, draws=True),
    # The batch norms of MobileNet v3 have a large epsilon, so that few values in a batch make no gradients of 1e5.
    "MobileNet v3 of torchvision": _row(
        TorchvisionModel, name="mobilenet_v3_small", norm="batch", options={"width_mult": 0.1, "dropout": 0.0},
        # Of linear bottlenecks: the norm after the next convolution takes them off again.
        inert=("features.features.3.block.1.1.bias", "features.features.*.block.3.1.bias"),
    ),
    "SqueezeNet of torchvision": _row(TorchvisionModel, name="squeezenet1_1", options={"dropout": 0.0}),
}  # fmt: skip
