"""The labels of a person's images as a CSV and as a table for the terminal."""

import csv
import io
from pathlib import Path

from metalearn.errors import UsageError
from metalearn.files import write_atomically
from metalearn.use.labelling import Labelled

_MOST_ROWS = 20
_DIGITS = 4


def write_csv(labelled: Labelled, path: Path) -> None:
    """Writes a row an image: file, label, confidence, the probability of each class; and the truth where it is known.

    Raises:
        UsageError: the file can not be written.
    """
    knows = labelled.accuracy is not None
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    # A prefix, because a class may be called "file" or "label".
    header = ["file", "label", "confidence", *(f"p_{name}" for name in labelled.classes)]
    writer.writerow(header + ["true_label"] * knows)
    rows = zip(
        labelled.query.names, labelled.labels, labelled.confidences, labelled.probabilities.tolist(),
        labelled.query.classes, strict=True,
    )  # fmt: skip
    for name, label, confidence, shares, truth in rows:
        numbers = [f"{value:.{_DIGITS}f}" for value in (confidence, *shares)]
        writer.writerow([name, label, *numbers] + [truth or ""] * knows)
    try:
        # Names that are no valid text on this system are kept as they are, as Python's own files do.
        write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UsageError(f"{path} can not be written ({error.strerror or error}). Choose another output=….") from None


def as_text(labelled: Labelled) -> str:
    """The labels of the first images, how many were skipped, and the accuracy where it is known."""
    query = labelled.query
    rows = list(zip(query.names, labelled.labels, labelled.confidences, labelled.right, query.classes, strict=True))
    cells = [(name, label, f"{100 * share:.1f}%", _verdict(right, truth)) for name, label, share, right, truth in rows]
    shown = [("file", "label", "confidence", ""), *cells[:_MOST_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {label:<{widths[1]}}  {share:>{widths[2]}}  {verdict}".rstrip()
        for name, label, share, verdict in shown
    ]
    if len(cells) > _MOST_ROWS:
        lines.append(f"… and {len(cells) - _MOST_ROWS} more")
    lines += _skipped(labelled)
    lines = [printable(line) for line in lines]
    if labelled.accuracy is not None:
        num_known = sum(right is not None for right in labelled.right)
        num_right = sum(right is True for right in labelled.right)
        lines.append(
            f"accuracy: {100 * labelled.accuracy:.1f}% ({num_right} of {num_known} whose folder names a class)"
        )
    return "\n".join(lines)


def printable(text: str) -> str:
    """A name of a file that is no valid text, with question marks: neither a font nor a terminal takes the bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _verdict(right: bool | None, truth: str | None) -> str:
    return "" if right is None else "right" if right else f"wrong: {truth}"


def _skipped(labelled: Labelled) -> list[str]:
    found = [("support", labelled.support.skipped), ("query", labelled.query.skipped)]
    return [
        f"skipped in {what}: {len(names)} files that are no image ({names[0]}{', …' if len(names) > 1 else ''})"
        for what, names in found
        if names
    ]
