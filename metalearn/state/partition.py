"""Taking a dict of tensors apart by filters, and putting it together again."""

from collections.abc import Mapping

from torch import Tensor, nn

from metalearn.errors import UsageError, closest
from metalearn.functional import FunctionalModel
from metalearn.state.filters import Filter, Lookup, describe
from metalearn.state.fit import check_dicts, mismatch
from metalearn.types import Tensors


def partition(
    tensors: Mapping[str, Tensor],
    *filters: Filter,
    model: FunctionalModel | nn.Module | None = None,
    allow_empty: bool = False,
) -> tuple[Tensors, ...]:
    """One plain dict a filter, and one of the rest; every entry goes to the first filter that it fits.

    The order of entries is kept, and `merge` puts the parts together again.

    Args:
        tensors: by name.
        *filters: see `Filter`.
        model: needed by filters of a kind or a module class.
        allow_empty: accept a filter that nothing is left for. By default that is an error: adapting nothing without a
            word is a trap. Only `"*"` may always be empty.

    Raises:
        UsageError: a filter fits nothing; a filter is none; one needs the model.

    Example:
        >>> import torch
        >>> params = {"features.weight": torch.ones(1), "head.weight": torch.ones(1), "head.bias": torch.ones(1)}
        >>> head, rest = partition(params, "head.*")
        >>> list(head), list(rest)
        (['head.weight', 'head.bias'], ['features.weight'])
    """
    check_dicts(tensors, what="partition(tensors, filter, …)")
    lookup, left = Lookup(tensors, model, allow_empty), dict(tensors)
    parts: list[Tensors] = []
    for each in filters:
        fits = lookup.fitting(each)
        part = {name: value for name, value in left.items() if name in fits}
        if not part and not allow_empty and each != "*":
            why = "all that fits it went to a filter before it" if fits else f"none of {len(tensors)} entries fits it"
            raise UsageError(
                f"nothing is left for {describe(each)!r}: {why}. Give another filter, or allow_empty=True (partition)."
            )
        left = {name: value for name, value in left.items() if name not in fits}
        parts.append(part)
    return (*parts, left)


def merge(*parts: Mapping[str, Tensor]) -> Tensors:
    """The union of several dicts, in their order.

    Raises:
        UsageError: a name is in two of them (`override` replaces on purpose).

    Example:
        >>> import torch
        >>> sorted(merge({"a": torch.ones(1)}, {"b": torch.ones(1)}))
        ['a', 'b']
    """
    check_dicts(*parts, what="merge(part, part, …)")
    merged: Tensors = {}
    for part in parts:
        twice = [name for name in part if name in merged]
        if twice:
            raise UsageError(
                f"{twice[0]!r} is in two of the parts ({len(twice)} such names in all). To replace entries use "
                "metalearn.state.override(base, changes)."
            )
        merged.update(part)
    return merged


def override(base: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> Tensors:
    """`base` with some entries replaced, of the same names, shapes and kinds of dtype.

    Raises:
        UsageError: `base` has no such name, or another shape or kind of dtype.

    Example:
        >>> import torch
        >>> override({"a": torch.zeros(1), "b": torch.zeros(1)}, {"b": torch.ones(1)})
        {'a': tensor([0.]), 'b': tensor([1.])}
    """
    check_dicts(base, changes, what="override(base, changes)")
    for name, value in changes.items():
        if name not in base:
            raise UsageError(f"there is no {name!r} to override. {closest(name, base)}")
        for problem, fix in mismatch(name, value, base[name]):
            raise UsageError(f"{problem}. {fix}")
    return {**base, **changes}
