"""What researchers write: adapters, writing into tensors, losses with parameters, complex parameters."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.rows import Row, dense, given, normal


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.values = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        chosen = nn.functional.one_hot(y.argmax(-1), num_classes=4)
        return self.values(chosen * y) + self.values(nn.functional.one_hot(x[:, 0].round().long() % 4, 4).to(x.dtype))


class Written(nn.Module):
    """Writes its output entry by entry."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 2, dtype=x.dtype)
        for index, row in enumerate(x):
            out[index] = self.linear(row).tanh()
        out[:, 0] *= 2.0
        return out


class Filled(nn.Module):
    """The same with other ways of making a tensor and of writing to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        empty = x.new_empty(3, len(x), 2)
        empty[0], empty[1, :, :1] = y.tanh(), y[:, 1:]
        empty[1, :, 1].copy_(y[:, 0].square())
        empty[2].fill_(0.5).add_(y.sigmoid())
        total = torch.zeros_like(y).index_add_(0, torch.arange(len(x)), y)
        total.scatter_add_(1, torch.zeros(len(x), 1, dtype=torch.int64), y[:, :1].exp())
        return empty.sum(0) * total


class LowRank(nn.Module):
    """LoRA's adapter around a frozen layer (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.randn(base.out_features, rank))
        self.scaling = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T * self.scaling


class Complex(nn.Module):
    """Complex parameters, with a complex output and a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, dtype=torch.complex128)
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex128))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(0.3 * self.first(x.to(torch.complex128)))
        return y * self.phase, torch.view_as_real(y.conj() * self.phase).sum(-1)


class Fourier(nn.Module):
    """A convolution in frequency space, with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=x.shape[-1])


class Scalars(nn.Module):
    """Parameters and a buffer without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-0.2))
        self.register_buffer("temperature", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * x + self.offset) * self.temperature


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = dense(nn.Tanh()), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Custom(nn.Module):
    """An autograd function of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(self.linear(x))


class Noisy(nn.Module):
    """Draws in forward: a variational layer and noise on the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.1 * torch.rand_like(x) if self.training else x
        noise = torch.randn(len(x), 2, dtype=x.dtype) if self.training else 0.0
        return self.mean(x) + self.log_scale(x).exp() * noise


class Compared(nn.Module):
    """Two sets of features, compared by a module without parameters."""

    def __init__(self, comparison: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.comparison = nn.Linear(3, 4), nn.Linear(3, 4), comparison

    def forward(self, x: Tensor) -> Tensor:
        return self.comparison(self.left(x).tanh(), self.right(x))


class Judged(nn.Module):
    """A module with a loss that has parameters of its own."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.features, self.loss = nn.Linear(3, 8), loss

    def forward(self, x: Tensor, labels: Tensor):
        return self.loss(self.features(x).tanh(), labels)


class Forces(nn.Module):
    """An energy, and its negative derivative by the positions, as networks of molecules have it."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.energy(x)
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy, -slope


class OwnSteps(nn.Module):
    """Adapts its own weights to its input, with torch.autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        params = list(self.linear.parameters())
        for _ in range(2):
            with torch.enable_grad():
                loss = nn.functional.linear(x, *params).square().mean()
                slopes = torch.autograd.grad(loss, params, create_graph=True)
            params = [value - 0.1 * slope for value, slope in zip(params, slopes, strict=True)]
        return nn.functional.linear(x, *params)


class Coupling(nn.Module):
    """A layer of a normalising flow: a mask in a buffer says which features pass, and it writes to masks of values."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 4))
        self.register_buffer("passes", torch.tensor([True, False, False]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(x[:, self.passes]).chunk(2, -1)
        y = torch.empty_like(x)
        y[:, self.passes] = x[:, self.passes]
        y[:, ~self.passes] = x[:, ~self.passes] * scale.tanh().exp() + shift
        y[y > 1.5] = 1.0
        return y, scale.sum(-1) + self.passes.nonzero().sum()


class Slots(nn.Module):
    """Memory that starts from a parameter, and is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value, self.start = nn.Linear(3, 4), nn.Linear(3, 2), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.start.clone()
        for index, row in enumerate(x[:3]):
            memory[index] = self.value(row).tanh()
        return self.key(x).softmax(-1) @ memory


class Kept(nn.Module):
    """Hooks, methods and functions that refer to the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.kept = nn.Linear(3, 4), nn.Linear(4, 2), {}
        self.first.register_forward_hook(lambda part, args, output: self.kept.update(first=output))
        self.second.register_forward_hook(self.keep)
        self.scale = lambda x: x * self.first.weight.norm()

    def keep(self, part: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self.kept["second"] = output

    def forward(self, x: Tensor) -> Tensor:
        self.second(self.first(x).tanh())
        return self.scale(self.kept["second"]) + self.kept["first"].sum(1, keepdim=True)


def _is_adapter(name: str) -> bool:
    return "lora_" in name


ROWS = {
    "one-hot": Row(OneHot),
    "output written entry by entry": Row(Written),
    "outputs filled in place": Row(Filled, lr=0.02),
    "low-rank adapter": Row(
        lambda: nn.Sequential(LowRank(nn.Linear(3, 4)), nn.Tanh(), LowRank(nn.Linear(4, 2))), adapted=_is_adapter
    ),
    "complex parameters": Row(Complex, lr=0.02),
    "complex parameters in frequency space": Row(Fourier, given(normal(5, 6))),
    "0-dimensional parameters": Row(Scalars),
    "cosine similarity": Row(lambda: Compared(nn.CosineSimilarity())),
    "pairwise distance": Row(lambda: Compared(nn.PairwiseDistance())),
    "adaptive softmax": Row(
        lambda: Judged(nn.AdaptiveLogSoftmaxWithLoss(8, 6, [2, 4], div_value=2.0)),
        given(normal(5, 3), labels=lambda generator: torch.tensor([0, 3, 5, 1, 4])),
    ),
    "linear cross entropy": Row(
        lambda: Judged(nn.LinearCrossEntropyLoss(8, 6, bias=True)),
        given(normal(5, 3), labels=lambda generator: torch.tensor([0, 3, 5, 1, 4])),
    ),
    "a custom autograd function": Row(Custom, lr=0.02),
    "energy and forces": Row(Forces, lr=0.02),
    "steps of its own": Row(OwnSteps, lr=0.02, num_inner_steps=1),
    "coupling by masks": Row(Coupling, lr=0.02),
    "memory that starts from a parameter": Row(Slots, lr=0.02),
    "features kept by hooks": Row(Kept, lr=0.02),
    "noise in forward": Row(Noisy, draws=True, lr=0.02),
}
