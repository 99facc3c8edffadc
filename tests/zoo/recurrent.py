"""Recurrent layers and their cells."""

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.zoo.rows import Row, given, normal

SEQUENCES = given(normal(3, 4, 2))


class Packed(nn.Module):
    """Sequences of several lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, [2, 4, 1], batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


class Unrolled(nn.Module):
    """A cell over a sequence."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> list[Tensor]:
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return outputs


_LAYERS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
_CELLS = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}

ROWS = {
    **{name: Row(lambda layer=layer: layer(2, 3, batch_first=True), SEQUENCES) for name, layer in _LAYERS.items()},
    **{f"{name}, time first": Row(lambda layer=layer: layer(2, 3), SEQUENCES) for name, layer in _LAYERS.items()},
    **{
        f"{name}, one sequence": Row(lambda layer=layer: layer(2, 3), given(normal(4, 2)))
        for name, layer in _LAYERS.items()
    },
    **{
        f"{name}, no bias": Row(lambda layer=layer: layer(2, 3, bias=False), SEQUENCES)
        for name, layer in _LAYERS.items()
    },
    **{
        f"{name}, two layers, both directions": Row(
            lambda layer=layer: layer(2, 2, num_layers=2, bidirectional=True), SEQUENCES
        )
        for name, layer in _LAYERS.items()
    },
    **{
        f"{name}, two layers with dropout": Row(
            lambda layer=layer: layer(2, 3, num_layers=2, dropout=0.4), SEQUENCES, draws=True
        )
        for name, layer in _LAYERS.items()
    },
    **{
        f"{name}, packed": Row(lambda layer=layer: Packed(layer(2, 3, batch_first=True)), SEQUENCES)
        for name, layer in _LAYERS.items()
    },
    **{
        f"{name}, packed, both directions": Row(
            lambda layer=layer: Packed(layer(2, 2, batch_first=True, bidirectional=True)), SEQUENCES
        )
        for name, layer in _LAYERS.items()
    },
    "RNN, relu": Row(lambda: nn.RNN(2, 3, nonlinearity="relu"), SEQUENCES),
    "RNN, state given": Row(lambda: nn.RNN(2, 3), given(normal(3, 4, 2), normal(1, 4, 3))),
    "GRU, state given": Row(lambda: nn.GRU(2, 3), given(normal(3, 4, 2), normal(1, 4, 3))),
    "LSTM, projected": Row(lambda: nn.LSTM(2, 4, proj_size=2), SEQUENCES),
    "LSTM, projected, two layers, both directions": Row(
        lambda: nn.LSTM(2, 3, proj_size=2, num_layers=2, bidirectional=True), SEQUENCES
    ),
    **{f"{name} cell": Row(lambda cell=cell: Unrolled(cell(2, 3)), SEQUENCES) for name, cell in _CELLS.items()},
    "RNN cell, relu": Row(lambda: Unrolled(nn.RNNCell(2, 3, nonlinearity="relu")), SEQUENCES),
    **{
        f"{name} cell, no bias": Row(lambda cell=cell: Unrolled(cell(2, 3, bias=False)), SEQUENCES)
        for name, cell in _CELLS.items()
    },
}
