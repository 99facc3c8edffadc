"""Ways of running the tasks of a meta-batch: all give the same gradient."""

from metalearn.execution.base import BatchedMetaGradient, BufferPolicy, Execution
from metalearn.execution.choice import choose
from metalearn.execution.loop import Loop
from metalearn.execution.precision import Precision
from metalearn.execution.vmap import Vmap

__all__ = ["BatchedMetaGradient", "BufferPolicy", "Execution", "Loop", "Precision", "Vmap", "choose"]
