import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from metalearn.training import fit, load_checkpoint, plots, train
from metalearn.training.fit import STEPS, fitted
from metalearn.training.laboratory import prepare_laboratory

PNG = b"\x89PNG\r\n\x1a\n"


def test_curves_and_fit_are_pictures(tmp_path: Path, make_experiment) -> None:
    train(make_experiment(), tmp_path)
    for name in ("curves.png", "fit.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_a_run_without_a_single_record_is_drawn(tmp_path: Path, make_experiment) -> None:
    train(make_experiment(num_steps=0, baseline=False), tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(("count", "marker"), [(1, "o"), (2, "None")])
def test_a_single_record_is_a_point_that_can_be_seen(count: int, marker: str) -> None:
    axes = Figure().subplots()
    plots._draw_course(axes, [{"step": step, "split": "train", "loss": 1.0} for step in range(count)], "loss")
    assert axes.lines[0].get_marker() == marker


def test_fit_says_what_it_shows(tmp_path: Path, make_experiment, monkeypatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(fit, "save", lambda figure, path: drawn.append(figure))
    train(make_experiment(), tmp_path)
    for task, axes in enumerate(drawn[0].axes):
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("x", "y", f"test task {task}")
    assert len(drawn[0].axes) == 4
    assert len(drawn[0].legends) == 1  # the figure's, below the panels


def test_pyplot_is_not_used() -> None:
    code = "import sys, metalearn.training.fit, metalearn.training.plots; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_fits_are_the_adapted_model(tmp_path: Path, make_experiment) -> None:
    experiment = make_experiment()
    train(experiment, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoints/last")
    episodes = experiment.source.episodes("test", [0])
    episode = type(episodes)(*(tuple(part[0] for part in pair) for pair in episodes[:2]), episodes.key[0])
    x = torch.linspace(-5, 5, 7)[:, None]
    fits = fitted(prepare_laboratory(experiment), checkpoint.meta, checkpoint.buffers, episode, x)
    assert tuple(fits) == STEPS

    params = {name.removeprefix("init."): value.clone() for name, value in checkpoint.meta.items()}
    for step in range(max(STEPS) + 1):
        for value in params.values():
            value.requires_grad_()
        outputs = torch.func.functional_call(experiment.module, params, (x,))
        if step in STEPS:
            torch.testing.assert_close(fits[step], outputs.detach())
        inner = torch.func.functional_call(experiment.module, params, (episode.support[0],))
        grads = torch.autograd.grad((inner - episode.support[1]).square().mean(), list(params.values()))
        params = {n: (p - 0.01 * g).detach() for (n, p), g in zip(params.items(), grads, strict=True)}
