"""Values that forward reads out of tensors, under vmap."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence

from metalearn import UsageError, functionalize
from metalearn.testing import assert_close
from tests.functional.interception.inner_loops import D, certify, episodes, read_out, sequences


class Reads(nn.Module):
    """Decides by, and multiplies with, numbers that it reads out of a tensor."""

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        if read.all():
            x = x.sin()
        numbers = [int(read[0]), float(read[1]), read[2].item(), read.tolist()[3], [5, 7][read[0]]]
        return sum(number * x.pow(power) for power, number in enumerate(numbers)).sum()


@pytest.mark.parametrize("level", [1, 2])
def test_what_all_tasks_agree_on_can_be_read_under_vmap(level: int) -> None:
    model = functionalize(Reads())
    call: Any = lambda x, read: model({}, model.buffers, x, read)[0]  # noqa: E731
    second: Any = grad(lambda x, read: grad(call)(x, read).square().sum())
    x, read = sequences(3, 4), torch.tensor([1, 2, 3, 4]).expand(3, 4)
    for function in (call, second):
        expected = torch.stack([function(*each) for each in zip(x, read, strict=True)])
        if level == 1:
            assert_close(vmap(function)(x, read), expected, tolerance=1e-12)
        else:
            got = vmap(vmap(function, (0, None)), (None, 0))(x, torch.stack([read[0], read[1]]))
            assert_close(got, expected.expand(2, *expected.shape), tolerance=1e-12)


def test_what_tasks_differ_in_is_refused() -> None:
    model = functionalize(Reads())
    call: Any = lambda x, read: model({}, model.buffers, x, read)[0]  # noqa: E731
    read = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
    with pytest.raises(UsageError, match=r"execution\.tasks=loop"):
        vmap(call)(sequences(2, 4), read)


class Causal(nn.Module):
    """An encoder with the mask in a buffer; torch looks whether it is the causal one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, activation="gelu", batch_first=True)
        self.stack = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, x: Tensor) -> Tensor:
        return read_out(self.stack(x, mask=self.mask), len(x))


class Packed(nn.Module):
    """A network of sequences whose lengths are in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.GRU(4, 3, batch_first=True)
        self.register_buffer("lengths", torch.tensor([2, 4, 1]))

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=False)
        return read_out(self.network(packed)[1], len(x), batch_dims=lambda leaf: 1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap on the few numbers that order the lengths
@pytest.mark.parametrize("build", [Causal, Packed])
def test_what_a_module_keeps_in_a_buffer_can_be_read_under_vmap(build: type[nn.Module]) -> None:
    module = build().double()
    model, x = functionalize(module), sequences(3, 4, 4)
    assert_close(model(model.params, model.buffers, x)[0], module(x), tolerance=1e-12)
    certify(build, episodes(3, 4, 4), num_directions=1)
    assert model.params[next(iter(model.params))].dtype == D
