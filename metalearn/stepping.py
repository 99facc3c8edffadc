"""A functional training loop: a pure gradient and a pure step that return new parameters and change none.

    state = start(model.params, model.buffers, optimizer)
    for batch in batches:
        state, seen = step(loss_fn, optimizer, state, batch)
        print(seen.loss)

To the bit it is the loop of `zero_grad`, `backward` and `step` on the same module with the `torch.optim` of that name.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from metalearn import tree
from metalearn.diagnosis import explained
from metalearn.errors import UsageError
from metalearn.inner import FreeLossFunction, InnerState, TraceStep, inner_step, refuse_shadowed, with_aux
from metalearn.optim import GradientTransformation
from metalearn.types import Batch, Tensors


def value_and_grad(
    loss_fn: FreeLossFunction, *, history: bool = False
) -> Callable[[Tensors, Tensors, Batch], tuple[Any, Tensors]]:
    """A pure function for the value of a loss and its gradient with respect to the parameters.

    Args:
        loss_fn: `(params, buffers, batch) -> loss`, `-> (loss, buffers)` or `-> (loss, Aux(buffers, metrics))`.
        history: keep what is needed to differentiate the result once more by plain autograd. Within a transform of
            `torch.func` it always is.

    Returns:
        `(params, buffers, batch) -> (value, grads)`: what `loss_fn` returned, and the gradient by the parameters'
        names, zero for a parameter that the loss does not use.

    Raises:
        UsageError: the loss is not a scalar, or a parameter is not a floating-point tensor.

    Example:
        >>> square = lambda params, buffers, target: (params["w"] - target).square().sum()
        >>> value_and_grad(square)({"w": torch.zeros(2)}, {}, torch.ones(2))
        (tensor(2.), {'w': tensor([-2., -2.])})
    """

    def run(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Any, Tensors]:
        for name, value in params.items():
            if not (value.is_floating_point() or value.is_complex()):
                raise UsageError(
                    f"params[{name!r}] is {value.dtype}, which has no gradient: pass it among the buffers."
                )
        with explained({**params, **buffers}):
            if history or _is_transformed():
                return _by_transform(loss_fn, params, buffers, batch)
            return _by_autograd(loss_fn, params, buffers, batch)

    return run


def _by_autograd(loss_fn: FreeLossFunction, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Any, Tensors]:
    # Not `torch.func`, which asks for a gradient that can be differentiated again: slower, and for some layers
    # (group norm, layer norm) another formula than that of `loss.backward()`, with other last bits.
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        value = loss_fn(leaves, buffers, batch)
        loss = _loss_in(value)
        used = leaves if loss.requires_grad else {}
        found = torch.autograd.grad(loss, [*used.values()], allow_unused=True) if used else ()
    grads = {name: grad for name, grad in zip(used, found, strict=True) if grad is not None}
    if used and not grads:
        raise UsageError(
            "the loss depends on no parameter, but on a tensor that was not passed to it: call the functional model in "
            "it, `model(params, buffers, x)`, not the module."
        )
    grads |= {name: torch.zeros_like(leaf) for name, leaf in leaves.items() if name not in grads}
    return tree.detach(value), {name: grads[name] for name in leaves}


def _by_transform(loss_fn: FreeLossFunction, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Any, Tensors]:
    def loss_of(params: Tensors) -> tuple[Tensor, Any]:
        value = loss_fn(params, buffers, batch)
        return _loss_in(value), value[1:] if isinstance(value, tuple) else ()

    grads, (loss, rest) = grad_and_value(loss_of, has_aux=True)(params)
    return (loss, *rest) if rest else loss, grads


def start(params: Tensors, buffers: Tensors, optimizer: GradientTransformation) -> InnerState:
    """The state that a loop of `step` begins with: `params`, `buffers` and the optimizer's first `opt_state`.

    Raises:
        UsageError: the optimizer is none of `metalearn.optim`.
    """
    _check_optimizer(optimizer)
    return InnerState(dict(params), dict(buffers), optimizer.init(params))


def step(
    loss_fn: FreeLossFunction,
    optimizer: GradientTransformation,
    state: InnerState,
    batch: Batch,
    *,
    history: bool = False,
) -> tuple[InnerState, TraceStep]:
    """One pure step of training: the next state, and what happened on the way.

    No step remembers the one before, so memory does not grow, also where a parameter requires grad. To differentiate
    through steps use `adapt`, a transform of `torch.func` around them, or `history=True`.

    Args:
        loss_fn: `(params, buffers, batch) -> loss`, `-> (loss, buffers)` or `-> (loss, Aux(buffers, metrics))`.
        optimizer: a `GradientTransformation`, such as `metalearn.optim.sgd(0.01)`.
        state: from `start`, or from the step before; it stays as it is.
        batch: what the loss is given.
        history: keep the history, so that plain autograd differentiates through the step.

    Returns:
        The next state, and a `TraceStep` with the parameters before, their gradient, the updates, loss and metrics.

    Raises:
        UsageError: a parameter's name is among the buffers, the loss is not a scalar, the optimizer is none of
            `metalearn.optim`, or the state is not that of `start`.

    Example:
        >>> from metalearn.optim import sgd
        >>> square = lambda params, buffers, target: (params["w"] - target).square().sum()
        >>> state = start({"w": torch.zeros(1)}, {}, sgd(0.25))
        >>> state, seen = step(square, sgd(0.25), state, torch.ones(1))
        >>> state.params["w"], seen.loss, seen.grads["w"]
        (tensor([0.5000]), tensor(1.), tensor([-2.]))
    """
    _check_optimizer(optimizer)
    if not isinstance(state, InnerState):
        raise UsageError(f"state is a {type(state).__name__}, expected metalearn.start(params, buffers, optimizer).")
    if history or _is_transformed():
        return inner_step(with_aux(loss_fn), optimizer, state, batch)
    refuse_shadowed(state.params, state.buffers)
    (loss, aux), grads = value_and_grad(with_aux(loss_fn))(state.params, state.buffers, batch)
    refuse_shadowed(state.params, aux.buffers)
    with torch.no_grad():
        params, updates, opt_state = optimizer.step(grads, state.opt_state, state.params)
    return InnerState(params, aux.buffers, opt_state), TraceStep(state.params, grads, updates, loss, aux.metrics)


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, GradientTransformation):
        raise UsageError(
            f"optimizer is a {type(optimizer).__name__}, expected a GradientTransformation such as "
            "metalearn.optim.sgd(0.1); those of torch.optim keep their state to themselves."
        )


def _is_transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _loss_in(value: Any) -> Tensor:
    loss = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(loss, Tensor):
        raise UsageError(f"loss_fn returned {type(value).__name__}: expected loss, (loss, buffers) or (loss, Aux).")
    if not loss.is_floating_point():
        raise UsageError(f"the loss is {loss.dtype}, which has no gradient of its own: it must be real floating-point.")
    if loss.dim() != 0:
        raise UsageError(f"the loss is of shape {list(loss.shape)}, but must be a scalar tensor: take its mean or sum.")
    return loss
