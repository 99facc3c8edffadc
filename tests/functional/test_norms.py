"""Norms in a skeleton: which they are, what their modes mean, and torch's own results in all of them."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import UsageError, functionalize
from metalearn.functional.norms import STATISTICS, norms_of
from metalearn.functional.skeleton import places_of

D = torch.float64


class Own(nn.Module):
    """A norm of a user's own, which reads its flag as torch's do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((3,), 0.3))
        self.register_buffer("running_var", torch.full((3,), 1.7))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=0.3)


class Doubled(nn.BatchNorm1d):
    """On top of torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Renorm(nn.BatchNorm1d):
    """A forward of its own, that goes by the flags."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return (input - self.running_mean[:, None]) * (self.running_var[:, None] + self.eps).rsqrt()
        mean, var = input.mean((0, 2)), input.var((0, 2), correction=0)
        if self.track_running_stats:
            self.num_batches_tracked += 1
            self.running_mean = self.running_mean + 0.1 * (mean.detach() - self.running_mean)
            self.running_var = self.running_var + 0.1 * (var.detach() - self.running_var)
        return (input - mean[:, None]) * (var[:, None] + self.eps).rsqrt()


NORMS = {
    "batch norm": lambda: nn.BatchNorm1d(3),
    "without an affine part": lambda: nn.BatchNorm1d(3, affine=False),
    "cumulative": lambda: nn.BatchNorm1d(3, momentum=None),
    "synchronised": lambda: nn.SyncBatchNorm(3),
    "synchronised, cumulative": lambda: nn.SyncBatchNorm(3, momentum=None),
    "on top of torch's": lambda: Doubled(3),
    "on top of torch's, cumulative": lambda: Doubled(3, momentum=None),
    "a forward of its own": lambda: Renorm(3),
    "instance norm": lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
    "in functions": Own,
}


def _inputs() -> Tensor:
    return torch.randn(2, 4, 3, 5, dtype=D, generator=torch.Generator().manual_seed(0)) * 2 + 1


def _as_torch_has_it(norm: nn.Module, statistics: str) -> nn.Module:
    """A copy of the norm, set by hand."""
    norm = copy.deepcopy(norm).train(statistics != "running")
    if statistics == "set" and isinstance(norm, nn.modules.batchnorm._BatchNorm):
        norm.track_running_stats = False
    return norm


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_normalises_as_torch_does(name: str, training: bool, statistics: str) -> None:
    norm, x = NORMS[name]().double().train(training), _inputs()
    plain = functionalize(norm)
    model, reference = plain.normalising(statistics), _as_torch_has_it(norm, statistics)
    expected = [reference(each) for each in x]
    buffers = model.buffers
    for each, wanted in zip(x, expected, strict=True):
        output, buffers = model(model.params, buffers, each)
        torch.testing.assert_close(output, wanted, rtol=0, atol=1e-14)
    for key, value in reference.named_buffers():
        # Tracked as torch does; otherwise not even copied.
        if statistics == "tracked":
            torch.testing.assert_close(buffers[key], value, rtol=0, atol=1e-14)
            # Instance norms count no batches.
            counts = value.dim() > 0 or not isinstance(norm, nn.InstanceNorm1d)
            assert torch.equal(value, plain.buffers[key]) is not counts
        else:
            assert buffers[key] is plain.buffers[key]
    # Side by side, each task from the start.
    outputs, rows = torch.vmap(lambda each: model(model.params, model.buffers, each))(x)
    for task in range(2):
        alone, after = model(model.params, model.buffers, x[task])
        torch.testing.assert_close(outputs[task], alone, rtol=0, atol=1e-14)
        if statistics == "tracked":
            torch.testing.assert_close({k: rows[k][task] for k in after}, after, rtol=0, atol=1e-14)
    # The module, and the model of before, are as they were.
    assert norm.training is training
    output, _ = plain(plain.params, plain.buffers, x[0])
    torch.testing.assert_close(output, copy.deepcopy(norm)(x[0]), rtol=0, atol=1e-14)


def test_a_mode_can_be_taken_back_and_outlives_others() -> None:
    model = functionalize(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))).train()
    held = model.normalising("running")
    assert held.training
    assert not held.eval().training
    assert held.eval().normalising("tracked").normalising(None).training is False
    x = _inputs()[0].float()
    moved = held.eval().normalising("tracked")(model.params, model.buffers, x)[1]
    assert moved["0.num_batches_tracked"].item() == 1
    for each in (held, held.eval(), held.eval().train(), pickle.loads(pickle.dumps(held))):
        assert each(model.params, model.buffers, x)[1]["0.num_batches_tracked"].item() == 0
    for back in (held.normalising(None), held.eval().train().normalising(None)):
        assert back(model.params, model.buffers, x)[1]["0.num_batches_tracked"].item() == 1


def test_a_model_that_is_a_norm_keeps_its_own_mode() -> None:
    assert functionalize(nn.BatchNorm1d(3)).train().normalising("running").training
    assert not functionalize(nn.BatchNorm1d(3)).eval().normalising("tracked").training


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(UsageError, match=r"'track'\): there are no such statistics. Did you mean 'tracked'"):
        functionalize(nn.BatchNorm1d(3)).normalising("track")


def test_which_norms_there_are() -> None:
    shared = nn.BatchNorm1d(3)
    module = nn.ModuleDict(
        {
            "one": shared,
            "again": shared,
            "none kept": nn.BatchNorm1d(3, track_running_stats=False),
            "instance": nn.InstanceNorm1d(3),
            "layer": nn.LayerNorm(3),
        }
    )
    norms = norms_of(module, places_of(module))
    assert norms.statistics == ("one.running_mean", "one.running_var", "one.num_batches_tracked")
    assert norms.untracked == ("none kept",)
    assert norms.over_examples
    instance = nn.InstanceNorm1d(3, track_running_stats=True)
    assert not norms_of(instance, places_of(instance)).over_examples
    assert norms_of(instance, places_of(instance)).statistics[0] == "running_mean"


def test_a_norm_used_twice_in_a_call_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, momentum=None)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) + x)

    module, x = Twice().double(), _inputs()
    model = functionalize(module)
    _, rows = torch.vmap(lambda each: model(model.params, model.buffers, each))(x)
    module(x[1])
    assert rows["norm.num_batches_tracked"].tolist() == [2, 2]
    torch.testing.assert_close(rows["norm.running_var"][1], module.norm.running_var, rtol=0, atol=1e-14)
