"""Numbers that are read with the next meta step, as on a GPU: the same run, without a look at the device in between."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.errors import PluginError
from metalearn.metagrad import Truncated
from metalearn.tasks import Sinusoid
from metalearn.training import load_checkpoint, meta_step, train
from metalearn.training.laboratory import prepare_laboratory
from metalearn.training.meta_step import Diverged, MetaStep, make_optimizer
from metalearn.training.state import TrainState

_LOOKS = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default,
}  # fmt: skip
"""What makes the host wait for a device."""


class Looks(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in _LOOKS
        return function(*args, **(kwargs or {}))


class Spoilt(Sinusoid):
    """From episode 9 on, the targets are too large for the squares of float32."""

    value = 1e30

    def episodes(self, split, indices, *, seed=0):
        found = super().episodes(split, indices, seed=seed)
        if split == "train" and 9 in list(indices):
            found = found._replace(query=(found.query[0], found.query[1] * self.value))
        return found

    def to(self, device):
        return self


class Missing(Spoilt):
    value = float("nan")


class Raising(Sinusoid):
    def episodes(self, split, indices, *, seed=0):
        if split == "train" and 9 in list(indices):
            raise KeyError("no such sensor")
        return super().episodes(split, indices, seed=seed)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs read their numbers late, though they are on a CPU."""
    before = MetaStep.__post_init__

    def post_init(self: MetaStep) -> None:
        self.late = True
        before(self)

    monkeypatch.setattr(MetaStep, "__post_init__", post_init)


def files(folder: Path, content) -> list[bytes]:
    return [
        (folder / "metrics.jsonl").read_bytes(),
        *(content(folder / "checkpoints" / name) for name in ("last", "best")),
    ]


@pytest.mark.parametrize("changes", [{}, {"clip": 0.1}, {"log_every": 4, "num_steps": 7}, {"strategy": Truncated(1)}])
def test_a_run_is_the_same_bit_for_bit(tmp_path: Path, make_experiment, content, request, changes) -> None:
    train(make_experiment(**changes), tmp_path / "at once")
    request.getfixturevalue("late")
    train(make_experiment(**changes), tmp_path / "late")
    one, two = (files(tmp_path / name, content) for name in ("at once", "late"))
    if "clip" in changes:  # the norm is a float32 there, and a Python float here
        assert len(one[0]) == pytest.approx(len(two[0]), rel=0.05)
    else:
        assert one == two


@pytest.mark.parametrize(("source", "error"), [(Spoilt, Diverged), (Missing, PluginError), (Raising, PluginError)])
def test_what_failed_is_saved_as_it_was_before(
    tmp_path: Path, make_experiment, content, request, source, error: type[Exception]
) -> None:
    messages = []
    for name in ("at once", "late"):
        if name == "late":
            request.getfixturevalue("late")
        with pytest.raises(error) as caught:
            train(make_experiment(source=source(shots=5, query_shots=5), log_every=10, eval_every=0), tmp_path / name)
        messages.append(str(caught.value).replace(name, "…"))
    assert messages[0] == messages[1]
    found = [load_checkpoint(tmp_path / name / "checkpoints/last") for name in ("at once", "late")]
    assert [each.step for each in found] == [3, 3]  # of 3 tasks each: episode 9 is in the fourth
    assert content(tmp_path / "at once/checkpoints/last") == content(tmp_path / "late/checkpoints/last")
    assert found[0].loop["window"] == found[1].loop["window"]
    assert found[0].loop["window_steps"] == found[1].loop["window_steps"] == 3


def test_a_first_step_that_was_none_leaves_the_optimizer_without_state(make_experiment) -> None:
    class AtOnce(Spoilt):
        def episodes(self, split, indices, *, seed=0):
            return super().episodes(split, [9, 9, 9] if 0 in list(indices) else indices, seed=seed)

    laboratory = prepare_laboratory(make_experiment(source=AtOnce(shots=5, query_shots=5)))
    state = begun(laboratory)
    before = {name: value.clone() for name, value in state.meta.items()}
    step = MetaStep(laboratory, late=True)
    moved = step(state)
    assert moved.step == 1
    assert moved.optimizer.state
    with pytest.raises(Diverged, match="at meta step 1;"):
        step(moved)
    kept = step.kept(moved)
    assert kept.step == 0
    assert all(torch.equal(kept.meta[name], before[name]) for name in before)
    assert not kept.optimizer.state


def test_nothing_is_looked_at_until_it_is_due(make_experiment) -> None:
    laboratory = prepare_laboratory(make_experiment())
    counts = {}
    for late in (False, True):
        step, state = MetaStep(laboratory, late=late), begun(laboratory)
        state = step(step(state))
        with Looks() as looks:
            outcome = step._outcome(state, laboratory.source.source.episodes("train", range(3)))
            numbers = meta_step.Numbers.of(outcome)
        assert looks.count == 0
        assert numbers._read is None
        state = step(state)
        counts[late] = state.window_steps
        assert step.settled(state).window_steps == 3
    assert counts == {False: 3, True: 2}


def begun(laboratory) -> TrainState:
    meta = laboratory.initial_meta()
    optimizer = make_optimizer(laboratory.experiment, meta)
    return TrainState(step=0, meta=meta, optimizer=optimizer, buffers=laboratory.initial_buffers())
