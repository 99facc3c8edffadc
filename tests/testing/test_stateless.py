import itertools
import random as python_random
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metalearn import UsageError
from metalearn.testing import check_stateless


class _Keeps(nn.Module):
    """Keeps something from call to call, in the way under test."""

    counter = itertools.count()

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.calls, self.history, self.inner = way, 0, [], nn.Linear(2, 2)
        self.shared = {"calls": [0]}

    def forward(self, x):
        if self.way == "attribute":
            self.calls += 1
            return x * self.calls
        if self.way == "list":
            self.history.append(x)
            return x * len(self.history)
        if self.way == "tensor":
            previous = getattr(self, "previous", torch.zeros_like(x))
            self.previous = x
            return x - previous
        if self.way == "shared object":
            self.shared["calls"][0] += 1
            return x * self.shared["calls"][0]
        if self.way == "global":
            return x * next(self.counter)
        self.inner.seen = getattr(self.inner, "seen", 0) + 1
        return self.inner(x) * self.inner.seen


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("attribute", "'calls'.*0 before the first call, 1 after"),
        ("list", "'history'"),
        ("tensor", "'previous'.*missing before"),
        ("child's attribute", r"'inner\.seen'"),
        ("shared object", "'shared'"),
        ("global", "outside it"),
    ],
)
def test_hidden_state_is_named(way: str, words: str) -> None:
    module = _Keeps(way)
    with pytest.raises(UsageError, match=words) as caught:
        check_stateless(module, torch.tensor([1.0, 2.0]))
    assert len(str(caught.value)) < 420
    assert (module.calls, module.history) == (0, [])
    assert not hasattr(module, "previous")


def test_only_the_culprit_is_named() -> None:
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.last = 0, None

        def forward(self, x):
            self.calls, self.last = self.calls + 1, x
            return x + self.calls

    with pytest.raises(UsageError) as caught:
        check_stateless(Two(), torch.ones(1))
    assert "'calls'" in str(caught.value)
    assert "'last'" not in str(caught.value)


def test_what_does_no_harm_is_reported() -> None:
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop, self.last = nn.BatchNorm1d(3), nn.Dropout(0.5), None
            self.count = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            self.count += 1
            self.last = self.drop(self.norm(x)) * self.count
            return self.last

    report = check_stateless(Caches(), torch.randn(5, 3))
    assert report.harmless == ("last",)
    assert report.state == ("count", "norm.num_batches_tracked", "norm.running_mean", "norm.running_var")


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 2), nn.LSTM(3, 4, batch_first=True), nn.Sequential(nn.Dropout(0.3), nn.Linear(3, 3))]
)
def test_plain_modules_pass(module: nn.Module) -> None:
    assert check_stateless(module, torch.randn(2, 4, 3)).state == ()


def test_several_inputs_and_keywords() -> None:
    class Scaled(nn.Module):
        def forward(self, x, y, *, scale):
            return x + y * scale

    assert check_stateless(Scaled(), (torch.ones(2), torch.ones(2)), scale=3.0).harmless == ()


class _Hides(nn.Module):
    """Has places to hide state in, and a function that is its forward."""

    def __init__(self, run) -> None:
        super().__init__()
        self.run, self.calls, self.kept, self.scratch = run, 0, None, torch.zeros(2)
        self.last, self.numbers = deque(maxlen=3), SimpleNamespace(calls=0)

    def forward(self, x):
        return self.run(self, x)


def _every_third(self, x):
    self.calls += 1
    return x * 2 if self.calls == 3 else x


def _first_input(self, x):
    if self.kept is None:
        self.kept = x.mean()
    return x - self.kept


def _in_place(self, x):
    self.scratch += 1
    return x * self.scratch


def _window(self, x):
    self.last.append(x)
    return sum(self.last)


def _of_an_object(self, x):
    self.numbers.calls += 1
    return x * self.numbers.calls


def _global_draw(self, x):
    return x * python_random.random()


def _normal(self, x):
    return torch.distributions.Normal(x, 1.0)


def _mask_by_length(self, x):
    if self.kept is None or len(self.kept) != len(x):
        self.kept = torch.ones(len(x))
    return x * self.kept


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (_every_third, "'calls'.*0 before the first call, 2 after 2 calls"),
        (_first_input, "'kept'.*None before the first call, a tensor"),
        (_in_place, "'scratch'.*a tensor"),
        (_window, "'last'"),
        (_of_an_object, "outside it"),
        (_global_draw, "outside it"),
    ],
)
def test_well_hidden_state_is_found(run, words: str) -> None:
    module = _Hides(run)
    with pytest.raises(UsageError, match=words):
        check_stateless(module, torch.tensor([1.0, 2.0]))
    assert (module.calls, module.kept, len(module.last), module.scratch.sum().item()) == (0, None, 0, 0)


@pytest.mark.parametrize(
    ("run", "harmless"),
    [(_normal, ()), (_mask_by_length, ("kept",)), (lambda self, x: x > 0, ()), (lambda self, x: x * torch.nan, ())],
)
def test_what_looks_like_it_is_not_refused(run, harmless: tuple[str, ...]) -> None:
    assert check_stateless(_Hides(run), torch.tensor([1.0, 2.0])).harmless == harmless
