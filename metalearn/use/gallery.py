"""A picture of labelled images: the examples of each class, and the query images with label and confidence."""

import math
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.training.plots import save
from metalearn.use.labelling import Labelled
from metalearn.use.table import printable

_COLUMNS = 8
_MOST_QUERY = 48
_INCHES = 1.25
_COLOURS = {True: "tab:green", False: "tab:red", None: "black"}


def draw_gallery(labelled: Labelled, path: Path) -> None:
    """Draws the first examples of every class and the first query images, as the model sees them.

    Labels that are known to be right are green, wrong ones red and with the true class.

    Raises:
        UsageError: the file can not be written.
    """
    by_class = [
        [each for each, name in zip(labelled.support.pixels, labelled.support.classes, strict=True) if name == label]
        for label in labelled.classes
    ]
    num_query = min(len(labelled.query.names), _MOST_QUERY)
    query_rows = math.ceil(num_query / _COLUMNS)
    heights = [len(by_class) * _INCHES + 0.5, query_rows * (_INCHES + 0.35) + 0.5]
    figure = Figure(figsize=(_COLUMNS * _INCHES + 1.0, sum(heights)), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    above, below = parts[0][0], parts[1][0]
    above.suptitle("support: what the model was adapted to")
    below.suptitle(f"query{_of(num_query, len(labelled.query.names))}: label and confidence")
    inverted = labelled.image_format.inverted
    for row, (label, images) in enumerate(zip(labelled.classes, by_class, strict=True)):
        for column in range(_COLUMNS):
            axes = _empty(above.add_subplot(len(by_class), _COLUMNS, row * _COLUMNS + column + 1))
            if column < len(images):
                _show(axes, images[column], inverted=inverted)
        # Text is text: a class called "$a" is no formula.
        above.axes[row * _COLUMNS].set_ylabel(_short(label), rotation=0, ha="right", va="center", parse_math=False)
    for place in range(query_rows * _COLUMNS):
        axes = _empty(below.add_subplot(query_rows, _COLUMNS, place + 1))
        if place < num_query:
            _show_query(axes, labelled, place)
    with warnings.catch_warnings():
        # A class's name may be in a script that matplotlib's own font does not have: boxes here, whole in the CSV.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        save(figure, path)


def _show_query(axes: Axes, labelled: Labelled, place: int) -> None:
    right = labelled.right[place]
    _show(axes, labelled.query.pixels[place], inverted=labelled.image_format.inverted, colour=_COLOURS[right])
    text = f"{_short(labelled.labels[place])} {100 * labelled.confidences[place]:.0f}%"
    if right is False:
        text += f"\nis {_short(str(labelled.query.classes[place]))}"
    axes.set_title(text, fontsize=8, color=_COLOURS[right], parse_math=False)


def _show(axes: Axes, image: Tensor, *, inverted: bool, colour: str = "black") -> None:
    pixels = image.permute(1, 2, 0).numpy()
    pixels = 255 - pixels if inverted else pixels  # back to ink on paper
    axes.imshow(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
    for side in axes.spines.values():
        side.set(visible=True, color=colour, linewidth=1.5)


def _empty(axes: Axes) -> Axes:
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def _short(name: str, most: int = 14) -> str:
    text = printable(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def _of(shown: int, total: int) -> str:
    return "" if shown == total else f" (the first {shown} of {total})"
