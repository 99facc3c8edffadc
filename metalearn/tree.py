"""Small operations on dicts of tensors, and on nests of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # the module that torch.func itself is built on

from metalearn.errors import UsageError
from metalearn.types import Tensors

T = TypeVar("T")


def map_tensors(function: Callable[[Tensor], Tensor], nest: T) -> T:
    """`nest` with `function` applied to every tensor; anything else in it stays."""
    mapped: T = pytree.tree_map_only(Tensor, function, nest)
    return mapped


def flatten(nest: Any) -> tuple[list[Any], Any]:
    """The leaves of a nest, tensors and others, and what `unflatten` needs to put leaves back."""
    return pytree.tree_flatten(nest)


def unflatten(leaves: Iterable[Any], structure: Any) -> Any:
    """The nest of that structure with these leaves."""
    return pytree.tree_unflatten(leaves, structure)


def tensors(nest: Any) -> list[Tensor]:
    """The tensors of a nest, in order."""
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]


def opened(nest: T) -> tuple[list[Tensor], Callable[[Iterable[Tensor]], T]]:
    """The tensors of a nest, and the function from others to the same nest with those in their places.

    For transforms of torch.func, which let tensors through alone.
    """
    leaves, structure = flatten(nest)

    def closed(tensors: Iterable[Tensor]) -> T:
        given = iter(tensors)
        filled: T = unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
        return filled

    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], closed


def detach(nest: T) -> T:
    """`nest` with every tensor cut from its history."""
    return map_tensors(Tensor.detach, nest)


def cast(nest: T, dtype: torch.dtype) -> T:
    """`nest` with every floating-point tensor in `dtype`; integers and booleans stay."""
    return map_tensors(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, nest)


def to(nest: T, device: torch.device | str) -> T:
    """`nest` with every tensor on `device`."""
    return map_tensors(lambda leaf: leaf.to(device), nest)


def select(named: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The entries whose name starts with `prefix`, with the prefix cut off: `select(meta, "init.")`."""
    return {name[len(prefix) :]: value for name, value in named.items() if name.startswith(prefix)}


def prefixed(named: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The same entries with `prefix` before every name."""
    return {prefix + name: value for name, value in named.items()}


def vmapped(function: Callable[[Any], Any], nest: Any, *, chunk_size: int | None = None) -> Any:
    """`function` of every entry along the tensors' first axis at once, `chunk_size` of them at most.

    As `torch.vmap`, for nests that hold other things than tensors too: those go in, and come out, as they are.
    """
    leaves, structure = flatten(nest)
    axes = tuple(0 if isinstance(leaf, Tensor) else None for leaf in leaves)
    result_of: dict[str, Callable[[Iterable[Tensor]], Any]] = {}

    def one(*leaves: Any) -> tuple[Tensor, ...]:
        # vmap returns tensors only: what else a result holds (None, a name) is remembered beside them.
        tensors, result_of["closed"] = opened(function(unflatten(leaves, structure)))
        return tuple(tensors)

    batched = torch.vmap(one, in_dims=axes, chunk_size=chunk_size)(*leaves)
    return result_of["closed"](batched)


def entry(nest: T, index: int) -> T:
    """One entry along the first axis of every tensor: `entry(episodes, 0)` is the first task's episode."""
    return map_tensors(lambda leaf: leaf[index], nest)


def joined(parts: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Nests of one structure as one, each tensor by `torch.cat` or `torch.stack`; other leaves are the first's."""
    flat = [flatten(part) for part in parts]
    leaves = [
        join(list(leaves)) if isinstance(leaves[0], Tensor) else leaves[0]
        for leaves in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return unflatten(leaves, flat[0][1])


def chunks(nest: Any, size: int) -> Iterator[Any]:
    """A nest in pieces of at most `size` entries along its tensors' first axis."""
    for first in range(0, len(tensors(nest)[0]), size):
        yield map_tensors(lambda leaf, first=first: leaf[first : first + size], nest)  # type: ignore[misc]


def vector_as(vector: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """As `from_vector`, in the dtypes of `like` too."""
    return {name: part.to(like[name].dtype) for name, part in from_vector(vector, like).items()}


def norm(nest: Any) -> Tensor:
    """The Euclidean norm of all the tensors of a nest taken together."""
    return torch.stack([leaf.square().sum() for leaf in tensors(nest)]).sum().sqrt()


def to_vector(named: Mapping[str, Tensor], *, num_leading: int = 0) -> Tensor:
    """All entries flattened and joined in order, `[..., size]`; the first `num_leading` axes of each stay in front.

    Example:
        >>> to_vector({"w": torch.zeros(3, 2), "b": torch.ones(2)})
        tensor([0., 0., 0., 0., 0., 0., 1., 1.])
    """
    flat = [value.reshape((*value.shape[:num_leading], value.shape[num_leading:].numel())) for value in named.values()]
    return torch.cat(flat, dim=-1)


def from_vector(vector: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """The entries that `to_vector` made `vector` of, by the names and shapes of `like`; leading axes stay in front.

    Differentiable in the vector, so a network's output may be another one's parameters.

    Raises:
        UsageError: the vector's last axis is not as long as the entries of `like` together.

    Example:
        >>> from_vector(torch.arange(3.0), {"w": torch.zeros(1, 2), "b": torch.zeros(())})
        {'w': tensor([[0., 1.]]), 'b': tensor(2.)}
    """
    sizes = [value.numel() for value in like.values()]
    if vector.dim() == 0 or vector.shape[-1] != sum(sizes):
        raise UsageError(
            f"the vector has shape {list(vector.shape)}, but its last axis has to be {sum(sizes)} long for the "
            f"{len(sizes)} tensors it stands for."
        )
    parts = torch.split(vector, sizes, dim=-1)
    return {
        name: part.reshape((*vector.shape[:-1], *value.shape))
        for (name, value), part in zip(like.items(), parts, strict=True)
    }
