import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, vmap

from metalearn import functionalize

D = torch.float64


class _Indexes(nn.Module):
    def __init__(self, read) -> None:
        super().__init__()
        self.read, self.table = read, nn.Parameter(torch.linspace(-1, 1, 24, dtype=D).reshape(2, 3, 4))

    def forward(self, i, j):
        return self.read(self.table, i, j)


READS = {
    "first": lambda t, i, j: t[i],
    "negative": lambda t, i, j: t[i - 2],
    "two": lambda t, i, j: t[i, j],
    "a slice before": lambda t, i, j: t[:, j],
    "a slice between": lambda t, i, j: t[i, 1:, j],
    "an ellipsis": lambda t, i, j: t[..., j],
    "a new axis": lambda t, i, j: t[None, i, :, None, j],
    "a number beside": lambda t, i, j: t[1, j],
}


@pytest.mark.parametrize("name", READS)
def test_reading_at_a_tasks_own_number(name: str) -> None:
    model = functionalize(_Indexes(READS[name]))
    firsts, seconds = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])

    def gradient(i, j):
        return grad(lambda p: model(p, model.buffers, i, j)[0].square().sum())(model.params)["table"]

    outputs = vmap(lambda i, j: model(model.params, model.buffers, i, j)[0])(firsts, seconds)
    gradients = vmap(gradient)(firsts, seconds)
    for index, (i, j) in enumerate(zip(firsts, seconds, strict=True)):
        expected = READS[name](model.params["table"], int(i), int(j))
        assert torch.equal(outputs[index], expected)
        assert torch.equal(gradients[index], gradient(i, j))


class _Writes(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.write = write
        self.register_buffer("table", torch.zeros(3, 2, dtype=D))

    def forward(self, i, x):
        self.write(self.table, i, x)
        return self.table.sum()


def _one(t, i, x):
    t[i] = x


def _scalar(t, i, x):
    t[i % 2] = 5.0


def _column(t, i, x):
    t[i, 1] = x[0]


@pytest.mark.parametrize("write", [_one, _scalar, _column])
def test_writing_at_a_tasks_own_number(write) -> None:
    model = functionalize(_Writes(write))
    indices, xs = torch.tensor([0, 2, 1]), torch.arange(1.0, 7.0, dtype=D).reshape(3, 2)
    tables = vmap(lambda i, x: model({}, model.buffers, i, x)[1]["table"])(indices, xs)
    for table, i, x in zip(tables, indices, xs, strict=True):
        expected = torch.zeros(3, 2, dtype=D)
        write(expected, int(i), x)
        assert torch.equal(table, expected)


def test_one_hot_of_labels() -> None:
    class OneHot(nn.Module):
        def forward(self, labels):
            return F.one_hot(labels, 4), nn.functional.one_hot(labels, num_classes=4)

    model, labels = functionalize(OneHot()), torch.tensor([[0, 3, 1], [2, 2, 0]])
    for got in vmap(lambda y: model({}, model.buffers, y)[0])(labels):
        assert torch.equal(got, F.one_hot(labels, 4))
