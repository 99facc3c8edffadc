"""From invented characters to alphabets that people could use: legible ones, no two of them alike."""

import torch
from torch import Tensor

from metalearn import random
from metalearn.tasks.glyphs.drawing import pictures
from metalearn.tasks.glyphs.strokes import Programs, draw_programs, draw_styles

_LINE = 56.0  # the usual length of a character's line, in pixels


def draw_alphabets(keys: Tensor, num_characters: int) -> Programs:
    """An alphabet a key, each of `num_characters` characters.

    Three times as many are invented. Those of a usual length of line that does not run over itself are kept,
    and of the two that look most alike, turned as they may be, one is given up until the number is right.

    Args:
        keys: a key an alphabet, `[alphabet]`.
        num_characters: how many to keep.

    Returns:
        Programs `[alphabet, num_characters, ...]`.
    """
    styles = draw_styles(random.fold_in(keys, 0))
    candidates = draw_programs(random.fold_in(keys, 1), styles, 3 * num_characters)
    legible = candidates.take(_illegibility(candidates).argsort(dim=-1, stable=True)[:, : num_characters * 3 // 2])
    return legible.take(_most_different(appearance_distances(legible), num_characters))


def appearance_distances(programs: Programs) -> Tensor:
    """How unlike the characters of an alphabet look, `[alphabet, character, character]`.

    0 for the same blurred picture and sqrt(2) for pictures without a common pixel; the least over quarter turns,
    because a turned character is a class too.
    """
    blurred = pictures(programs, width=1.2).to(torch.float64)
    unit = blurred / blurred.flatten(2).norm(dim=-1)[..., None, None]
    similar = [unit.flatten(2) @ torch.rot90(unit, turn, (-2, -1)).flatten(2).transpose(1, 2) for turn in range(4)]
    likeness = torch.stack([torch.maximum(one, one.transpose(1, 2)) for one in similar]).amax(0)
    return (2 - 2 * likeness).clamp(min=0).sqrt()


def _illegibility(programs: Programs) -> Tensor:
    """Larger for lines that are too short, too long, or run over themselves, `[alphabet, character]`."""
    length = programs.lengths.sum(-1)
    seen = pictures(programs, width=0.5).sum((-2, -1), dtype=torch.float64) / 255
    return (length / _LINE).log().abs() / 0.5 + (length / seen).log() / 0.2


def _most_different(distances: Tensor, count: int) -> Tensor:
    """The indices of `count` characters, `[alphabet, count]`: the second of the closest pair goes, again and again."""
    total = distances.shape[-1]
    alphabets = torch.arange(len(distances))
    distances = distances + torch.diag(torch.full((total,), torch.inf, dtype=distances.dtype))
    gone = torch.zeros(distances.shape[:2], dtype=torch.int64)
    for _ in range(total - count):
        closest = distances.flatten(1).argmin(dim=-1)
        loser = torch.maximum(closest // total, closest % total)
        gone[alphabets, loser] = 1
        distances[alphabets, loser] = torch.inf
        distances[alphabets, :, loser] = torch.inf
    return gone.argsort(dim=-1, stable=True)[:, :count]
