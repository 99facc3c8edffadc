"""Draws a sheet of glyphs beside the real Omniglot, to judge by eye whether they are a fair stand-in.

Usage: python scripts/glyph_sheet.py SHEET.png OMNIGLOT_FOLDER [GLYPH_SEED]

Left Omniglot, right glyphs; above, an alphabet a row in one drawer's hand; below, a character a row by many drawers.
"""

import sys

import torch
from PIL import Image
from torch import Tensor

from metalearn import random
from metalearn.tasks.glyphs import draw_world
from metalearn.tasks.omniglot import Omniglot

ALPHABET_ROWS, CHARACTER_ROWS, COLUMNS, ZOOM = 8, 6, 14, 2


def alphabet_rows(images: Tensor, starts: Tensor) -> Tensor:
    """Characters that follow each other from each start, `[row, column, 28, 28]`."""
    return torch.stack([images[start : start + COLUMNS, 3] for start in starts.tolist()])


def sheet(images: Tensor) -> Tensor:
    """One side of the sheet from images `[class, drawing, 28, 28]`, as a picture `[height, width]`."""
    chosen = random.choose(random.key(1), len(images) - COLUMNS, ALPHABET_ROWS + CHARACTER_ROWS)
    rows = torch.cat([alphabet_rows(images, chosen[:ALPHABET_ROWS]), images[chosen[ALPHABET_ROWS:], :COLUMNS]])
    framed = torch.nn.functional.pad(rows, (0, 1, 0, 1), value=60)
    return framed.permute(0, 2, 1, 3).reshape(framed.shape[0] * framed.shape[2], -1)


def main(path: str, root: str, glyph_seed: int = 0) -> None:
    """Writes the sheet to `path`."""
    omniglot = Omniglot(root=root, rotations=False, download=False)
    real = torch.cat([omniglot.images[split] for split in omniglot.splits]).squeeze(2)
    drawn = draw_world(glyph_seed, 50, 30, 20).flatten(0, 1)
    picture = 255 - torch.cat([sheet(real), sheet(real)[:, :4] * 0 + 128, sheet(drawn)], dim=1)
    image = Image.fromarray(picture.numpy())
    image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
