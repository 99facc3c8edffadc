"""Recurrent networks: torch's values and gradients, exact second derivatives, vmap, and dropout from a key."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

from metalearn import UsageError, functionalize, random, tree
from metalearn.testing import assert_close
from tests.functional.interception.inner_loops import D, certify, episodes, gradients, read_out, sequences

LENGTHS = [2, 4, 1, 4]


class Reader(nn.Module):
    """A network on `[example, time, 3]` whose outputs and last states are read out, one number an example."""

    def __init__(self, network: nn.Module, *, lengths: list[int] | None = None) -> None:
        super().__init__()
        self.network, self.lengths = network, lengths

    def forward(self, x: Tensor) -> Tensor:
        first = self.network.batch_first
        x = x if first else x.transpose(0, 1)
        given: Any = x
        if self.lengths:
            given = pack_padded_sequence(x, self.lengths, batch_first=first, enforce_sorted=False)
        output, state = self.network(given)
        if self.lengths:
            output = pad_packed_sequence(output, batch_first=first)[0]
        total = read_out(output, x.shape[0 if first else 1], batch_dims=lambda leaf: 0 if first else 1)
        return total + read_out(state, len(total), batch_dims=lambda leaf: 1)


class OneByOne(nn.Module):
    """A network on one sequence without an example axis at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([read_out([leaf[None] for leaf in tree.tensors(self.network(row))], 1) for row in x])


class Steps(nn.Module):
    """A cell that a loop in forward carries over time, from its own zero state."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return read_out(state, len(x))


class LearnedStart(nn.Module):
    """An LSTM that starts from a learned state."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.LSTM(3, 4, batch_first=True, proj_size=2)
        self.hidden, self.memory = nn.Parameter(torch.randn(1, 1, 2)), nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        start = self.hidden.expand(1, len(x), 2), self.memory.expand(1, len(x), 4)
        output, state = self.network(x, start)
        return read_out(output, len(x)) + read_out(state, len(x), batch_dims=lambda leaf: 1)


