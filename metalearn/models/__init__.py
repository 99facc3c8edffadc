"""Models: ordinary modules with `features` and a `head`."""

from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP

__all__ = ["MLP", "Conv4"]
