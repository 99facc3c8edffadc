"""Episodes of functions out of a family."""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks import GaussianProcess, Regression, SineWaves
from metalearn.tasks.checks import attribute_findings, batch_findings


def plane(x: Tensor, slope: Tensor) -> Tensor:
    return torch.cat([slope * x.sum(-1, keepdim=True), x[..., :1]], dim=-1)


@dataclass(frozen=True)
class Lines:
    """A family of one's own: draw and values, and no more."""

    def draw(self, keys: Tensor) -> Tensor:
        return random.uniform(random.fold_in(keys, 2), (1, 1))  # the number that the points are drawn by, too

    def values(self, drawn: Tensor, x: Tensor) -> Tensor:
        return drawn * x


SOURCES = {
    "sinusoid": {},
    "gaussian_process": {"family": "gaussian_process", "kernel": "matern32", "length_scale": (0.5, 2)},
    "two inputs": {"family": "gaussian_process", "length_scale": 2.0, "input_dim": 2},
    "function": {"family": "function", "function": plane, "parameters": {"slope": (1, 2)}, "input_dim": 3},
    "mixture": {"family": "mixture", "families": ["sinusoid", {"family": "gaussian_process", "weight": 2}]},
    "own": {"family": Lines()},
    "variable shots": {"shots": (2, 6)},
    "noise": {"noise": 0.5},
}


@pytest.fixture(params=SOURCES, ids=str)
def source(request: pytest.FixtureRequest) -> Regression:
    return Regression(**SOURCES[request.param])


def test_episodes_are_well_formed(source: Regression) -> None:
    assert attribute_findings(source) == []
    for split in source.splits:
        assert batch_findings(source, source.episodes(split, range(12)), num_tasks=12) == []


def test_episodes_are_a_pure_function_of_split_index_and_seed(source: Regression) -> None:
    whole = source.episodes("train", range(20), seed=1)
    part = pickle.loads(pickle.dumps(source)).episodes("train", torch.tensor([17, 2]), seed=1)
    for one, other in zip((*whole.support[:2], *whole.query), (*part.support[:2], *part.query), strict=True):
        torch.testing.assert_close(one[[17, 2]], other)
    for split, index, seed in (("test", 0, 1), ("train", 0, 2), ("train", 1, 1)):
        assert not torch.equal(source.episodes(split, [index], seed=seed).query[1][0], whole.query[1][0])


