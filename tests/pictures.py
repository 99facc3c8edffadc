"""Pictures of ink on paper as a person would have them: other sizes than a model's, in folders."""

import random
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

SHAPES = ("circle", "cross", "line", "square", "wave", "zigzag")


def drawn(shape: str, number: int) -> Image.Image:
    """One of `SHAPES`, each time a little elsewhere."""
    dice = random.Random(f"{shape} {number}")
    picture = Image.new("RGB", (90, 70), "white")
    left, top = dice.randint(12, 22), dice.randint(4, 14)
    right, bottom = left + 48, top + 48
    points = {
        "cross": [(left, top), (right, bottom), None, (left, bottom), (right, top)],
        "line": [((left + right) // 2, top), ((left + right) // 2, bottom)],
        "square": [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)],
        "wave": [(left + 8 * step, top + (12 if step % 2 else 30)) for step in range(7)],
        "zigzag": [(left, top), (right, top), (left, bottom), (right, bottom)],
    }
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), outline="black", width=3)
        return picture
    stroke: list[tuple[int, int]] = []
    for point in [*points[shape], None]:
        if point is None:
            pen.line(stroke, fill="black", width=3)
            stroke = []
        else:
            stroke.append(point)
    return picture


def write(folder: Path, numbers: Mapping[str, range]) -> Path:
    """A folder with a sub-folder of pictures for each of these shapes."""
    for shape, which in numbers.items():
        (folder / shape).mkdir(parents=True)
        for number in which:
            drawn(shape, number).save(folder / shape / f"{shape} {number}.png")
    return folder
