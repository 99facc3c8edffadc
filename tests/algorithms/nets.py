"""A small float64 network of features and a head, for the tests of algorithms."""

import torch
from torch import Tensor, nn

import metalearn
from tests import problems


class Net(nn.Module):
    def __init__(self, *, running: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2),
            nn.BatchNorm2d(4, track_running_stats=running),
            nn.Tanh(),
            nn.Conv2d(4, 3, 2, stride=2),
            nn.Tanh(),
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def model(*, running: bool = False) -> metalearn.FunctionalModel:
    torch.manual_seed(5)
    return metalearn.functionalize(Net(running=running).double())


EPISODES = problems.images(3)
EPISODE = problems.one(EPISODES)