def test_targets_are_the_true_function_and_the_noise(source: Regression) -> None:
    episodes = source.episodes("val", range(200), seed=2)
    residual = episodes.query[1] - source.true_function("val", range(200), episodes.query[0], seed=2)
    if not source.noise:
        assert float(residual.abs().max()) < 1e-4
        return
    assert float(residual.std()) == pytest.approx(source.noise, rel=5 / math.sqrt(2 * residual.numel()))
    support = episodes.support[1] - source.true_function("val", range(200), episodes.support[0], seed=2)
    pair = torch.stack([support.flatten(), residual.flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(residual.numel())


def test_the_card_is_complete_and_plain(source: Regression) -> None:
    card = source.protocol()
    assert card["dataset"] == "regression"
    assert {"family", "x_range", "input_dim", "noise", "shots", "query_shots"} <= set(card)
    assert card == eval(repr(card), {"__builtins__": {}}), "plain data survives its own text"


def test_to_moves_every_tensor(source: Regression) -> None:
    moved = source.to("meta").episodes("train", [0, 1])
    assert {tensor.device.type for tensor in (*moved.support[:2], *moved.query, moved.key)} == {"meta"}
    assert source.episodes("train", [0]).support[0].device.type == "cpu"


def test_shots_of_a_range_are_padded_and_masked() -> None:
    source = Regression(shots=(2, 6), query_shots=4)
    inputs, targets, present = source.episodes("train", range(600)).support
    assert inputs.shape == (600, 6, 1)
    counts = present.examples.sum(1)
    assert torch.equal(present.examples, torch.arange(6) < counts[:, None]), "real rows come first"
    assert (torch.bincount(counts, minlength=7)[2:] > 120 - 5 * 10).all()
    assert int(counts.min()) == 2
    assert float(inputs[~present.examples].abs().max()) == float(targets[~present.examples].abs().max()) == 0
    assert present.outputs.all()
    assert present.outputs.shape == (600, 1)
    full = Regression(shots=6, query_shots=4).episodes("train", range(600))
    assert torch.equal(full.support[1][present.examples], targets[present.examples]), "only the number of rows changes"
    assert torch.equal(full.query[1], source.episodes("train", range(600)).query[1])
    assert source.protocol()["shots"] == [2, 6]


def test_a_familys_draws_have_nothing_to_do_with_the_points() -> None:
    source = Regression(Lines(), x_range=(0, 1))
    episodes = source.episodes("train", range(3000))
    slopes = source.true_function("train", range(3000), torch.ones(1, 1)).flatten()
    pair = torch.stack([slopes, episodes.support[0][:, 0, 0]])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(3000)


def test_options_reach_the_family() -> None:
    assert Regression(amplitude=(1, 2), phase=0.0).family == SineWaves((1, 2), 0.0)
    built = Regression(
        "gaussian_process", kernel="matern52", scale=2, x_range=(0, 3), input_dim=2, length_scale=3
    ).family
    assert built == GaussianProcess("matern52", length_scale=3, scale=2, x_range=(0, 3), input_dim=2)
    mixture = Regression("mixture", families=[{"family": "sinusoid", "phase": 1}, Lines()], x_range=(0, 1)).family
    assert mixture.families == (SineWaves(phase=1), Lines())
    two = Regression("function", function=plane, parameters={"slope": 1}, input_dim=2)
    assert (two.input_shape, two.num_outputs) == ((2,), 2)


class Wrong(Lines):
    def values(self, drawn: Tensor, x: Tensor) -> Tensor:
        return x[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"family": "gaussian_proces"},
            "Unknown family 'gaussian_proces' of functions. Did you mean 'gaussian_process'",
        ),
        ({"kernel": "rbf"}, "`kernel` belongs to family=gaussian_process, and this family is sinusoid, with the param"),
        ({"family": "gaussian_process", "phase": 1}, "`phase` belongs to family=sinusoid"),
        ({"family": "function"}, "needs `function`"),
        ({"family": "mixture"}, "needs `families`, a list"),
        ({"family": "mixture", "families": "sinusoid"}, "needs `families`, a list"),
        ({"family": "mixture", "families": ["sinusoidd"]}, "Did you mean 'sinusoid'"),
        ({"family": "mixture", "families": [{"weight": 2}]}, "a name or a mapping with `family`"),
        ({"family": "mixture", "families": [{"family": "sinusoid", "kernel": 1}]}, "`kernel` belongs to family=gauss"),
        ({"family": "mixture", "families": [{"family": "sinusoid", "zzz": 1}]}, "There is no parameter `zzz`"),
        ({"family": "mixture", "families": [{"family": "sinusoid", "weight": "x"}]}, "weights of a mixture"),
        ({"family": 3}, "an object with the methods `draw` and `values`, got 3"),
        ({"family": Lines}, "an object with the methods"),
        ({"family": Lines(), "phase": 1}, "`phase` goes to the family itself"),
        (
            {"family": Wrong()},
            r"Wrong.values returned \[3, 1\] for x \[2, 3, 1\], expected a tensor \[task, point, output",
        ),
        ({"input_dim": 2}, "A sinusoid is a function of one input, got 2"),
        ({"input_dim": 0}, "`input_dim`"),
        ({"noise": -1}, "`noise` must be a standard deviation of at least 0"),
        ({"noise": math.nan}, "`noise`"),
        ({"shots": [5, 2]}, "wrong order"),
        ({"query_shots": 0}, "`query_shots`"),
        ({"x_range": 3}, r"`x_range` must be two numbers in order, such as \[-5.0, 5.0\], got 3"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Regression(**options)  # type: ignore[arg-type]


def test_a_function_of_the_current_folder_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from metalearn import train

    (tmp_path / "my_own_waves.py").write_text(
        "def wave(x, slope):\n    return slope * x\n\ndef bad(x, slope):\n    return x.y\n"
    )
    monkeypatch.chdir(tmp_path)
    small = ["meta.num_steps=2", "meta.batch_size=2", "eval=none", "eval.num_episodes=4", "device=cpu", "logger=none"]
    task = ["task=regression", "task.family=function", "task.parameters={slope: [0.1, 5.0]}", "task.shots=[2,4]"]
    out = f"hydra.run.dir={tmp_path / 'run'}"
    assert train.main([*task, "task.function=my_own_waves.wave", *small, out]) == 0
    assert (tmp_path / "run" / "fit.png").is_file()
    capsys.readouterr()
    assert train.main([*task, "task.function=my_own_waves.bad", *small, f"hydra.run.dir={tmp_path / 'other'}"]) == 2
    told = capsys.readouterr().err
    assert "my_own_waves.bad raised AttributeError" in told
    assert "line 5, in bad: return x.y" in told
    assert "Traceback" not in told


def global_torch(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return slope * x + torch.rand(())


def global_numpy(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return slope * x * float(np.random.default_rng().normal())


def coin(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return slope * x if torch.rand(()) < 0.5 else -slope * x


def mixing(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return slope * x - (slope * x).mean()


class OwnFamily:
    def draw(self, keys: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(keys), 1, 1)

    def values(self, drawn: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return drawn * x


@pytest.mark.parametrize("function", [global_torch, global_numpy, coin])
def test_a_function_that_draws_by_itself_is_refused(function: Any) -> None:
    with pytest.raises(UsageError, match=f"{function.__name__} gives other values .* called again.*metalearn.random"):
        Regression("function", function=function, parameters={"slope": [1, 2]})


def test_a_family_that_draws_from_the_global_generator_is_refused() -> None:
    with pytest.raises(UsageError, match="OwnFamily gives other values for a task when it is called again"):
        Regression(OwnFamily())


def test_a_function_that_mixes_tasks_is_refused() -> None:
    with pytest.raises(UsageError, match="mixing gives other values for a task when other tasks are in the batch"):
        Regression("function", function=mixing, parameters={"slope": [1, 2]})
