"""A number of a step that nobody may look at."""

from typing import Any


class StepIsRead(BaseException):
    """Code made use of the number of a step. No Exception: nobody's `except` shall take it for a failure."""


class UnreadStep:
    """Stands for every number of a step; what runs with it is the same at each.

    No subclass of int: C code reads one without asking it.
    """

    def __repr__(self) -> str:
        raise StepIsRead

    def __getattr__(self, name: str) -> Any:
        raise StepIsRead


def _raises(*args: Any) -> Any:
    raise StepIsRead


_USES = [
    "abs", "add", "and", "bool", "ceil", "divmod", "eq", "float", "floor", "floordiv", "format", "ge", "gt", "hash",
    "index", "int", "invert", "le", "lshift", "lt", "matmul", "mod", "mul", "ne", "neg", "or", "pos", "pow", "radd",
    "rand", "rdivmod", "rfloordiv", "rlshift", "rmatmul", "rmod", "rmul", "ror", "round", "rpow", "rrshift",
    "rshift", "rsub", "rtruediv", "rxor", "str", "sub", "truediv", "trunc", "xor", "call", "getitem", "iter", "len",
    "contains", "complex", "bytes", "reduce", "reduce_ex",
]  # fmt: skip
for _use in _USES:
    setattr(UnreadStep, f"__{_use}__", _raises)
