"""Dropout of squares of a map instead of single values."""

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError


class DropBlock(nn.Module):
    """Drops squares of `size` x `size` neighbouring values of every map in training, and scales up what is left.

    A square begins at a place with the probability

        gamma = rate / size^2 * (height * width) / ((height - size + 1) * (width - size + 1))

    so that about the share `rate` of the values is dropped. What is left of an example is multiplied by the number of
    its values over the number of those left. The draws are of torch's generator, or, in a functional model, of its key.

    Reference:
        Ghiasi, Lin and Le 2018, arXiv:1810.12890, algorithm 1 and equation 1.
    """

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.rate, self.size = rate, size

    def forward(self, maps: Tensor) -> Tensor:
        """`[example, channel, height, width]` -> the same shape.

        Raises:
            UsageError: the squares are larger than the maps.
        """
        if not self.training or self.rate == 0:
            return maps
        *leading, height, width = maps.shape
        places = height - self.size + 1, width - self.size + 1
        if min(places) < 1:
            raise UsageError(f"DropBlock's squares of {self.size} pixels do not fit into maps of {height} x {width}.")
        gamma = self.rate / self.size**2 * (height * width) / (places[0] * places[1])
        begins = (torch.rand(*leading, *places, device=maps.device, dtype=maps.dtype) < gamma).to(maps.dtype)
        padded = nn.functional.pad(begins, [self.size - 1] * 4)
        left = 1 - nn.functional.max_pool2d(padded, self.size, stride=1)
        share = left.mean((-3, -2, -1), keepdim=True)
        # An example of which nothing is left stays zero and does not become 0 / 0.
        return maps * left / share.clamp_min(1 / left[0].numel())

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"rate={self.rate}, size={self.size}"
