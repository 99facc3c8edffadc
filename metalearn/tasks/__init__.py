"""Task sources: where episodes come from."""

from metalearn.tasks.base import TaskSource
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.glyphs import Glyphs
from metalearn.tasks.omniglot import Omniglot
from metalearn.tasks.sinusoid import Sinusoid

__all__ = ["ClassificationSource", "Glyphs", "Omniglot", "Sinusoid", "TaskSource"]
