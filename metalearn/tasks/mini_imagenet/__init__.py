"""mini-ImageNet with the class split of Ravi and Larochelle."""

from metalearn.tasks.mini_imagenet.source import MiniImageNet

__all__ = ["MiniImageNet"]
