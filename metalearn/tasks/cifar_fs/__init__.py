"""CIFAR-FS and FC100: CIFAR-100's classes, split for few-shot learning."""

from metalearn.tasks.cifar_fs.source import FC100, CifarFS

__all__ = ["FC100", "CifarFS"]
