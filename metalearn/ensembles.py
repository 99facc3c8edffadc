"""Many copies of one model in one call: each a row of stacked parameters, with buffers and draws of its own.

    copies = perturb(model.params, metalearn.random.key(0), 100, scale=0.05)
    outputs, buffers = evaluate(model, copies, model.buffers, x)  # [copy, example, output]

The numbers are those of a loop over the copies. Copy `i` draws from the model's key with `i` folded in, so it gets the
same dropout masks however many copies there are and however they are run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from metalearn import random, stepping, tree
from metalearn.errors import UsageError, did_you_mean
from metalearn.execution import Vmap
from metalearn.execution.base import concatenate
from metalearn.functional import RNG, FunctionalModel
from metalearn.inner import FreeLossFunction
from metalearn.state.fit import check_dicts
from metalearn.types import Batch, Tensors


def stack(copies: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """The same entries of several dicts of tensors, one behind the other: `[copy, …]` each.

    Raises:
        UsageError: there is none, or names or shapes differ.
    """
    if not copies:
        raise UsageError("stack takes a list of at least one dict of tensors, got an empty one.")
    if isinstance(copies, Mapping):
        raise UsageError("stack takes a list of dicts of tensors, got one dict: perturb(params, key, …) makes copies.")
    check_dicts(*copies, what="stack([params, params, …])")
    first = {name: value.shape for name, value in copies[0].items()}
    for index, other in enumerate(copies):
        shapes = {name: value.shape for name, value in other.items()}
        if shapes != first:
            name = min(name for name in {**first, **shapes} if first.get(name) != shapes.get(name))
            got, expected = (list(each[name]) if name in each else "missing" for each in (shapes, first))
            raise UsageError(f"{name!r} is {got} in copy {index} and {expected} in copy 0: copies are of one model.")
    return {name: torch.stack([each[name] for each in copies]) for name in first}


def unstack(stacked: Mapping[str, Tensor]) -> list[Tensors]:
    """The dict of every copy: what `stack` makes whole again."""
    return [{name: value[index] for name, value in stacked.items()} for index in range(_count(stacked))]


def perturb(
    params: Mapping[str, Tensor], key: Tensor, num_copies: int, *, scale: float | Tensor | Mapping[str, Any] = 0.01
) -> Tensors:
    """Copies of the parameters with Gaussian noise of standard deviation `scale` added, `[copy, …]` each.

    The noise of a copy depends on the key, on the copy's number and on the parameter's name alone: the first ten of
    a hundred copies are the ten of ten.

    Args:
        params: parameters by name.
        key: a random key (`metalearn.random.key`).
        num_copies: how many, at least 1.
        scale: one for all, or by name; parameters that are not named then stay as they are.

    Raises:
        UsageError: no copy is asked for, a scale is of no parameter, a tensor that takes no noise (integers, say) has
            one, or the key is none.
    """
    check_dicts(params, what="perturb(params, key, num_copies)")
    if not isinstance(num_copies, int) or num_copies < 1:
        raise UsageError(f"num_copies is {num_copies!r}, but must be an integer, at least 1.")
    if not isinstance(key, Tensor):
        raise UsageError(f"key is a {type(key).__name__}, expected a random key: metalearn.random.key(0).")
    scales = scale if isinstance(scale, Mapping) else dict.fromkeys(params, scale)
    for name in scales:
        if name not in params:
            raise UsageError(f"scale has an entry {name!r} that is no parameter. {did_you_mean(name, params)}")
        if not params[name].is_floating_point():
            raise UsageError(
                f"{name!r} is {params[name].dtype}, to which no noise can be added: leave it out of scale."
            )
    copies = torch.arange(num_copies, device=key.device)
    stacked: Tensors = {}
    for name, value in params.items():
        stacked[name] = value.expand(num_copies, *value.shape)
        if name in scales:
            keys = random.fold_in(random.fold_in(key, crc32(name.encode())), copies)
            stacked[name] = value + scales[name] * random.normal(keys, value.shape, dtype=value.dtype)
    return stacked


def spread(buffers: Mapping[str, Tensor], num_copies: int) -> Tensors:
    """One model's buffers for every copy, `[copy, …]` each: equal ones, but a random key of its own."""
    stacked = {name: value.expand(num_copies, *value.shape) for name, value in buffers.items()}
    if RNG in buffers:
        stacked[RNG] = random.fold_in(buffers[RNG], torch.arange(num_copies, device=buffers[RNG].device))
    return stacked


