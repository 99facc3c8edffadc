"""Invented scripts: alphabets with a style, and their characters as programs of pen strokes.

A stroke is a chain of arcs out of its alphabet's own small library; a later stroke starts or crosses at a point of a
former one, or stands free. This is the structure of the generative model of Omniglot, "Bayesian program learning"
(Lake, Salakhutdinov and Tenenbaum, 2015, doi:10.1126/science.aab3050), with invented numbers in place of fitted ones.

Lengths are pixels of a 28 x 28 image, angles radians; x goes to the right and y goes down.
"""

import itertools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from metalearn import random

NUM_STROKES = 4
NUM_ARCS = 3  # at most, in a stroke
NUM_PRIMITIVES = 10  # the arcs that an alphabet knows
NUM_POINTS = 112  # of a character; a long one has 90 pixels of line, so they lie less than a pixel apart
_STEPS = 16  # straight pieces of an arc


@dataclass(frozen=True)
class Styles:
    """What makes an alphabet look like itself: one entry an alphabet, `[alphabet, ...]`."""

    stroke_odds: Tensor  # [alphabet, stroke]: of 1, 2 … strokes
    arc_odds: Tensor  # [alphabet, arc]: of 1, 2 … arcs in a stroke
    turns: Tensor  # [alphabet, primitive]: how far an arc turns from its start to its end
    lengths: Tensor  # [alphabet, primitive]
    corner_chance: Tensor  # of a corner between two arcs
    corner: Tensor  # the usual one
    direction: Tensor  # the usual one, in which a stroke sets out
    direction_spread: Tensor
    grid: Tensor  # 0 … 1: how much directions snap to multiples of a cell
    cell: Tensor  # an eighth or a quarter of a turn
    attached_chance: Tensor  # of a stroke that touches a former one
    dot_chance: Tensor
    size: Tensor  # of a character


@dataclass(frozen=True)
class Programs:
    """Characters as strokes: all tensors `[alphabet, character, ...]`.

    Attributes:
        points: points of the line, evenly spaced over all strokes, centred on (0, 0), `[..., point, 2]`.
        stroke: the stroke that each point belongs to, int64 `[..., point]`.
        position: how far along its stroke each point lies, 0 … 1, `[..., point]`.
        lengths: `[..., stroke]`, 0 for a stroke that the character does not have.
        parent: the former stroke that a stroke touches, int64 `[..., stroke]`.
        parent_position: where on the parent it touches, 0 … 1, `[..., stroke]`.
        own_position: where on itself, 0 … 1, `[..., stroke]`.
        attached: 1.0 for a stroke that touches its parent, 0.0 for one that stands free, `[..., stroke]`.
    """

    points: Tensor
    stroke: Tensor
    position: Tensor
    lengths: Tensor
    parent: Tensor
    parent_position: Tensor
    own_position: Tensor
    attached: Tensor

    def take(self, characters: Tensor) -> "Programs":
        """The programs of some characters, `[alphabet, character]`, in that order."""
        rows = torch.arange(len(characters), device=characters.device)[:, None]
        return Programs(**{field.name: getattr(self, field.name)[rows, characters] for field in fields(self)})


