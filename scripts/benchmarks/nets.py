"""The models of the speed benchmark that the package does not have, of modules that every library can call."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESNET12_WIDTHS = (64, 160, 320, 640)


class Residual(nn.Module):
    """Three 3x3 convolutions with batch norm beside a 1x1 one, leaky ReLUs of slope 0.1, and 2x2 max-pooling."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels if index == 0 else filters, filters, 3, padding=1, bias=False) for index in range(3)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, track_running_stats=False) for _ in range(3))
        self.shortcut = nn.Conv2d(channels, filters, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(filters, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if index < 2:
                out = F.leaky_relu(out, 0.1)
        return F.max_pool2d(F.leaky_relu(out + self.shortcut_norm(self.shortcut(x)), 0.1), 2)


class ResNet12(nn.Module):
    """Four residual blocks, the mean over space, a linear layer; no DropBlock, whose draws no two libraries share.

    Reference: Oreshkin, Rodriguez and Lacoste 2018, arXiv:1805.10123; the widths 64, 160, 320 and 640 and the leaky
    ReLUs are those of Lee et al. 2019, arXiv:1904.03758.
    """

    def __init__(self, *, channels: int, num_outputs: int, widths: tuple[int, ...] = RESNET12_WIDTHS) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        self.blocks = nn.Sequential(*(Residual(before, after) for before, after in zip(inputs, widths, strict=True)))
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((-2, -1)))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """An LSTM over `[example, time, feature]` and a linear layer on its last output."""

    def __init__(self, *, features: int, hidden: int, num_outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """A pre-norm block: self-attention written out (torch's fused kernels have no second derivative), then an MLP."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attended, self.mixed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        examples, tokens, width = x.shape
        split = self.into(self.attended(x)).view(examples, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5, -1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(examples, tokens, width))
        return x + self.narrower(F.gelu(self.wider(self.mixed(x))))


class Transformer(nn.Module):
    """Blocks of attention over `[example, token, feature]`, and a linear layer on the mean of the tokens."""

    def __init__(self, *, features: int, width: int, heads: int, depth: int, tokens: int, num_outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Attention(width=width, heads=heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.positions)).mean(1))  # type: ignore[no-any-return]
