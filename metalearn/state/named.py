"""Any nest of tensors as a plain dict by path names, and back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.state.fit import check_fit
from metalearn.types import Tensors

OPT_STATE = "opt_state"
"""What the names of an optimizer's state begin with, unless told otherwise."""

_PLAIN = (str, int, float, bool, type(None))


def named(nest: Any, *, prefix: str = OPT_STATE) -> Tensors:
    """The tensors of a nest by the path to each: dict keys, fields and positions joined by dots.

    Args:
        nest: dicts, lists, tuples and named tuples of tensors, such as an optimizer's state (ours, or the
            `state_dict()` of a `torch.optim` one). Numbers and texts in it have no place in the result: `from_named`
            takes them from its `like`.
        prefix: the first part of every name; `""` for none.

    Raises:
        UsageError: something in it is neither a nest nor a tensor nor plain data, or two paths have one name.

    Example:
        >>> import torch
        >>> from metalearn import optim
        >>> opt_state = optim.sgd(0.1, momentum=0.9).init({"head.weight": torch.ones(2)})
        >>> list(named(opt_state))
        ['opt_state.num_steps', 'opt_state.trace.head.weight']
    """
    result: Tensors = {}
    for path, leaf in pytree.tree_flatten_with_path(nest)[0]:
        name = _name(path, prefix)
        if not isinstance(leaf, Tensor):
            if isinstance(leaf, _PLAIN):
                continue
            raise UsageError(
                f"{name or 'the nest'!r} is of type {type(leaf).__name__}, in which tensors can not be found: expected "
                "dicts, lists, tuples and named tuples of tensors and plain data."
            )
        if not name:
            raise UsageError("a tensor alone has no name: give it in a dict, or give a prefix.")
        if name in result:
            raise UsageError(f"two tensors of the nest have the name {name!r}: a key holds a dot. Rename that key.")
        result[name] = leaf
    return result


def from_named(tensors: Mapping[str, Tensor], like: Any, *, prefix: str = OPT_STATE) -> Any:
    """The nest that `named` was given.

    Args:
        tensors: by the names that `named` gives, exactly those.
        like: a nest of the same structure and shapes, such as `optimizer.init(params)`; its tensors' dtypes and
            devices are taken, and what is no tensor in it.
        prefix: as it was given to `named`.

    Raises:
        UsageError: a name is missing, extra or misspelt, or a shape or kind of dtype differs.

    Example:
        >>> import torch
        >>> nest = {"mean": torch.ones(2), "steps": (3, torch.tensor(4))}
        >>> from_named(named(nest), like=nest)
        {'mean': tensor([1., 1.]), 'steps': (3, tensor(4))}
    """
    expected = named(like, prefix=prefix)
    check_fit(tensors, expected, what="the dict of named tensors", of="the nest `like`")
    leaves, structure = tree.flatten(like)
    names = iter(expected)
    return tree.unflatten(
        [_as(tensors[next(names)], leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
    )


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device, like.dtype)


def _name(path: tuple[Any, ...], prefix: str) -> str:
    parts = [_part(key) for key in path]
    return ".".join([prefix, *parts] if prefix else parts)


def _part(key: Any) -> str:
    if isinstance(key, pytree.SequenceKey):
        return str(key.idx)
    return str(key.name if isinstance(key, pytree.GetAttrKey) else getattr(key, "key", key))
