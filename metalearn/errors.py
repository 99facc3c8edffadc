"""The error a user's mistake raises, and the wording that helps to mend it."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

_FEW = 12  # names that an error may list


class UsageError(ValueError):
    """A mistake that the caller can mend: its text names what was got, what was expected and the likely fix.

    The command lines print it in one or two lines, without a traceback, and exit with code 2.
    """


class PluginError(UsageError):
    """A user's own code (a task source, a model, …) raised an exception while it was called.

    Attributes:
        own_traceback: the part of the traceback that lies in that code, for a command line to show before the text.
    """

    def __init__(self, text: str, own_traceback: str = "") -> None:
        super().__init__(text)
        self.own_traceback = own_traceback

    def followed_by(self, text: str) -> "PluginError":
        """The same error with more text after its own."""
        return PluginError(f"{self}{text}", self.own_traceback)


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
    if not close and len(names) > _FEW:
        close = [each for each in names if len(name) > 2 and name.lower() in each.lower()][:3]
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    return f"Known: {', '.join(repr(match) for match in names)}."


def closest(name: str, known: Collection[str]) -> str:
    """`did_you_mean`, but where none of many names is close, what they begin with."""
    near = did_you_mean(name, known)
    if not near.startswith("Known") or len(known) <= _FEW:
        return near
    firsts = list(dict.fromkeys(each.partition(".")[0] for each in known))
    shown = ", ".join(map(repr, firsts[:_FEW])) + (", …" if len(firsts) > _FEW else "")
    return f"The names begin with {shown}."
