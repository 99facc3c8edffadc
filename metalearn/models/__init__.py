"""Models: ordinary modules with `features` and a `head`."""

from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP
from metalearn.models.resnet12 import ResNet12
from metalearn.models.torchvision import TorchvisionModel

__all__ = ["MLP", "Conv4", "ResNet12", "TorchvisionModel"]
