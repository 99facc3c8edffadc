"""Characters as ink: drawers who vary them, and images in which a stroke is a thin grey-edged line."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from metalearn import random
from metalearn.tasks.glyphs.strokes import NUM_STROKES, Programs

SIDE = 28  # of an image, in pixels
_SLIP = 0.5  # how far an attached stroke misses its place, as a part of how far a free one does
_NUM_MODES = 5  # of a stroke's wobble: it is displaced by a sum of cosines along its length
_WIDTH = 0.57  # of the pen: the standard deviation of its profile, in pixels
_PRESSURE = 1.05  # how black the middle of a straight line would be, if 1 were not the blackest
_CHUNK = 512  # images drawn at a time: what they need stays in the processor's cache


def draw(keys: Tensor, programs: Programs, num_drawings: int) -> Tensor:
    """Every character drawn once by each of its alphabet's drawers.

    Args:
        keys: a key an alphabet, `[alphabet]`.
        programs: the characters, `[alphabet, character, ...]`.
        num_drawings: how many drawers an alphabet has.

    Returns:
        uint8 `[alphabet, character, drawing, SIDE, SIDE]`, ink 255.
    """
    lines = _wobble(random.fold_in(keys, 0), programs, num_drawings)
    lines = _transform(random.fold_in(keys, 1), lines)
    drawer = random.normal(random.fold_in(keys, 2), (1, num_drawings), dtype=torch.float64)
    width = (_WIDTH * (0.06 * drawer).exp()).expand(lines.shape[:3])
    spacing = _spacing(lines, programs.stroke[:, :, None])
    images = ink(lines.flatten(0, 2), spacing.flatten(0, 2), width.flatten())
    return images.reshape(*lines.shape[:3], SIDE, SIDE)


def pictures(programs: Programs, width: float) -> Tensor:
    """The characters as their programs say, without a drawer: uint8 `[alphabet, character, SIDE, SIDE]`."""
    lines = programs.points.flatten(0, 1) + SIDE / 2
    spacing = _spacing(lines, programs.stroke.flatten(0, 1))
    images = ink(lines, spacing, torch.full_like(spacing[:, 0], width))
    return images.reshape(*programs.points.shape[:2], SIDE, SIDE)


def ink(lines: Tensor, spacing: Tensor, width: Tensor) -> Tensor:
    r"""Images of lines drawn with a round soft pen.

    The pen is a Gaussian, so the ink at a pixel is a sum over the line's points of a function of x times a function of
    y, $\sum_k a(x - x_k)\, a(y - y_k)$: a product of two thin matrices an image, and not a distance for each pixel and
    segment.

    Args:
        lines: points of the lines in pixels, `[image, point, 2]`.
        spacing: the length of line that each point stands for, in pixels, `[image, point]`; where it is more than twice
            `width`, the line shows its points.
        width: the pen's standard deviation in pixels, `[image]`.

    Returns:
        uint8 `[image, SIDE, SIDE]`, ink 255.
    """
    out = torch.empty(len(lines), SIDE, SIDE, dtype=torch.uint8)
    centres = torch.arange(SIDE, dtype=lines.dtype)[:, None] + 0.5
    for start in range(0, len(lines), _CHUNK):
        part = slice(start, start + _CHUNK)
        deviation = width[part, None, None]
        columns, rows = (
            ((centres - lines[part, None, :, axis]) / deviation).square().mul_(-0.5).exp_() for axis in range(2)
        )
        # Along a straight line the sum is then 1 in the middle; a pen that presses harder has a flat, black middle.
        rows *= (_PRESSURE / math.sqrt(2 * math.pi)) * spacing[part, None] / deviation
        out[part] = (rows @ columns.transpose(1, 2)).clamp_(max=1).mul_(255).round_().to(torch.uint8)
    return out


def _spacing(lines: Tensor, stroke: Tensor) -> Tensor:
    """The length of line at each point: the mean distance to its neighbours on the same stroke."""
    step = lines.diff(dim=-2).square().sum(-1).sqrt()
    step = step * (stroke[..., 1:] == stroke[..., :-1])
    none = torch.zeros_like(step[..., :1])
    both = torch.stack([torch.cat([none, step], -1), torch.cat([step, none], -1)])
    return both.sum(0) / (both > 0).sum(0).clamp(min=1)


def _wobble(keys: Tensor, programs: Programs, num_drawings: int) -> Tensor:
    """The lines as drawers place and bend their strokes, `[alphabet, character, drawing, point, 2]`."""
    num_alphabets, num_characters = programs.points.shape[:2]
    shape = (num_characters, num_drawings, NUM_STROKES, _NUM_MODES, 2)
    sloppiness = (0.35 * random.normal(random.fold_in(keys, 0), (1, num_drawings, 1, 1, 1), dtype=torch.float64)).exp()
    weights = random.normal(random.fold_in(keys, 1), shape, dtype=torch.float64) * sloppiness
    size = (0.25 + 0.02 * programs.lengths)[:, :, None, :, None, None]
    falloff = torch.tensor([1.0, 1.0, 0.6, 0.35, 0.2], dtype=torch.float64)[:, None]
    weights = _follow(weights * size * falloff, programs)
    here = functional.one_hot(programs.stroke, NUM_STROKES).to(torch.float64)
    basis = (here[..., None] * _cosines(programs.position)[..., None, :]).flatten(-2)
    bends = basis @ weights.permute(0, 1, 3, 4, 2, 5).flatten(-2).flatten(2, 3)
    bends = bends.reshape(num_alphabets, num_characters, -1, num_drawings, 2).transpose(2, 3)
    return programs.points[:, :, None] + bends


def _follow(weights: Tensor, programs: Programs) -> Tensor:
    """The weights of the modes, with every attached stroke moved to where its parent was drawn, up to a slip."""
    strokes = [weights[..., 0, :, :]]
    for index in range(1, NUM_STROKES):
        former = torch.stack(strokes, -3)
        parent = programs.parent[..., index][..., None, None, None, None].expand(
            *former.shape[:3], 1, *former.shape[-2:]
        )
        own = weights[..., index, :, :]
        there = _displacement(former.gather(-3, parent).squeeze(-3), programs.parent_position[..., index])
        here = _displacement(own, programs.own_position[..., index])
        move = programs.attached[..., index, None, None] * (there - here) + _SLIP * own[..., 0, :]
        strokes.append(torch.cat([own[..., :1, :] + move[..., None, :], own[..., 1:, :]], -2))
    return torch.stack(strokes, -3)


def _displacement(weights: Tensor, position: Tensor) -> Tensor:
    """Where modes `[alphabet, character, drawing, mode, 2]` move the point at `position` `[alphabet, character]`."""
    return (weights * _cosines(position)[:, :, None, :, None]).sum(-2)


def _cosines(position: Tensor) -> Tensor:
    return (math.pi * position[..., None] * torch.arange(_NUM_MODES, dtype=position.dtype)).cos()


def _transform(keys: Tensor, lines: Tensor) -> Tensor:
    """Lines slanted, turned, scaled and moved, by a drawer's habit and anew in each drawing, inside the image."""
    shape = (lines.shape[1], lines.shape[2], 6)
    habit = random.normal(random.fold_in(keys, 0), (1, *shape[1:]), dtype=torch.float64)
    chance = random.normal(random.fold_in(keys, 1), shape, dtype=torch.float64)
    spread = torch.tensor([0.08, 0.04, 0.09, 0.05, 1.0, 1.0], dtype=torch.float64)
    again = torch.tensor([0.05, 0.05, 0.07, 0.06, 1.3, 1.3], dtype=torch.float64)
    slant, turn, scale, aspect, right, down = (habit * spread + chance * again).unbind(-1)
    # Screen coordinates: y goes down, so writing that leans to the right has x fall with y.
    x, y = lines[..., 0] - (slant + 0.05)[..., None] * lines[..., 1], lines[..., 1]
    x, y = x * (scale + aspect).exp()[..., None], y * (scale - aspect).exp()[..., None]
    cos, sin = turn.cos()[..., None], turn.sin()[..., None]
    lines = torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
    return _inside(lines, torch.stack([right, down], -1))


def _inside(lines: Tensor, move: Tensor) -> Tensor:
    """Lines about (0, 0) moved to the image's middle and by `move`, shrunk and stopped where they would leave it."""
    margin = 1.5
    room = SIDE - 2 * margin
    extent = (lines.amax(-2) - lines.amin(-2)).amax(-1)
    lines = lines * (room / extent).clamp(max=1)[..., None, None]
    low, high = lines.amin(-2), lines.amax(-2)
    middle = torch.maximum(torch.minimum(move + SIDE / 2, SIDE - margin - high), margin - low)
    return lines + middle[..., None, :]
