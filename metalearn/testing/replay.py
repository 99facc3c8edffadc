"""What torch holds constant in a function, recorded at one point and replayed at others.

What is computed in `torch.no_grad()` (spectral_norm's power iteration, a codebook's moving averages) and the running
statistics that batch norm writes have no derivative in torch, on purpose. Finite differences know nothing of that: to
certify a gradient which is right in this sense, they must keep these values as they are at the point.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn import tree
from metalearn.errors import UsageError

Point = TypeVar("Point")
Value = TypeVar("Value")

_STATISTICS: Mapping[Any, tuple[int, bool]] = {
    F.batch_norm: (1, False), torch.batch_norm: (3, False), F.instance_norm: (1, True), torch.instance_norm: (3, True),
}  # fmt: skip
"""Functions that write running statistics past autograd: where the first of the two is among the arguments, and whether
they do so by default. Argument 5 says it otherwise."""


@dataclass(frozen=True)
class _Call:
    """What one call without grad gave: the leaves of its result, and the values that it wrote, by argument."""

    function: Any
    results: tuple[Any, ...]
    written: Mapping[int, Tensor]


def holding_constants(function: Callable[[Point], Value], point: Point) -> Callable[[Point], Value]:
    """`function`, with the values that torch holds constant kept as they are at `point`.

    These are the results of torch functions called while grad mode is off, what such functions write in place, and the
    running statistics of batch and instance norm. A plain `.detach()` is not among them: it may be the mistake that
    one looks for; nor is what a `torch.autograd.Function` computes, which has the derivative that its author wrote.

    Args:
        function: deterministic; it must call the same functions without grad wherever it is evaluated.
        point: where the values are taken. It must not require grad.

    Raises:
        UsageError: in the function returned, where other functions are called without grad than at `point`.
    """
    recording = _Recording()
    with torch.enable_grad(), recording:
        function(point)

    def held(elsewhere: Point) -> Value:
        replaying = _Replaying(iter(recording.calls))
        with torch.enable_grad(), replaying:
            return function(elsewhere)

    return held


class _Watching(TorchFunctionMode):
    """Sees every torch function, and tells those that torch holds constant."""

    def __init__(self) -> None:
        super().__init__()
        self._constant = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            # A torch.autograd.Function runs its forward without grad too, but is not seen to switch it off: what is
            # switched off within it was off already.
            if args[0] or torch.is_grad_enabled():
                self._constant = not args[0]
            return func(*args, **kwargs)
        if self._constant:
            return self._held(func, args, kwargs)
        if func in _STATISTICS:
            return self._statistics_held(func, args, kwargs)
        return func(*args, **kwargs)

    def _held(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs a function whose result and writings are constants."""
        raise NotImplementedError

    def _statistics_held(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs a function whose running statistics are constants, and whose result is not."""
        raise NotImplementedError


class _Recording(_Watching):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def _held(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        given = tree.tensors((args, kwargs))
        versions = [value._version for value in given]
        result = func(*args, **kwargs)
        written = {
            index: _copied(value)
            for index, (value, version) in enumerate(zip(given, versions, strict=True))
            if value._version != version
        }
        leaves = tuple(_copied(leaf) if isinstance(leaf, Tensor) else leaf for leaf in tree.flatten(result)[0])
        self.calls.append(_Call(func, leaves, written))
        return result

    def _statistics_held(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        result = func(*args, **kwargs)
        statistics = _statistics(func, args, kwargs)
        self.calls.append(_Call(func, (), {index: _copied(value) for index, value in enumerate(statistics)}))
        return result


class _Replaying(_Watching):
    def __init__(self, calls: Iterator[_Call]) -> None:
        super().__init__()
        self._calls = calls

    def _held(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        call = self._next(func)
        given = tree.tensors((args, kwargs))
        # It runs all the same, so that what shares memory with an argument (a view, the argument itself) still does.
        leaves, structure = tree.flatten(func(*args, **kwargs))
        for index, value in call.written.items():
            _write(given[index], value)
        return tree.unflatten(map(_replayed, leaves, call.results), structure)

    def _statistics_held(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        call = self._next(func)
        result = func(*args, **kwargs)
        statistics = _statistics(func, args, kwargs)
        for index, value in call.written.items():
            _write(statistics[index], value)
        return result

    def _next(self, func: Any) -> _Call:
        call = next(self._calls, None)
        if call is None or call.function != func:
            before = "none" if call is None else _name(call.function)
            raise UsageError(
                f"without grad, the objective calls {_name(func)} at a point where it called {before} before: values "
                "that torch holds constant can be replayed only where the same functions are called at every point."
            )
        return call


def _statistics(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The running statistics that the call writes."""
    first, default = _STATISTICS[func]
    if not (args[5] if len(args) > 5 else kwargs.get("training", kwargs.get("use_input_stats", default))):
        return []
    named = ((first, "running_mean"), (first + 1, "running_var"))
    both = (args[position] if len(args) > position else kwargs.get(name) for position, name in named)
    return [value for value in both if value is not None]


def _replayed(leaf: Any, recorded: Any) -> Any:
    if isinstance(leaf, bool | int | float):
        return recorded
    if not isinstance(leaf, Tensor):
        return leaf
    with torch._C._DisableFuncTorch():
        return leaf if torch.equal(_plain(leaf), recorded) else _batched_like(leaf, recorded.clone())


def _write(target: Tensor, value: Tensor) -> None:
    # Past autograd, as batch norm writes its statistics: it keeps them for its backward, which counts versions.
    with torch._C._DisableFuncTorch():
        _plain(target).data.copy_(value)


def _copied(value: Tensor) -> Tensor:
    with torch._C._DisableFuncTorch():
        return _plain(value).detach().clone()


def _plain(value: Tensor) -> Tensor:
    """The tensor below all transforms of torch.func."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        value = functorch.get_unwrapped(value)
    return value


def _batched_like(model: Tensor, value: Tensor) -> Tensor:
    """A plain tensor with the vmap axes of `model`."""
    functorch = torch._C._functorch
    axes: list[tuple[int, int]] = []
    while functorch.is_functorch_wrapped_tensor(model):
        if functorch.is_batchedtensor(model):
            axes.append((functorch.maybe_get_bdim(model), functorch.maybe_get_level(model)))
        model = functorch.get_unwrapped(model)
    for axis, level in reversed(axes):
        value = functorch._add_batch_dim(value, axis, level)
    return value


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or str(function)
