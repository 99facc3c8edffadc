"""What a replacement of a torch function knows of the call of a model that it happens in."""

from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.errors import UsageError
from metalearn.types import Statistics


class Call(TorchFunctionMode):
    """One call of a functional model: the key it draws from, and which rows of its inputs are real.

    Attributes:
        rows: bool `[example]`; None for all.
        statistics: what norms with batch statistics normalise by; None for what the module says.
        zero: a zero with every task axis, where tensors that forward makes need one; else None.
        differentiates: whether the call runs in a level of its own, as forward takes derivatives (`differentiation`).
        aliases: tensors whose `.data` was taken, with what was handed out and its version then.
    """

    def __init__(
        self,
        key: Tensor | None,
        *,
        rows: Tensor | None = None,
        statistics: Statistics | None = None,
        zero: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.statistics = statistics
        self.zero = zero
        self.differentiates = False
        self.aliases: list[tuple[Tensor, Tensor, int]] = []
        self._key = key
        self._num_draws = 0
        self.rows = rows

    @property
    def next_key(self) -> Tensor:
        """The key for whoever draws next: a counter, advanced by one a draw."""
        if self._key is None:
            raise UsageError("there is no key: pass buffers['rng']")
        return self._key + self._num_draws if self._num_draws else self._key

    def draw(self) -> Tensor:
        """A key that no other draw gets."""
        if self._key is None:
            raise UsageError(
                "this model draws random numbers, but buffers has no 'rng' entry. Pass "
                "buffers={**buffers, 'rng': metalearn.random.key(seed)}, or use model.eval() if only training draws."
            )
        key = self._key + self._num_draws
        self._num_draws += 1
        return key

    def inside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a torch function that is written in Python, and sees the torch functions that it calls.

        torch switches a mode off inside the function it handles, so what such a function draws, or attends with, would
        go past us.
        """
        with self:
            return _opened(function)(*args, **kwargs)


@cache
def _opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without its own hand-over to modes, which would bring us back to where we are."""
    assert isinstance(function, FunctionType), f"{function} is not written in Python"

    def nobody(*args: Any) -> bool:
        return False

    names: Mapping[str, Any] = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), nobody
    )
    opened = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened
