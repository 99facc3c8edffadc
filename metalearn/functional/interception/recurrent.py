"""Recurrent networks and their cells from plain differentiable operations.

vmap can not run torch's own (`vmap(grad)` of an LSTM), and cuDNN's have no second derivative. These project the inputs
of all steps in one product and then go through time: inside `torch.func.grad` that is as fast as torch's on CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional.interception.call import Call
from metalearn.functional.interception.packing import sizes_of

State: TypeAlias = tuple[Tensor, ...]
"""The hidden state `[row, hidden]`, for an LSTM also the cell state."""


class Weights(NamedTuple):
    """The weights of one layer in one direction, under torch's names."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None = None


class Cell(NamedTuple):
    """One kind of network.

    Attributes:
        project: the part of the gates that inputs `[..., feature]` give, for all steps at once.
        step: the next state from that part of one step `[row, gates]` and the state before it.
    """

    project: Callable[[Tensor, Weights], Tensor]
    step: Callable[[Tensor, State, Weights], State]


def _project(x: Tensor, weights: Weights) -> Tensor:
    bias = None if weights.bias_ih is None or weights.bias_hh is None else weights.bias_ih + weights.bias_hh
    return F.linear(x, weights.ih, bias)


def _lstm_step(projected: Tensor, state: State, weights: Weights) -> State:
    hidden, memory = state
    write, keep, new, read = torch.addmm(projected, hidden, weights.hh.t()).chunk(4, -1)
    memory = keep.sigmoid() * memory + write.sigmoid() * new.tanh()
    hidden = read.sigmoid() * memory.tanh()
    return (hidden if weights.hr is None else F.linear(hidden, weights.hr)), memory


def _project_gru(x: Tensor, weights: Weights) -> Tensor:
    # The reset gate multiplies bias_hh, so that it can not be added here.
    return F.linear(x, weights.ih, weights.bias_ih)


def _gru_step(projected: Tensor, state: State, weights: Weights) -> State:
    (hidden,) = state
    from_x, from_hidden = projected.chunk(3, -1), F.linear(hidden, weights.hh, weights.bias_hh).chunk(3, -1)
    reset = (from_x[0] + from_hidden[0]).sigmoid()
    keep = (from_x[1] + from_hidden[1]).sigmoid()
    new = (from_x[2] + reset * from_hidden[2]).tanh()
    return ((hidden - new) * keep + new,)


def _tanh_step(projected: Tensor, state: State, weights: Weights) -> State:
    return (torch.addmm(projected, state[0], weights.hh.t()).tanh(),)


def _relu_step(projected: Tensor, state: State, weights: Weights) -> State:
    return (torch.addmm(projected, state[0], weights.hh.t()).relu(),)


LSTM = Cell(_project, _lstm_step)
GRU = Cell(_project_gru, _gru_step)
TANH = Cell(_project, _tanh_step)
RELU = Cell(_project, _relu_step)


def _layer(
    cell: Cell, x: Tensor, initial: State, weights: Weights, *, sizes: Sequence[int] | None, reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction: its outputs, shaped like `x` but for the features, and its final state.

    Args:
        cell: the kind of network.
        x: `[time, row, feature]`, or `[row of all times, feature]` for a packed sequence.
        initial: `[row, hidden]` each.
        weights: of this layer and direction.
        sizes: how many rows each step has, not growing; None for `[time, row, feature]`.
        reverse: from the last step to the first.
    """
    projected = cell.project(x, weights)
    steps = projected.unbind(0) if sizes is None else projected.split_with_sizes(list(sizes))
    count = len(initial[0]) if sizes is None else sizes[-1 if reverse else 0]
    state = tuple(part[:count] for part in initial)
    outputs: list[Tensor] = []
    ended: list[State] = []
    for step in reversed(steps) if reverse else steps:
        count = len(step)
        rows = len(state[0])
        if count < rows:  # sequences that end here; in reverse, others begin
            ended.append(tuple(part[count:] for part in state))
            state = tuple(part[:count] for part in state)
        elif count > rows:
            state = tuple(torch.cat((part, first[rows:count])) for part, first in zip(state, initial, strict=True))
        state = cell.step(step, state, weights)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    in_order = outputs[::-1] if reverse else outputs
    return torch.stack(in_order) if sizes is None else torch.cat(in_order), state


def _network(
    call: Call, cell: Cell, x: Tensor, initial: State, params: Sequence[Tensor], *,
    sizes: Sequence[int] | None, has_biases: bool, num_layers: int, dropout: float, train: bool, bidirectional: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """All layers: the outputs of the last one and the final states `[layer and direction, row, hidden]`."""
    if not len(x):
        raise UsageError("a recurrent network got a sequence of no steps: it needs one at least.")
    num_directions = 2 if bidirectional else 1
    weights = _split(params, num_layers * num_directions, has_biases)
    initials = list(zip(*(part.unbind(0) for part in initial), strict=True))
    finals: list[State] = []
    for layer in range(num_layers):
        if layer and dropout and train:
            x = call.inside(F.dropout, x, p=dropout, training=True)
        outputs: list[Tensor] = []
        for index in range(layer * num_directions, (layer + 1) * num_directions):
            output, final = _layer(
                cell, x, initials[index], weights[index], sizes=sizes, reverse=bool(index % num_directions)
            )
            outputs.append(output)
            finals.append(final)
        x = outputs[0] if num_directions == 1 else torch.cat(outputs, -1)
    return x, *(torch.stack(parts) for parts in zip(*finals, strict=True))


def _split(params: Sequence[Tensor], count: int, has_biases: bool) -> list[Weights]:
    each = len(params) // count
    groups = [params[start : start + each] for start in range(0, each * count, each)]
    biases = [group[2:4] if has_biases else (None, None) for group in groups]
    return [
        Weights(group[0], group[1], bias[0], bias[1], group[-1] if each % 2 else None)
        for group, bias in zip(groups, biases, strict=True)
    ]


def _recurrent(cell: Cell) -> Callable[..., Any]:
    """The replacement for `torch.lstm` and its like, which have a form for padded and one for packed sequences."""

    def padded(
        call: Call, input: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int,
        dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        state = _state(hx)
        if input.device.type != "cpu" or (cell is LSTM and state[0].shape == state[1].shape):
            input, state, params = _in_autocast((input, state, tuple(params)))
        x = input.transpose(0, 1) if batch_first else input
        output, *finals = _network(
            call, cell, x, state, params, sizes=None, has_biases=has_biases, num_layers=num_layers,
            dropout=dropout, train=train, bidirectional=bidirectional,
        )  # fmt: skip
        return (output.transpose(0, 1) if batch_first else output, *finals)

    def packed(
        call: Call, data: Tensor, batch_sizes: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool,
        num_layers: int, dropout: float, train: bool, bidirectional: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        state = _state(hx)
        if data.device.type != "cpu":
            data, state, params = _in_autocast((data, state, tuple(params)))
        return _network(
            call, cell, data, state, params, sizes=sizes_of(batch_sizes), has_biases=has_biases,
            num_layers=num_layers, dropout=dropout, train=train, bidirectional=bidirectional,
        )  # fmt: skip

    def run(call: Call, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        is_packed = "batch_sizes" in kwargs or (len(args) > 3 and not isinstance(args[3], bool))
        return (packed if is_packed else padded)(call, *args, **kwargs)

    return run


def _one_step(cell: Cell) -> Callable[..., Any]:
    """The replacement for `torch.lstm_cell` and its like."""

    def run(
        call: Call, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:  # fmt: skip
        state = _state(hx)
        for part in state:
            expected = (len(input), w_hh.shape[1])
            if part.shape != expected:  # which broadcasting would make something of
                raise UsageError(
                    f"a recurrent cell got a state of shape {list(part.shape)} for an input of {len(input)} rows: "
                    f"expected {list(expected)}."
                )
        weights = Weights(w_ih, w_hh, b_ih, b_hh)
        if input.device.type != "cpu":
            input, state, weights = _in_autocast((input, state, weights))
        after = cell.step(cell.project(input, weights), state, weights)
        return after if isinstance(hx, tuple | list) else after[0]

    return run


def _state(hx: Tensor | Sequence[Tensor]) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _in_autocast(given: Any) -> Any:
    """The nest in the dtype that torch's own kernel would take it to under autocast: states too, unlike in our steps.

    On a GPU that is any network's, on a CPU an LSTM's without projections over padded sequences alone.
    """
    kind = tree.tensors(given)[0].device.type
    if not torch.is_autocast_enabled(kind):
        return given
    dtype = torch.get_autocast_dtype(kind)
    return tree.map_tensors(lambda x: x.to(dtype) if x.dtype in _AUTOCAST else x, given)


_AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)  # float64 stays as it is

REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.lstm: _recurrent(LSTM),
    torch.gru: _recurrent(GRU),
    torch.rnn_tanh: _recurrent(TANH),
    torch.rnn_relu: _recurrent(RELU),
    torch.lstm_cell: _one_step(LSTM),
    torch.gru_cell: _one_step(GRU),
    torch.rnn_tanh_cell: _one_step(TANH),
    torch.rnn_relu_cell: _one_step(RELU),
}