class _Draws:
    """Random numbers, one tensor a call: each is a function of the alphabets' keys and of the number of the call."""

    def __init__(self, keys: Tensor) -> None:
        self._keys = keys
        self._numbers = itertools.count()

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * random.uniform(self._next(), shape, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return random.normal(self._next(), shape, dtype=torch.float64)

    def sign(self, *shape: int) -> Tensor:
        return torch.where(self.uniform(*shape) < 0.5, -1.0, 1.0).to(torch.float64)

    def _next(self) -> Tensor:
        return random.fold_in(self._keys, next(self._numbers))


def draw_styles(keys: Tensor) -> Styles:
    """A style an alphabet, from its key `[alphabet]`."""
    draws = _Draws(keys)
    straight = draws.uniform(NUM_PRIMITIVES) < draws.uniform(1, low=0.2, high=0.75)
    ring = draws.uniform(NUM_PRIMITIVES) < draws.uniform(1, low=0.0, high=0.2)
    curved = draws.normal(NUM_PRIMITIVES) * draws.uniform(1, low=0.7, high=2.4)
    turns = torch.where(ring, 1.9 * math.pi * draws.sign(NUM_PRIMITIVES), torch.where(straight, 0.04 * curved, curved))
    spread = draws.uniform(1, low=0.2, high=0.6)
    lengths = (spread * draws.normal(NUM_PRIMITIVES)).exp() * (1 + turns.abs() / 4)
    return Styles(
        stroke_odds=_odds(draws.normal(NUM_STROKES), [0.2, 0.9, 0.7, 0.0]),
        arc_odds=_odds(draws.normal(NUM_ARCS), [0.9, 0.6, 0.0]),
        turns=turns,
        lengths=lengths,
        corner_chance=draws.uniform(low=0.3, high=0.9),
        corner=draws.uniform(low=1.1, high=2.5),
        direction=draws.uniform(low=0.0, high=math.pi / 2),
        direction_spread=draws.uniform(low=0.6, high=1.6),
        grid=draws.uniform(low=0.4, high=1.0),
        cell=math.pi / 2 / (1 + (draws.uniform() < 0.4).to(torch.float64)),
        attached_chance=draws.uniform(low=0.6, high=0.95),
        dot_chance=draws.uniform(low=0.0, high=0.2),
        size=draws.uniform(low=13.0, high=17.0),
    )


def draw_programs(keys: Tensor, styles: Styles, num_characters: int) -> Programs:
    """`num_characters` characters in each style, from a key an alphabet, `[alphabet]`."""
    draws = _Draws(keys)
    strokes, steps = _strokes(draws, styles, num_characters)
    shape = (num_characters, NUM_STROKES)
    parent = (draws.uniform(*shape) * torch.arange(NUM_STROKES)).floor().to(torch.int64)
    attached = (draws.uniform(*shape) < _by_character(styles.attached_chance)).to(torch.float64)
    parent_position = _position(draws, shape, [0.3, 0.55])
    own_position = _position(draws, shape, [0.6, 0.7])
    free = draws.normal(*shape, 2)
    strokes = _place(strokes, parent, parent_position, own_position, attached, free)
    strokes = _fit(strokes, steps, _by_character(styles.size, 1) * (0.12 * draws.normal(num_characters)).exp())
    steps = strokes.diff(dim=-2).square().sum(-1).sqrt() * (steps > 0)
    points, stroke, position = _resample(strokes, steps)
    lengths = steps.sum(-1)
    return Programs(points, stroke, position, lengths, parent, parent_position, own_position, attached)


def _strokes(draws: _Draws, styles: Styles, num_characters: int) -> tuple[Tensor, Tensor]:
    """Strokes from (0, 0), `[..., stroke, step + 1, 2]`, and the lengths of their steps, `[..., stroke, step]`."""
    shape = (num_characters, NUM_STROKES, NUM_ARCS)
    has_stroke = _up_to(draws.uniform(num_characters), styles.stroke_odds[:, None])
    has_arc = _up_to(draws.uniform(*shape[:2]), styles.arc_odds[:, None, None]) & has_stroke[..., None]
    primitive = (draws.uniform(*shape) * NUM_PRIMITIVES).to(torch.int64)
    turns = styles.turns.gather(1, primitive.flatten(1)).reshape(primitive.shape)
    lengths = styles.lengths.gather(1, primitive.flatten(1)).reshape(primitive.shape)
    lengths = lengths * has_arc * (0.2 * draws.normal(*shape)).exp()
    turns = turns + 0.08 * draws.normal(*shape)
    dot = (draws.uniform(*shape[:2]) < _by_character(styles.dot_chance)) & (torch.arange(NUM_STROKES) > 0)
    lengths = lengths * (1 - 0.88 * dot.to(torch.float64))[..., None]

    start = _by_character(styles.direction) + _by_character(styles.direction_spread) * draws.normal(*shape[:2])
    start = _snap(start, _by_character(styles.grid), _by_character(styles.cell))
    corner = draws.sign(*shape) * (_by_character(styles.corner, 3) + 0.3 * draws.normal(*shape))
    corner = _snap(corner, _by_character(styles.grid, 3), _by_character(styles.cell, 3))
    corner = corner * (draws.uniform(*shape) < _by_character(styles.corner_chance, 3))
    corner[..., 0] = start
    return _turtle(turns, lengths, corner)


def _turtle(turns: Tensor, lengths: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Arcs one after the other, each after its corner, as polygons from (0, 0), and the lengths of their steps."""
    turning = (turns / _STEPS)[..., None].repeat(1, 1, 1, 1, _STEPS)
    # The polygon of a circle's arc sets out by half a step's turn.
    former = functional.pad(turns[..., :-1], (1, 0))
    turning[..., 0] = corner + (turns + former) / (2 * _STEPS)
    heading = turning.flatten(-2).cumsum(-1)
    steps = (lengths / _STEPS)[..., None].expand(turning.shape).flatten(-2)
    moves = steps[..., None] * torch.stack([heading.cos(), heading.sin()], -1)
    return _polyline(moves), steps


def _place(
    strokes: Tensor, parent: Tensor, parent_position: Tensor, own_position: Tensor, attached: Tensor, free: Tensor
) -> Tensor:
    """`strokes`, each moved to touch its parent; a free one lies about the first stroke's middle, off by `free`."""
    last = strokes.shape[-2] - 1
    # Arcs that a stroke lacks have no length, and they are the last ones: a position counts points, not lengths.
    own = _at(strokes, (own_position * last).round().to(torch.int64))
    placed = [strokes[..., 0, :, :]]
    for index in range(1, NUM_STROKES):
        former = torch.stack(placed, -3)
        chosen = former.gather(-3, _index(parent[..., index], former)).squeeze(-3)
        touch = _at(chosen, (parent_position[..., index] * last).round().to(torch.int64))
        alone = placed[0].mean(-2) + free[..., index, :]
        target = torch.where(attached[..., index, None] > 0, touch, alone)
        placed.append(strokes[..., index, :, :] + (target - own[..., index, :])[..., None, :])
    return torch.stack(placed, -3)


def _fit(strokes: Tensor, steps: Tensor, size: Tensor) -> Tensor:
    """Characters centred on (0, 0), their larger side `size`; flat and narrow ones are made a little squarer."""
    there = (steps.sum(-1) > 0)[..., None, None]
    low = strokes.masked_fill(~there, math.inf).amin((-3, -2))
    high = strokes.masked_fill(~there, -math.inf).amax((-3, -2))
    extent = high - low
    larger = extent.amax(-1, keepdim=True)
    scale = size[..., None] / larger * (larger / extent).clamp(max=3).pow(0.4)
    return (strokes - ((low + high) / 2)[..., None, None, :]) * scale[..., None, None, :]


def _resample(strokes: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Evenly spaced points over all strokes, the stroke of each, and how far along it each lies."""
    reach = steps.flatten(-2).cumsum(-1)
    wanted = (torch.arange(NUM_POINTS, dtype=torch.float64) + 0.5) / NUM_POINTS * reach[..., -1:]
    piece = torch.searchsorted(reach, wanted).clamp(max=reach.shape[-1] - 1)
    length = steps.flatten(-2).gather(-1, piece)
    part = ((wanted - reach.gather(-1, piece)) / length + 1)[..., None]
    starts, stops = strokes[..., :-1, :].flatten(-3, -2), strokes[..., 1:, :].flatten(-3, -2)
    rows = piece[..., None].expand(*piece.shape, 2)
    points = starts.gather(-2, rows) * (1 - part) + stops.gather(-2, rows) * part
    stroke = piece // steps.shape[-1]
    total = steps.sum(-1)
    before = (total.cumsum(-1) - total).gather(-1, stroke)
    return points, stroke, (wanted - before) / total.gather(-1, stroke)


def _position(draws: _Draws, shape: tuple[int, int], limits: list[float]) -> Tensor:
    """0 (the start) below the first limit of a uniform draw, 1 (the end) below the second, else somewhere between."""
    kind = draws.uniform(*shape)
    between = draws.uniform(*shape, low=0.2, high=0.8)
    return torch.where(kind < limits[0], 0.0, torch.where(kind < limits[1], 1.0, between))


def _odds(logits: Tensor, bias: list[float]) -> Tensor:
    return (0.8 * logits + torch.tensor(bias, dtype=logits.dtype)).softmax(-1)


def _up_to(uniform: Tensor, odds: Tensor) -> Tensor:
    """Which of 1, 2 … things are there: the first always, the next ones by the odds of how many there are."""
    fewer = odds.cumsum(-1) - odds
    return uniform[..., None] >= fewer


def _snap(angle: Tensor, strength: Tensor, cell: Tensor) -> Tensor:
    return angle + strength * ((angle / cell).round() * cell - angle)


def _polyline(moves: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(moves[..., :1, :]), moves.cumsum(-2)], -2)


def _by_character(style: Tensor, axes: int = 2) -> Tensor:
    return style.reshape(-1, *[1] * axes)


def _index(index: Tensor, of: Tensor) -> Tensor:
    return index[..., None, None, None].expand(*index.shape, 1, *of.shape[-2:])


def _at(polyline: Tensor, index: Tensor) -> Tensor:
    """The points `index` of polylines `[..., point, 2]`."""
    return polyline.gather(-2, index[..., None, None].expand(*index.shape, 1, 2)).squeeze(-2)
