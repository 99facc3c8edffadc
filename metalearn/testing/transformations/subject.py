"""A transformation on trial: what it is made of, the small problem that it is tried on, and the words for a fault."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metalearn import random, tree
from metalearn.errors import UsageError
from metalearn.optim import GradientTransformation, chain, scale_by_learning_rate
from metalearn.types import Tensors

PART_RATE = 0.1
"""The rate that a part of an optimizer is chained with, so that it moves parameters."""


@dataclass(frozen=True)
class Subject:
    """The transformation, with everything that it depends on as an argument.

    Attributes:
        make: from hyper-parameters by name to the transformation.
        hypers: their values.
        params: where the inner loop starts.
        is_whole: whether it moves the parameters downhill by itself.
        seed: of the data, the gradients and the directions.
    """

    make: Callable[[Tensors], GradientTransformation]
    hypers: Tensors
    params: Tensors
    is_whole: bool
    seed: int

    def alone(self, hypers: Tensors | None = None) -> GradientTransformation:
        """The transformation as its author wrote it, made anew."""
        made = self.make(dict(self.hypers if hypers is None else hypers))
        if not isinstance(made, GradientTransformation):
            raise UsageError(
                f"make returned {type(made).__name__}, but has to return a GradientTransformation(init, update): "
                "`make` is a function from a dict of hyper-parameters, or the transformation itself."
            )
        return made

    def optimizer(self, hypers: Tensors | None = None) -> GradientTransformation:
        """What the inner loop takes: a part is followed by a rate."""
        made = self.alone(hypers)
        return made if self.is_whole else chain(made, scale_by_learning_rate(PART_RATE))

    def key(self, *tags: int) -> Tensor:
        """A random key on the parameters' device."""
        key = random.key(self.seed, device=next(iter(self.params.values())).device)
        for tag in tags:
            key = random.fold_in(key, tag)
        return key

    def draw(self, like: Tensors, *tags: int) -> Tensors:
        """Standard normal values of these names and shapes; other tags draw other values."""
        key = self.key(*tags)
        return {
            name: random.normal(random.fold_in(key, index), value.shape, dtype=value.dtype)
            for index, (name, value) in enumerate(like.items())
        }

    def cast(self, dtype: torch.dtype) -> "Subject":
        """The same in another precision."""
        return replace(self, hypers=tree.cast(self.hypers, dtype), params=tree.cast(self.params, dtype))


def paths(nest: Any, name: str) -> dict[str, Any]:
    """The leaves of a nest by the Python that reads each of them: `state[0].mean['w']`."""
    return {name + pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path(nest)[0]}


def unequal(got: Any, expected: Any, name: str, *, tolerance: float) -> str | None:
    """The first leaf that differs by more than `tolerance`, relative to its largest value or to 1."""
    for (path, ours), theirs in zip(paths(got, name).items(), tree.tensors(expected), strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return f"{path} is {_kind(ours)} and not {_kind(theirs)}"
        if not ours.numel():
            continue
        a, b = ours.double(), theirs.double()
        error = ((a - b).abs().max() / b.abs().max().clamp_min(1.0)).item()
        if not (error <= tolerance or torch.equal(a, b)):
            return f"{path} differs by {error:.1e}"
    return None


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def kind(value: Any) -> str:
    """What a leaf is, in few words: `float32[2, 3] on cpu`, or its type."""
    return f"{_kind(value)} on {value.device}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@contextmanager
def told(what: str, cause: str) -> Iterator[None]:
    """Says what was tried, and the likely cause, where the transformation raises on it."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0][:200]
        raise AssertionError(f"{what} raised {type(error).__name__}: {first} Likely cause: {cause}") from error


Data = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def regression(subject: Subject, tag: int = 0) -> Data:
    """The inner and the outer loop's `(inputs [8, size], targets [8])`; the size is that of all parameters together."""
    size = sum(value.numel() for value in subject.params.values())
    example = next(iter(subject.params.values()))
    like = {"x": example.new_empty(8, size), "y": example.new_empty(8)}
    inner, outer = (subject.draw(like, 1, tag, part) for part in range(2))
    scale = 1.5 / max(size, 1) ** 0.5  # inputs of this size leave tanh where it is neither linear nor flat
    return (scale * inner["x"], inner["y"]), (scale * outer["x"], outer["y"])


def loss_of(params: Tensors, buffers: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A smooth loss in which every parameter meets every other one, and whose gradient is bounded."""
    x, y = batch
    return (torch.tanh(x @ tree.to_vector(params)) - y).square().mean()


def walk(optimizer: GradientTransformation, subject: Subject, params: Tensors, count: int) -> tuple[Any, Any]:
    """The state after so many updates at the same parameters, and the last updates with it."""
    state, result = optimizer.init(params), None
    for step in range(count):
        updates, state = optimizer.update(subject.draw(params, 4, step), state, params)
        result = (updates, state)
    return state, result


def after_steps(subject: Subject, optimizer: GradientTransformation, count: int) -> Any:
    """The state after so many steps."""
    return walk(optimizer, subject, subject.params, count)[0]
