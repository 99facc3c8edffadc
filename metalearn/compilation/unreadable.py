"""What can not be traced, in terms of what the user wrote."""

from collections.abc import Iterator
from contextlib import contextmanager

from metalearn.diagnosis import line_of
from metalearn.errors import UsageError


@contextmanager
def explained_reads() -> Iterator[None]:
    """Within it, a read of a tensor's value becomes a UsageError that says where it is."""
    # Imported where something is traced: sympy takes half a second.
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        yield
    except (DataDependentOutputException, GuardOnDataDependentSymNode, DynamicOutputShapeException) as error:
        what = (
            "makes a tensor whose shape depends on values"
            if isinstance(error, DynamicOutputShapeException)
            else ("reads a number out of a tensor, or decides by it")
        )
        raise UsageError(
            f"compiled execution: the code {what}{line_of(error)}, so it has no one graph. Use torch.where or a "
            "mask there, or run it as it is: execution.compile=false (compiled=None)."
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"compiled execution: torch can not trace this code{line_of(error)} ({told[0]}). Run it as it is: "
            "execution.compile=false (compiled=None)."
        ) from error
