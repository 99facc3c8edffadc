"""Omniglot: its images where a person may have them, their cache, its splits, and the task."""

from metalearn.tasks.omniglot.source import Omniglot

__all__ = ["Omniglot"]
