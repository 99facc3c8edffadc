"""CIFAR-FS: CIFAR-100's classes, split for few-shot learning."""

from metalearn.tasks.cifar_fs.source import CifarFS

__all__ = ["CifarFS"]
