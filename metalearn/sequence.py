"""A module over a sequence of inputs, its state carried from step to step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.types import Tensors


def unroll(
    model: FunctionalModel,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    inputs: Any,
    *,
    truncation: int | None = None,
) -> tuple[Any, Tensors]:
    r"""Runs a model over a sequence: $(y_t, s_{t+1}) = f(\theta, s_t, x_t)$ for $t = 0 \ldots T - 1$.

    Gradients flow back through time along the state, by plain autograd and by `torch.func`: to every input, to the
    parameters and to the initial state (a buffer, or a parameter that forward itself changes).

    Args:
        model: the module as a pure function; what it changes in `forward` is its state.
        params: its parameters.
        buffers: its state before the first input: buffers, the key, the parameters that an earlier call changed.
        inputs: a tensor `[time, …]` or a nest of them; a tuple is passed to `forward` as positional arguments, a
            dict as keyword arguments.
        truncation: cut the state from its history after every so many steps (truncated backpropagation through time:
            no gradient flows further back than that, and memory for the graph can be freed by then); None never does.

    Returns:
        The outputs stacked along a first axis `[time, …]`, and the state after the last step, from which a next call
        goes on.

    Raises:
        UsageError: a sequence without steps or with tensors of several lengths, a truncation that is no number of
            steps, or outputs that can not be stacked.

    Example:
        >>> class Sum(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("total", torch.zeros(()))
        ...
        ...     def forward(self, x):
        ...         self.total = self.total + x
        ...         return self.total
        >>> from metalearn import functionalize
        >>> model = functionalize(Sum())
        >>> unroll(model, model.params, model.buffers, torch.tensor([1.0, 2.0, 3.0]))[0]
        tensor([1., 3., 6.])
    """
    if truncation is not None and (type(truncation) is not int or truncation < 1):
        raise UsageError(f"truncation is {truncation!r}, but must be a number of steps of at least 1, or None.")
    length = _length(inputs)
    state, outputs = dict(buffers), []
    for step in range(length):
        if truncation is not None and step and step % truncation == 0:
            state = tree.detach(state)
        args, kwargs = _arguments(tree.map_tensors(lambda leaf, step=step: leaf[step], inputs))  # type: ignore[misc]
        output, state = model(params, state, *args, **kwargs)
        outputs.append(output)
    return _stacked(outputs), state


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if type(inputs) is tuple else (inputs,)), {}


def _length(inputs: Any) -> int:
    leaves = tree.tensors(inputs)
    lengths = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise UsageError(
            f"a sequence needs a time axis in front of every tensor, of one length above 0; got {shapes or 'none'}."
        )
    return int(next(iter(lengths)))  # type: ignore[arg-type]


def _stacked(outputs: list[Any]) -> Any:
    """The outputs of all steps, each tensor stacked along time."""
    flat = [tree.flatten(output) for output in outputs]
    for step, (_, structure) in enumerate(flat):
        if structure != flat[0][1]:
            raise UsageError(
                f"the output of step {step} is built otherwise than that of step 0 (another nest of tensors), so that "
                "they can not be stacked: return the same at every step."
            )
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    try:
        leaves = [torch.stack(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    except RuntimeError as error:
        raise UsageError(f"the outputs of the steps have different shapes and can not be stacked: {error}") from error
    return tree.unflatten(leaves, flat[0][1])
