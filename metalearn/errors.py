"""The error a user's mistake raises, and the wording that helps to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A mistake that the caller can mend: its text names what was got, what was expected and the likely fix.

    The command lines print it in one or two lines, without a traceback, and exit with code 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names closest to `name`, or all of them when none is close.

    Example:
        >>> did_you_mean("omniglott", ["omniglot", "sinusoid"])
        "Did you mean 'omniglot'?"
        >>> did_you_mean("zzz", ["omniglot", "sinusoid"])
        "Known: 'omniglot', 'sinusoid'."
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    return f"Known: {', '.join(repr(match) for match in names)}."
