"""Buffers of every kind: integers, counters, histories, moving averages."""

import torch
from torch import Tensor, nn

from tests.zoo.rows import Row


class Looked(nn.Module):
    """Integer buffers: a table that is looked up, and a count of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("table", torch.tensor([2, 0, 1]))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen |= self.calls > torch.arange(3)
        return self.linear(x[:, self.table]) / self.calls


class Remembered(nn.Module):
    """Reads and writes a buffer at a place that a counter gives."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("scales", torch.tensor([1.0, 0.5, 2.0]))
        self.register_buffer("memory", torch.zeros(3, 2))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * self.scales[self.calls]
        self.memory[self.calls] = y.mean(0)
        self.calls += 1
        return y + self.memory.sum(0)


class Decayed(nn.Module):
    """A floating-point buffer with a history, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("state", torch.zeros(2))
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.scale * self.state + self.linear(x).tanh().mean(0)
        return self.linear(x) * self.state


class Codebook(nn.Module):
    """VQ-VAE's quantiser: nearest codes, straight through, with the codes' moving averages as buffers."""

    def __init__(self, *, through_data: bool) -> None:
        super().__init__()
        self.through_data = through_data
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 2)
        self.register_buffer("codes", torch.randn(4, 2))
        self.register_buffer("counts", torch.ones(4))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        with torch.no_grad():
            nearest = (z[:, None] - self.codes).square().sum(-1).argmin(-1)
            gap = self.codes[nearest] - z
            if self.training:
                self._move(z, nn.functional.one_hot(nearest, 4).to(z.dtype))
        return self.decoder(z + gap), z - self.codes[nearest]

    def _move(self, z: Tensor, hits: Tensor) -> None:
        counts, sums, codes = self.counts, self.sums, self.codes
        if self.through_data:
            counts, sums, codes = counts.data, sums.data, codes.data
        counts.mul_(0.9).add_(0.1 * hits.sum(0))
        sums.mul_(0.9).add_(0.1 * hits.T @ z)
        codes.copy_(sums / counts[:, None])


ROWS = {
    "integer buffers": Row(Looked),
    "a buffer with a history": Row(Decayed),
    "buffers indexed by a counter": Row(Remembered, lr=0.02),
    "codebook with moving averages": Row(lambda: Codebook(through_data=False), replay=True),
    "codebook with moving averages, through data": Row(lambda: Codebook(through_data=True), replay=True),
    "codebook, evaluation": Row(lambda: Codebook(through_data=False), training=False, replay=True),
}
