"""Filters: which entries of a dict of tensors are meant, by name, kind, module class or predicate."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn

from metalearn import patterns
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.state.kinds import Kind, kinds, module_of, parameters_and_buffers

Predicate: TypeAlias = Callable[[str, Tensor], bool]
"""`(name, tensor) -> bool`."""


@dataclass(frozen=True)
class Excluding:
    """What fits none of `filters`; `excluding` makes one."""

    filters: tuple[Any, ...]


Filter: TypeAlias = str | Kind | type[nn.Module] | nn.Module | Predicate | Sequence[Any] | Excluding
"""What entries are meant.

- A pattern of names as in the shell (`*`, `?`, `[abc]`; `*` spans dots): `"features.*"`, `"*.bias"`, `"head.weight"`.
  One that begins with `!` means all that do not fit the rest of it.
- A `Kind`; a class of modules, for everything in modules of that class, whatever its name; or a module of the model
  itself, such as `net.head`, for everything in it. These need the model.
- A predicate `(name, tensor) -> bool`.
- Several of these in a sequence: what fits one of them, but for what fits one with a `!`.
- `excluding(…)`: what does not fit.
"""

NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
"""torch's normalisation layers with parameters or statistics, as a filter: `partition(params, NORMS, model=model)`."""


def excluding(*filters: Filter) -> Excluding:
    """The filter of everything that fits none of these: `MAML(learned=excluding(NORMS), …)` freezes the norms."""
    return Excluding(filters)


@dataclass(frozen=True)
class Lookup:
    """Finds the names that fit a filter.

    Attributes:
        tensors: among the names of these.
        model: for filters of a kind or of a module class.
        allow_empty: whether a pattern may fit nothing.
    """

    tensors: Mapping[str, Tensor]
    model: FunctionalModel | nn.Module | None = None
    allow_empty: bool = False

    def fitting(self, which: Filter) -> set[str]:
        """The names that fit a filter.

        Raises:
            UsageError: a pattern fits nothing, a filter needs the model, or is none at all.
        """
        if isinstance(which, Excluding):
            return set(self.tensors) - self._union(which.filters)
        if isinstance(which, Kind):
            told_apart = kinds(self._needed_model(f"Kind.{which.name}"), self.tensors)
            return {name for name, kind in told_apart.items() if kind is which}
        if isinstance(which, str):
            return self._of_pattern(which)
        if inspect.isclass(which) and issubclass(which, nn.Module):
            return self._within(lambda part: isinstance(part, which), which.__name__)
        if isinstance(which, nn.Module):
            return self._within(lambda part: part is which, type(which).__name__)
        if isinstance(which, (Sequence, set, frozenset)):
            return self._of_several(which)
        if callable(which) and not inspect.isclass(which) and not isinstance(which, FunctionalModel):
            return {name for name, value in self.tensors.items() if which(name, value)}
        shown = f"a {type(which).__name__}" if isinstance(which, (FunctionalModel, Mapping)) else repr(which)
        raise UsageError(
            f"{shown} is no filter: expected a pattern such as 'features.*', a list of them, a predicate "
            "(name, tensor) -> bool, a metalearn.state.Kind, a module or a class of modules."
        )

    def _of_several(self, filters: Iterable[Any]) -> set[str]:
        negative = [each[1:] for each in filters if _is_negative(each)]
        positive = [each for each in filters if not _is_negative(each)]
        fits = self._union(positive) if positive or not negative else set(self.tensors)
        return fits - self._union(negative)

    def _union(self, filters: Iterable[Any]) -> set[str]:
        return {name for each in filters for name in self.fitting(each)}

    def _of_pattern(self, pattern: str) -> set[str]:
        return patterns.fitting(pattern, self.tensors, allow_empty=self.allow_empty, hint=self._tied)

    def _tied(self, pattern: str) -> str:
        """What is said of a pattern that fits another name of a tied tensor alone; "" where it does not."""
        if self.model is None:
            return ""
        module = module_of(self.model)
        own = {id(value): name for name, value in parameters_and_buffers(module).items()}
        everywhere = (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        )
        for name, value in everywhere:
            if name not in own.values() and fnmatchcase(name, pattern):
                first = own[id(value)]
                return f"{name!r} is tied to {first!r}, and state has it under that name: say {first!r}."
        return ""

    def _within(self, chosen: Callable[[nn.Module], bool], called: str) -> set[str]:
        module = module_of(self._needed_model(called))
        inside = {
            id(value) for part in module.modules() if chosen(part) for value in (*part.parameters(), *part.buffers())
        }
        return {name for name, value in parameters_and_buffers(module).items() if id(value) in inside} & set(
            self.tensors
        )

    def _needed_model(self, which: str) -> FunctionalModel | nn.Module:
        if self.model is None:
            raise UsageError(f"the filter {which} needs the model to tell names apart: pass model=model too.")
        return self.model


def describe(which: Filter) -> Any:
    """A filter as plain data, for a protocol card."""
    if isinstance(which, Excluding):
        return {"excluding": [describe(each) for each in which.filters]}
    if isinstance(which, Kind):
        return which.value
    if isinstance(which, str):
        return which
    if isinstance(which, (Sequence, set, frozenset)):
        return [describe(each) for each in which]
    return str(getattr(which, "__qualname__", type(which).__name__ if isinstance(which, nn.Module) else which))


def _is_negative(which: Any) -> bool:
    return isinstance(which, str) and which.startswith("!")