def evaluate(
    model: FunctionalModel,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    *inputs: Any,
    per_copy: bool = False,
    chunk_size: int | None = None,
) -> tuple[Any, Tensors]:
    """The outputs of every copy of a model, and the buffers of every copy after the call.

    The result has no history: for gradients use `value_and_grad`, which takes them inside.

    Args:
        model: the model.
        params: stacked parameters, `[copy, …]` each; an entry of the model's own shape is shared by all copies.
        buffers: the model's, which every copy starts from (`spread`), or those of every copy from an earlier call.
        *inputs: passed to the module's `forward`, the same for every copy.
        per_copy: the tensors in `inputs` are `[copy, …]`, one of each for every copy.
        chunk_size: at most so many copies at once, to bound the memory; None for all.

    Returns:
        The output with every tensor `[copy, …]`, and all buffers `[copy, …]`.

    Raises:
        UsageError: the numbers of copies differ, a shape is neither the model's nor a stack of it, or the call is
            being differentiated.

    Example:
        >>> from metalearn import functionalize
        >>> model = functionalize(torch.nn.Linear(2, 1))
        >>> outputs, _ = evaluate(model, perturb(model.params, random.key(0), 100), model.buffers, torch.ones(3, 2))
        >>> outputs.shape
        torch.Size([100, 3, 1])
    """
    if not isinstance(model, FunctionalModel):
        raise UsageError(f"model is a {type(model).__name__}, expected metalearn.functionalize(module).")
    _refuse_derivatives((params, buffers, inputs))
    own = {**model.params, **model.buffers}
    copied = {name: value for name, value in params.items() if _is_stacked(name, value, own)}
    if not copied:
        raise UsageError("params hold one copy of the model: make several with stack([…]) or perturb(params, key, …).")
    num_copies = _count(copied)
    given = {name: value for name, value in buffers.items() if _is_stacked(name, value, own)}
    rest = {name: value for name, value in buffers.items() if name not in given}
    stacked = {**spread(rest, num_copies), **given}
    _count({**copied, **stacked, **(_named(inputs) if per_copy else {})})

    def one(nest: Any) -> Any:
        params_of_one, buffers_of_one, own_inputs = nest
        given_inputs = own_inputs if per_copy else inputs
        return model({**params, **params_of_one}, buffers_of_one, *given_inputs)

    with torch.no_grad():
        nest = (copied, {name: stacked[name] for name in buffers}, inputs if per_copy else ())
        output, after = concatenate(list(Vmap(chunk_size=chunk_size).run(one, nest)))
    return output, after


def value_and_grad(
    loss_fn: FreeLossFunction, *, per_copy: bool = False, chunk_size: int | None = None
) -> Callable[[Tensors, Tensors, Batch], tuple[Any, Tensors]]:
    """`metalearn.value_and_grad` of every copy, the gradient taken inside.

    Through `vmap` torch differentiates its fused norm layers wrongly and says nothing; inside it, rightly. The
    optimizers of `metalearn.optim` take stacked parameters and gradients as they are, so an ensemble trains at once.

    Args:
        loss_fn: of one copy: `(params, buffers, batch) -> loss`, `(loss, buffers)` or `(loss, Aux)`.
        per_copy: the tensors of the batch are `[copy, …]`; otherwise every copy sees the same batch.
        chunk_size: at most so many copies at once; None for all.

    Returns:
        `(params, buffers, batch) -> (value, grads)`, all tensors of all of them `[copy, …]`; stacked buffers come from
        `spread(model.buffers, num_copies)`.

    Raises:
        UsageError: the numbers of copies differ, or the call is being differentiated.
    """
    one_copy = stepping.value_and_grad(loss_fn)

    def run(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Any, Tensors]:
        _refuse_derivatives((params, buffers, batch))
        _count({**params, **buffers, **(_named(batch) if per_copy else {})})

        def one(nest: Any) -> Any:
            params, buffers, own_batch = nest
            return one_copy(params, buffers, own_batch if per_copy else batch)

        nest = tree.detach((params, buffers, batch if per_copy else ()))
        value, grads = concatenate(list(Vmap(chunk_size=chunk_size).run(one, nest)))
        return tree.detach(value), tree.detach(grads)

    return run


def _is_stacked(name: str, value: Tensor, own: Mapping[str, Tensor]) -> bool:
    if name not in own:
        raise UsageError(f"the model has no parameter or buffer {name!r}. {did_you_mean(name, own)}")
    shape = own[name].shape
    if value.shape == shape:
        return False
    if value.shape[1:] == shape and value.dim() == len(shape) + 1:
        return True
    raise UsageError(f"{name!r} has shape {list(value.shape)}, expected {list(shape)} with an axis of copies in front.")


def _count(stacked: Mapping[str, Tensor]) -> int:
    """The number of copies; raises UsageError unless all have as many."""
    lengths = {name: value.shape[0] if value.dim() else None for name, value in stacked.items()}
    first = next(iter(lengths), None)
    if first is None:
        raise UsageError("there is no tensor to count copies by.")
    for name, length in lengths.items():
        if length is None or length != lengths[first]:
            shapes = [list(stacked[each].shape) for each in (name, first)]
            raise UsageError(
                f"{name!r} has shape {shapes[0]} and {first!r} has {shapes[1]}: the first axis is the copy, of one "
                "length in all. For a model's own buffers: spread(buffers, num_copies)."
            )
    return int(lengths[first])  # type: ignore[arg-type]  # none is None here


def _named(inputs: Any) -> Tensors:
    return {f"input {index}": value for index, value in enumerate(tree.tensors(inputs))}


def _refuse_derivatives(nest: Any) -> None:
    functorch = torch._C._functorch
    for value in tree.tensors(nest):
        history = value.grad_fn is not None and torch.is_grad_enabled()
        while functorch.is_functorch_wrapped_tensor(value):
            history = history or functorch.is_gradtrackingtensor(value)
            value = functorch.get_unwrapped(value)
        if history:
            raise UsageError(
                "an ensemble is being differentiated from outside, where vmap makes gradients of norm layers wrong: "
                "take them inside with ensembles.value_and_grad(loss_fn), or loop over the copies."
            )
