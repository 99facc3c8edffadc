"""Whether tensors by name are those that are expected, and what to say if they are not."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError, closest

_SHOWN = 3  # of further problems


def check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, what: str, of: str) -> None:
    """Refuses tensors with other names, shapes or kinds of dtype than expected.

    A dtype may differ within its kind (float16 for float32): values can be converted then.

    Args:
        found: what was given.
        expected: tensors of the right names, shapes and dtypes.
        what: how `found` is called in an error.
        of: how the owner of `expected` is called in an error.

    Raises:
        UsageError: naming the first problem with its fix, and counting the others.
    """
    problems = list(_problems(found, expected))
    if problems:
        raise UsageError(f"{what} does not fit {of}: {_common_problem(found, expected) or _told(problems)}")


def check_dicts(*found: Any, what: str) -> None:
    """Refuses what is no dict, before its names are looked at.

    Raises:
        UsageError: one of `found` is of another type.
    """
    for each in found:
        if not isinstance(each, Mapping):
            raise UsageError(f"{what} got a {type(each).__name__}, expected dicts of tensors by name.")


def _told(problems: list[tuple[str, str]]) -> str:
    (first, fix), *others = problems
    text = f"{first}. {fix}"
    if not others:
        return text
    shown = "; ".join(problem for problem, _ in others[:_SHOWN])
    more = f"; and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"{text}\n{len(others)} more {'problems' if len(others) > 1 else 'problem'}: {shown}{more}."


def _problems(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Each problem in a few words, and its fix in a sentence."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    for name, meant in _misspelt(unknown, missing):
        yield f"it has {name!r} in place of {meant!r}", f"Did you mean {meant!r}?"
        missing.remove(meant)
        unknown.remove(name)
    for position, name in enumerate(unknown):
        # Of one alone: to look for names that are close takes long where there are thousands.
        fix = f"{closest(name, expected)} Or leave it out." if position == 0 else ""
        yield f"it has {name!r}, which is not known there", fix
    for name in missing:
        yield f"it has no {name!r}", "Every name has to be there; metalearn.state.override changes some of a whole."
    for name, value in expected.items():
        if name in found:
            yield from mismatch(name, found[name], value)


def mismatch(name: str, found: Tensor, expected: Tensor) -> Iterator[tuple[str, str]]:
    """What is wrong with one tensor, and the fix; nothing if nothing is."""
    if not isinstance(found, Tensor):
        yield f"{name!r} is of type {type(found).__name__}, no tensor", "Only tensors are state."
    elif found.shape != expected.shape:
        fix = (
            "It has an axis more in front: index one task, step or copy first."
            if found.shape[1:] == expected.shape and found.dim()
            else "Is it from a model of another size?"
        )
        yield f"{name!r} has shape {list(found.shape)}, expected {list(expected.shape)}", fix
    elif _kind_of(found.dtype) != _kind_of(expected.dtype):
        dtypes = (str(value.dtype).removeprefix("torch.") for value in (found, expected))
        yield "{!r} is {}, expected {}".format(name, *dtypes), "Convert it on purpose, with .to(dtype)."


def _misspelt(unknown: Iterable[str], missing: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of an unknown name and the missing one that it is closest to, each used once."""
    free, pairs = list(missing), []
    for name in list(unknown)[: _SHOWN + 1]:
        close = get_close_matches(name, free, n=1, cutoff=0.8)
        if close:
            pairs.append((name, close[0]))
            free.remove(close[0])
    return pairs


def _common_problem(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The one problem behind all: tensors a level down (a checkpoint's), a prefix too many or too few (a part's)."""
    for name, value in found.items():
        if isinstance(value, Mapping) and (value.keys() & expected.keys() or _prefix_of_all(value, expected)):
            prefix = _prefix_of_all(value, expected)
            fix = f"metalearn.tree.select(…[{name!r}], {prefix!r})" if prefix else f"…[{name!r}]"
            return f"its tensors are a level down{prefix and f', and begin with {prefix!r}'}. Pass {fix}."
    extra = _prefix(found, expected)
    if extra:
        return f"all its {len(found)} names begin with {extra!r}. Pass metalearn.tree.select(…, {extra!r})."
    extra = _prefix_of_all(found, expected)
    if extra:
        return f"its names begin with {extra!r}, beside others. Pass metalearn.tree.select(…, {extra!r})."
    lacking = _prefix(expected, found)
    return (
        f"all its {len(found)} names lack {lacking!r}. Pass metalearn.tree.prefixed(…, {lacking!r})." if lacking else ""
    )


def _prefix(longer: Iterable[str], shorter: Iterable[str]) -> str:
    """What stands before every one of the longer names and not before the shorter ones; "" where nothing does."""
    names, known = list(longer), set(shorter)
    if not names or not known:
        return ""
    for cut in (position + 1 for position, sign in enumerate(names[0]) if sign == "."):
        prefix = names[0][:cut]
        if all(name.startswith(prefix) for name in names) and known >= {name[cut:] for name in names}:
            return prefix
    return ""


def _prefix_of_all(found: Iterable[str], expected: Iterable[str]) -> str:
    """What stands in `found` before each of the expected names, beside other entries; "" where nothing does."""
    names, wanted = set(found), list(expected)
    if not wanted or wanted[0] in names:
        return ""
    ends = (name.removesuffix(wanted[0]) for name in names if isinstance(name, str) and name.endswith("." + wanted[0]))
    return next((prefix for prefix in sorted(ends) if all(prefix + name in names for name in wanted)), "")


def _kind_of(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "floating"
    return "boolean" if dtype == torch.bool else "integer"
