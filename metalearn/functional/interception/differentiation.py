"""Derivatives that forward takes itself: energies and their forces, gradient penalties, inner loops of a module's own.

torch.func has no `x.requires_grad_()`, and `torch.autograd.grad` finds no graph below vmap, or of parameters that need
none. A forward that asks for either runs once more, in a level of torch.func of its own, where both do what they do in
plain autograd.
"""

from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import _unwrap_for_grad, _wrap_for_grad
from torch._functorch.eager_transforms import enable_inplace_requires_grad, grad_increment_nesting

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional.interception.call import Call
from metalearn.types import Tensors


class LevelNeeded(Exception):  # noqa: N818 (no error: the call begins anew)
    """Forward takes a derivative, which needs a level of its own."""


Run = Callable[[Tensors, tuple[Any, ...], dict[str, Any]], tuple[Any, Tensors]]
"""From the state and the inputs of a call to its output and the state after it."""


def _in_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_own_level(
    run: Run, state: Mapping[str, Tensor], parameters: Container[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Tensors]:
    """What `run` gives in a level where the parameters require a gradient and inputs may; the results have left it."""
    # In this order: what is outside goes on without grad where it did.
    with grad_increment_nesting() as level, torch.enable_grad():
        given = {name: _wrapped(value, level) for name, value in state.items()}
        for name, value in given.items():
            if name in parameters and (value.is_floating_point() or value.is_complex()):
                _require(value)
        args, kwargs = tree.map_tensors(lambda leaf: _wrapped(leaf, level), (args, kwargs))
        output, after = run(given, args, kwargs)
        kept = {name: state[name] for name, value in after.items() if name in state and value is given[name]}
        output, after = tree.map_tensors(lambda leaf: _unwrap_for_grad(leaf, level), (output, after))
    return output, {**after, **kept}


def _wrapped(leaf: Tensor, level: int) -> Tensor:
    wrapped: Tensor = _wrap_for_grad(leaf, level) if leaf.is_floating_point() or leaf.is_complex() else leaf
    return wrapped


def _require(x: Tensor) -> Tensor:
    with enable_inplace_requires_grad(True):
        return x.requires_grad_()


def _requires_grad(call: Call, x: Tensor, requires_grad: bool = True) -> Tensor:
    if not _in_transform():
        return x.requires_grad_(requires_grad)
    if not requires_grad:
        raise UsageError("forward calls requires_grad_(False), which torch.func can not do: write x.detach() there.")
    if not call.differentiates:
        raise LevelNeeded
    return _require(x)


def _set_requires_grad(call: Call, x: Tensor, value: bool) -> None:
    _requires_grad(call, x, value)


def _grad(call: Call, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    # A module's parameters always require a gradient; those passed in may not, or in a transform alone.
    traced = not _in_transform() and all(each.requires_grad for each in tree.tensors((outputs, inputs)))
    if not traced and not call.differentiates:
        raise LevelNeeded
    slopes: tuple[Tensor, ...] = torch.autograd.grad(outputs, inputs, *args, **kwargs)
    return slopes


def _backward(call: Call, *args: Any, **kwargs: Any) -> None:
    raise UsageError(
        "forward calls .backward(), which adds to .grad, a state that nobody can hold outside. Take the gradient with "
        "torch.autograd.grad(loss, tensors, create_graph=True)."
    )


def _register_hook(call: Call, x: Tensor, hook: Callable[[Tensor], Any]) -> Any:
    if call.differentiates:
        # It would be a hook on the derivatives of that level, not on those that are taken of the module.
        raise UsageError(
            "forward registers a hook on a tensor and takes a derivative itself, which torch.func can not do together. "
            "Write the hook as a torch.autograd.Function with setup_context and generate_vmap_rule = True."
        )
    return x.register_hook(hook)  # type: ignore[no-untyped-call]


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    Tensor.requires_grad_: _requires_grad,
    Tensor.requires_grad.__set__: _set_requires_grad,  # type: ignore[attr-defined]
    torch.autograd.grad: _grad,
    Tensor.backward: _backward,
    torch.autograd.backward: _backward,
    Tensor.register_hook: _register_hook,
}