class DroppedConnections(nn.Module):
    """A recurrent weight that forward sets anew each time from another parameter (Merity et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.LSTM(3, 4, batch_first=True)
        self.raw = nn.Parameter(self.network.weight_hh_l0.detach().clone())
        del self.network._parameters["weight_hh_l0"]

    def forward(self, x: Tensor) -> Tensor:
        self.network.weight_hh_l0 = nn.functional.dropout(self.raw, 0.3, self.training)
        return read_out(self.network(x)[0], len(x))


def _tied() -> nn.Module:
    network = nn.GRU(4, 4, 2)
    network.weight_hh_l1, network.weight_ih_l1 = network.weight_hh_l0, network.weight_ih_l0
    return nn.Sequential(nn.Linear(3, 4), Reader(network))


def _normed(normed: Callable[..., nn.Module], name: str) -> nn.Module:
    network = nn.LSTM(3, 4, 2)
    normed(network, name)
    return Reader(network)


def _frozen_state(network: nn.Module, name: str) -> nn.Module:
    return parametrizations.spectral_norm(network, name).eval()


MODULES: dict[str, Callable[[], nn.Module]] = {
    "rnn, tanh": lambda: Reader(nn.RNN(3, 4)),
    "rnn, relu": lambda: Reader(nn.RNN(3, 4, nonlinearity="relu", batch_first=True)),
    "lstm": lambda: Reader(nn.LSTM(3, 4)),
    "gru": lambda: Reader(nn.GRU(3, 4)),
    "rnn, two layers, both ways": lambda: Reader(nn.RNN(3, 2, 2, bidirectional=True)),
    "lstm, two layers, both ways": lambda: Reader(nn.LSTM(3, 2, 2, bidirectional=True, batch_first=True)),
    "gru, two layers, both ways": lambda: Reader(nn.GRU(3, 2, 2, bidirectional=True)),
    "lstm, no bias": lambda: Reader(nn.LSTM(3, 4, bias=False)),
    "gru, no bias": lambda: Reader(nn.GRU(3, 4, bias=False)),
    "lstm, projected": lambda: Reader(nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True)),
    "lstm, projected, no bias": lambda: Reader(nn.LSTM(3, 4, proj_size=2, bias=False)),
    "lstm, a learned start": LearnedStart,
    "lstm, packed": lambda: Reader(nn.LSTM(3, 4, 2), lengths=LENGTHS),
    "rnn, packed, both ways": lambda: Reader(nn.RNN(3, 2, bidirectional=True), lengths=LENGTHS),
    "gru, packed, both ways": lambda: Reader(nn.GRU(3, 2, 2, bidirectional=True, batch_first=True), lengths=LENGTHS),
    "lstm, dropout": lambda: Reader(nn.LSTM(3, 4, 2, dropout=0.4)),
    "gru, packed, dropout": lambda: Reader(nn.GRU(3, 4, 3, dropout=0.4), lengths=LENGTHS),
    "lstm, no example axis": lambda: OneByOne(nn.LSTM(3, 4)),
    "gru, no example axis": lambda: OneByOne(nn.GRU(3, 2, bidirectional=True, batch_first=True)),
    "rnn cell, tanh": lambda: Steps(nn.RNNCell(3, 4)),
    "rnn cell, relu": lambda: Steps(nn.RNNCell(3, 4, nonlinearity="relu")),
    "lstm cell": lambda: Steps(nn.LSTMCell(3, 4)),
    "lstm cell, no bias": lambda: Steps(nn.LSTMCell(3, 4, bias=False)),
    "gru cell": lambda: Steps(nn.GRUCell(3, 4)),
    "gru, tied layers": _tied,
    "lstm, weight norm": lambda: _normed(parametrizations.weight_norm, "weight_hh_l0"),
    "lstm, spectral norm": lambda: _normed(_frozen_state, "weight_ih_l1"),
    "lstm, dropped connections": DroppedConnections,
}
KEYED = {name for name in MODULES if "drop" in name}


def _module(name: str) -> nn.Module:
    torch.manual_seed(2)
    return MODULES[name]().double()


@pytest.mark.parametrize("name", MODULES)
def test_second_order_and_under_vmap(name: str) -> None:
    certify(MODULES[name], episodes(4, 4, 3))


@pytest.mark.parametrize("name", MODULES)
def test_equals_torch(name: str) -> None:
    module, x = _module(name), sequences(4, 4, 3)
    if name in KEYED:
        module.eval()
    model = functionalize(module)
    assert_close(model(model.params, model.buffers, x)[0], module(x), tolerance=1e-12)
    grads = gradients(lambda params: model(params, model.buffers, x)[0], model.params)
    params = dict(module.named_parameters())
    expected = torch.autograd.grad((module(x) + 0.5).sin().sum(), list(params.values()))
    assert_close(grads, dict(zip(params, expected, strict=True)), tolerance=1e-10)


def _inputs(network: nn.RNNBase) -> list[Any]:
    """An input of every form, without and with a state of its own."""
    layers = network.num_layers * (2 if network.bidirectional else 1)
    padded, forms = sequences(3, 5, 3), []
    forms.append((padded, 3 if network.batch_first else 5))
    forms.append((padded[0], None))
    forms.append((pack_padded_sequence(padded, [2, 5, 1], batch_first=True, enforce_sorted=False), 3))
    forms.append((pack_padded_sequence(padded, [5, 4, 4], batch_first=True), 3))
    inputs: list[Any] = []
    for x, rows in forms:
        axes = (layers,) if rows is None else (layers, rows)
        hidden = sequences(*axes, network.proj_size or network.hidden_size, seed=1)
        memory = sequences(*axes, network.hidden_size, seed=2)
        inputs += [(x,), (x, (hidden, memory) if isinstance(network, nn.LSTM) else hidden)]
    return inputs


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["rnn", "rnn, relu", "lstm", "lstm, projected", "gru"])
def test_every_option_and_form_of_input_equals_torch(kind: str, bias: bool, num_layers: int) -> None:
    cls = {"rnn": nn.RNN, "gru": nn.GRU}.get(kind.split(",")[0], nn.LSTM)
    special = {"rnn, relu": {"nonlinearity": "relu"}, "lstm, projected": {"proj_size": 2}}.get(kind, {})
    for bidirectional, batch_first in itertools.product((False, True), (False, True)):
        torch.manual_seed(0)
        options = {"bidirectional": bidirectional, "batch_first": batch_first, **special}
        network = cls(3, 4, num_layers, bias=bias, **options).double()
        model = functionalize(network)
        for inputs in _inputs(network):
            got, _ = model(model.params, model.buffers, *inputs)
            expected = network(*inputs)
            assert isinstance(got[0], PackedSequence) == isinstance(inputs[0], PackedSequence)
            for a, b in zip(tree.tensors(got), tree.tensors(expected), strict=True):
                assert a.shape == b.shape
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_dropout_between_layers_draws_from_its_key(lengths: list[int] | None) -> None:
    torch.manual_seed(0)
    model = functionalize(Reader(nn.GRU(3, 16, 3, dropout=0.5).double(), lengths=lengths))
    keys, x = random.key(torch.arange(3)), sequences(4, 4, 3)
    call = lambda key: model(model.params, {"rng": key}, x)[0]  # noqa: E731
    looped = torch.stack([call(key) for key in keys])
    assert torch.equal(looped[0], call(keys[0]))
    assert_close(torch.vmap(call)(keys), looped, tolerance=1e-13)
    assert (looped[0] - looped[1]).norm() > 1e-3
    assert (looped[1] - looped[2]).norm() > 1e-3


def test_dropout_is_between_layers_and_scales_what_it_keeps() -> None:
    torch.manual_seed(0)
    network = nn.RNN(64, 64, 2, dropout=0.25).double()
    model = functionalize(network)
    params = {name: torch.zeros_like(value) for name, value in model.params.items()}
    params["bias_ih_l0"] += 0.1
    params["weight_ih_l1"] += torch.eye(64, dtype=D)  # the second layer shows the first one's dropped outputs
    x = torch.zeros(10, 20, 64, dtype=D)
    output, state = model(params, model.buffers, x)[0]
    kept = torch.tensor(0.1, dtype=D).tanh() / 0.75
    dropped = output == 0
    assert_close(output[~dropped], kept.tanh().expand_as(output[~dropped]), tolerance=1e-12)
    assert abs(dropped.double().mean().item() - 0.25) < 0.02
    assert dropped.double().mean((1, 2)).std() < 0.05  # steps are not dropped whole
    assert_close(state[0], torch.full_like(state[0], 0.1).tanh(), tolerance=1e-12)


def test_weights_stay_in_half_precision() -> None:
    torch.manual_seed(0)
    network = nn.LSTM(3, 8, 2, bidirectional=True).bfloat16()
    model, x = functionalize(network), sequences(5, 2, 3).bfloat16()
    output, state = model(model.params, model.buffers, x)[0]
    assert {leaf.dtype for leaf in (output, *state)} == {torch.bfloat16}
    exact = copy.deepcopy(network).double()(x.double())[0]
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=0.02)


def test_a_parametrized_weight_is_the_one_that_is_used() -> None:
    # nn.RNNBase keeps a list of its weights, which a parametrization replaces.
    network = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0").double()
    model, x = functionalize(network), sequences(5, 2, 3)
    doubled = {**model.params, "parametrizations.weight_hh_l0.original0": torch.zeros(16, 1, dtype=D)}
    output = model(doubled, model.buffers, x)[0][0]
    with torch.no_grad():
        network.parametrizations.weight_hh_l0.original0.zero_()
    assert_close(output, network(x)[0], tolerance=1e-12)
    own = {**dict(network.named_parameters())}
    assert_close(model(own, model.buffers, x)[0][0], output, tolerance=1e-12)


def test_a_weight_that_forward_assigns_is_the_one_that_is_used() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.RNN(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.network.weight_hh_l0 = self.network.weight_hh_l0 * 0.5
            return self.network(x)[0]

    module, x = Halved().double(), sequences(5, 2, 3)
    model = functionalize(module)
    with torch.no_grad():
        module.network.weight_hh_l0.mul_(0.5)
    assert_close(model(model.params, model.buffers, x)[0], module.network(x)[0], tolerance=1e-12)


def test_packing_and_unpacking_equal_torch() -> None:
    class Packs(nn.Module):
        def forward(self, x: Tensor, first: bool, ordered: bool, pad: float) -> Any:
            lengths = [4, 3, 3] if ordered else [2, 4, 1]
            packed = pack_padded_sequence(x if first else x.transpose(0, 1), lengths, first, enforce_sorted=ordered)
            separate = pack_sequence([x[1, :2], x[0], x[2, :1]], enforce_sorted=False)
            unpacked = pad_packed_sequence(packed, first, pad, 6)
            left = pad_sequence([x[0], x[1, :2]], batch_first=first, padding_value=pad, padding_side="left")
            return unpacked, packed, pad_packed_sequence(separate, not first), left

    model, x = functionalize(Packs()), sequences(3, 4, 2, 2)
    for options in itertools.product((True, False), (True, False), (0.0, -7.0)):
        got, expected = model({}, model.buffers, x, *options)[0], Packs()(x, *options)
        for a, b in zip(tree.tensors(got), tree.tensors(expected), strict=True):
            assert torch.equal(a, b)
        batched = torch.vmap(lambda x, options=options: model({}, model.buffers, x, *options)[0][0][0])(x[None])
        assert torch.equal(batched[0], got[0][0])


def test_lengths_that_differ_by_task_are_refused_under_vmap_and_run_in_a_loop() -> None:
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.network(pack_padded_sequence(x, lengths, True, enforce_sorted=False))[1]

    module = Lengths().double()
    model, x = functionalize(module), sequences(2, 3, 4, 3)
    lengths = torch.tensor([[4, 2, 1], [1, 4, 3]])
    call = lambda x, lengths: model(model.params, model.buffers, x, lengths)[0]  # noqa: E731
    for row, each in zip(x, lengths, strict=True):
        assert_close(call(row, each), module(row, each), tolerance=1e-12)
    with pytest.raises(UsageError, match=r"lengths .* differ from task to task.*execution\.tasks=loop"):
        torch.vmap(call)(x, lengths)


def test_mistakes_are_not_broadcast_away() -> None:
    model, x = functionalize(nn.LSTMCell(3, 4).double()), sequences(5, 3)
    state = torch.zeros(1, 4, dtype=D)
    with pytest.raises(UsageError, match=r"state of shape \[1, 4\] for an input of 5 rows: expected \[5, 4\]"):
        model(model.params, model.buffers, x, (state, state))
    model = functionalize(nn.GRU(3, 4).double())
    with pytest.raises(UsageError, match="no steps"):
        model(model.params, model.buffers, torch.zeros(0, 2, 3, dtype=D))
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        model(model.params, model.buffers, sequences(5, 2, 3), torch.zeros(1, 3, 4, dtype=D))


def test_flattening_weights_in_forward_leaves_the_callers_where_they_are() -> None:
    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.network.flatten_parameters()
            assert "flatten_parameters" in type(self.network).__dict__  # torch's would move them on a GPU
            return self.network(x)[0]

    model = functionalize(Flattens().double())
    batched = torch.vmap(lambda params, x: model(params, model.buffers, x)[0], (None, 0))
    x = sequences(2, 5, 2, 3)
    assert_close(batched(model.params, x)[1], model.module.network(x[1])[0], tolerance=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's own, of the module
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "network", [nn.LSTM(3, 4, 2), nn.LSTM(3, 4, bias=False), nn.LSTM(3, 4, proj_size=2), nn.GRU(3, 4), nn.RNN(3, 4)]
)
def test_autocast_gives_the_dtypes_of_torch(network: nn.Module, packed: bool, dtype: torch.dtype) -> None:
    module = copy.deepcopy(network).to(dtype)
    x: Any = torch.linspace(-1, 1, 30).reshape(5, 2, 3).to(dtype)
    model, inputs = functionalize(module), pack_padded_sequence(x, torch.tensor([5, 3])) if packed else x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = model(model.params, model.buffers, inputs)[0], module(inputs)
    for one, other in zip(tree.tensors(ours), tree.tensors(theirs), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=2e-2)
