"""The mode that looks every torch function up in the tables of this room."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.functional.interception import (
    attention,
    decisions,
    differentiation,
    distances,
    draws,
    dropout,
    embedding,
    exact,
    fractional_pools,
    indexing,
    inplace_draws,
    lists,
    losses,
    normalisation,
    packing,
    recurrent,
    writing,
)
from metalearn.functional.interception.call import Call
from metalearn.types import Statistics

_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    **draws.REPLACEMENTS,
    **inplace_draws.REPLACEMENTS,
    **dropout.REPLACEMENTS,
    **fractional_pools.REPLACEMENTS,
    **exact.REPLACEMENTS,
    **embedding.REPLACEMENTS,
    **distances.REPLACEMENTS,
    **losses.REPLACEMENTS,
    **normalisation.REPLACEMENTS,
    **attention.REPLACEMENTS,
    **recurrent.REPLACEMENTS,
    **packing.REPLACEMENTS,
    **decisions.REPLACEMENTS,
    **differentiation.REPLACEMENTS,
    **indexing.REPLACEMENTS,
    **lists.REPLACEMENTS,
    **writing.REPLACEMENTS,
}


class Interception(Call):
    """Within it torch's functions are replaced, and a use of `foreign` tensors (the name of each by its id) refused."""

    def __init__(
        self,
        key: Tensor | None,
        *,
        foreign: Mapping[int, str],
        rows: Tensor | None = None,
        statistics: Statistics | None = None,
        zero: Tensor | None = None,
    ) -> None:
        super().__init__(key, rows=rows, statistics=statistics, zero=zero)
        self._foreign = foreign

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._refuse_foreign(args)
        if kwargs:
            self._refuse_foreign(kwargs.values())
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None:
            return replacement(self, *args, **(kwargs or {}))
        if func in draws.REFUSED:
            raise draws.no_keyed_form(func)
        return func(*args, **(kwargs or {}))

    def _refuse_foreign(self, given: Iterable[Any]) -> None:
        for arg in given:
            if id(arg) in self._foreign:
                raise UsageError(
                    f"forward uses the module's own {self._foreign[id(arg)]!r}, not what was passed in: a function or "
                    "object kept by the module refers to it past the module. Reach it through `self` in forward."
                )
            if type(arg) is list or type(arg) is tuple:
                self._refuse_foreign(arg)
