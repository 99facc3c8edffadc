"""Small parameters laid end to end, so that one operation does for all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.optim.hypers import Now, Value, check_shape
from metalearn.optim.numerics import as_real
from metalearn.types import Tensors

JOINED_ENTRIES = 1 << 14
"""Parameters of at most so many entries are joined; above, an operation takes longer than starting it."""

JOINED_TENSORS = 3
"""So many parameters there have to be: to join and to part takes a few operations too."""


@dataclass(frozen=True)
class Piece:
    """Parameters that go through a rule together: one as it is, or several small ones laid end to end."""

    names: list[str]
    like: list[Tensor]
    joined: bool

    def of(self, named: Tensors) -> Tensor:
        """The piece's part of a dict, as one tensor."""
        tensors = [named[name] for name in self.names]
        if self._is_complex:
            tensors = [torch.view_as_real(tensor) for tensor in tensors]
        if not self.joined:
            return tensors[0]
        return torch.cat([tensor if tensor.dim() == 1 else tensor.reshape(-1) for tensor in tensors])

    def parts(self, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """The way back: the parameters' names and what is theirs of the tensor."""
        parts: Sequence[Tensor] = [tensor]
        if self.joined:
            likes = [torch.view_as_real(like) for like in self.like] if self._is_complex else self.like
            # One node of the graph for all: the backward of separate views would fill the whole vector for each.
            flat = tensor.split_with_sizes([like.numel() for like in likes])
            parts = [part if like.dim() == 1 else part.view(like.shape) for part, like in zip(flat, likes, strict=True)]
        if self._is_complex:
            parts = [torch.view_as_complex(part) for part in parts]
        return zip(self.names, parts, strict=True)

    def value(self, now: Now, hyper: str) -> Value:
        """A hyper-parameter's value for the piece: one number, or a tensor with one an entry."""
        if not self.joined or not now.has_names(hyper):
            return _checked(hyper, now.of(hyper, self.names[0]), self.names[0], self.like[0])
        values = [
            _checked(hyper, now.of(hyper, name), name, like) for name, like in zip(self.names, self.like, strict=True)
        ]
        return torch.cat([_spread(value, like) for value, like in zip(values, self.like, strict=True)])

    @property
    def _is_complex(self) -> bool:
        return self.like[0].is_complex()


def pieces(params: Tensors, *, joined: bool) -> list[Piece]:
    """The parameters in the pieces they go in: small ones of a dtype and device together where they may be `joined`."""
    joined = joined and len(params) >= JOINED_TENSORS
    alone: list[Piece] = []
    together: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, param in params.items():
        if joined and param.numel() <= JOINED_ENTRIES:
            together.setdefault((param.dtype, param.device), []).append(name)
        else:
            alone.append(Piece([name], [param], joined=False))
    return [*(Piece(names, [params[name] for name in names], joined=True) for names in together.values()), *alone]


def _spread(value: Value, like: Tensor) -> Tensor:
    real = as_real(like)
    if not isinstance(value, Tensor):
        return torch.full((real.numel(),), value, dtype=real.dtype, device=real.device)
    return value.expand(real.shape).reshape(-1)


def _checked(hyper: str, value: Value, of: str, like: Tensor) -> Value:
    if isinstance(value, Tensor):
        check_shape(hyper, value, of, like)
    return fitting(value, like)


def fitting(value: Value, like: Tensor) -> Value:
    """A value an entry of a complex parameter is one for both its parts."""
    is_an_entry = isinstance(value, Tensor) and value.dim() > 0
    return value[..., None] if like.is_complex() and is_an_entry else value  # type: ignore[index]
