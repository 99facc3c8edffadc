"""Names that fit a pattern as in the shell (`*`, `?`, `[abc]`; `*` spans dots), or, after a `!`, that do not."""

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from metalearn.errors import UsageError, closest


def fits(pattern: str, name: str) -> bool:
    """Whether a name is one that a pattern (without `!`) means: it is the same, or fits its signs.

    Example:
        >>> fits("*.bias", "head.bias"), fits("head.bias", "head.bias"), fits("bias", "head.bias")
        (True, True, False)
    """
    return name == pattern or fnmatchcase(name, pattern)


def fitting(
    pattern: str, names: Collection[str], *, allow_empty: bool = False, hint: Callable[[str], str] | None = None
) -> set[str]:
    """The names that fit one pattern; one that is a name itself means that name alone, whatever signs are in it.

    Args:
        pattern: such as `"features.*"`; `"!*.bias"` means all that do not fit `"*.bias"`.
        names: among these.
        allow_empty: whether it may fit nothing (`"*"` may).
        hint: what else may be wrong with a pattern that fits nothing, or ""; said in place of the names that are close.

    Raises:
        UsageError: the pattern fits nothing.
    """
    if pattern.startswith("!"):
        return set(names) - fitting(pattern[1:], names, allow_empty=allow_empty, hint=hint)
    if pattern in names:
        return {pattern}
    found = {name for name in names if fnmatchcase(name, pattern)}
    if not found and pattern != "*" and not allow_empty:
        told = (hint(pattern) if hint else "") or near(pattern, names)
        raise UsageError(f"{pattern!r} fits none of the {len(names)} names. {told}")
    return found


def fitting_any(patterns: str | Iterable[str], names: Collection[str]) -> set[str]:
    """The names that fit one of several patterns, but for those that fit one with a `!` in front.

    Raises:
        UsageError: a pattern fits nothing, or is no text.

    Example:
        >>> sorted(fitting_any(["*.weight", "!head.*"], ["body.weight", "body.bias", "head.weight"]))
        ['body.weight']
    """
    several = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in several:
        if not isinstance(pattern, str):
            raise UsageError(f"{pattern!r} is no pattern of names: expected a text such as '*.bias', or several.")
    negative = [pattern[1:] for pattern in several if pattern.startswith("!")]
    positive = [pattern for pattern in several if not pattern.startswith("!")]
    fit = {name for pattern in positive for name in fitting(pattern, names)} if positive or not negative else set(names)
    return fit - {name for pattern in negative for name in fitting(pattern, names)}


def near(pattern: str, names: Collection[str]) -> str:
    """A sentence for a pattern that fits nothing: close names, else a close first part, `head.*` for `haed.*`."""
    first, dot, rest = pattern.partition(".")
    close = get_close_matches(first, {name.partition(".")[0] for name in names}, n=1)
    mended = close[0] + dot + rest if close and dot else ""
    if mended != pattern and any(fnmatchcase(name, mended) for name in names):
        return f"Did you mean {mended!r}?"
    return closest(pattern, names)
