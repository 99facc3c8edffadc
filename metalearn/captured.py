"""Tensors that a loss uses without having been given them."""

import torch
from torch import Tensor

from metalearn.errors import UsageError


def refuse_captured(value: Tensor) -> None:
    """Raises UsageError if `value` depends on a tensor that requires grad and was not an argument.

    For use where every argument is without history: what still requires grad, below all the transforms of torch.func
    that the value is inside of, comes from elsewhere.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        value = functorch.get_unwrapped(value)
    if not value.requires_grad:
        return
    shapes = sorted(str(list(leaf.shape)) for leaf in _leaves(value))
    raise UsageError(
        f"a loss uses a tensor that requires grad but was not passed to it (shape {', '.join(shapes)}): its gradient "
        "would be silently dropped. Put it into `meta` and read it from there, or .detach() it."
    )


def _leaves(value: Tensor) -> list[Tensor]:
    pending, seen, leaves = [value.grad_fn], set(), []
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending.extend(parent for parent, _ in node.next_functions)
    return leaves
