"""fit.png: what a regression looks like before and after adaptation, for a source that knows its true function."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metalearn import inner, tree
from metalearn.inner import Adapted
from metalearn.tasks.padding import unpadded
from metalearn.training.checkpoint import Checkpoint
from metalearn.training.experiment import has_inner_steps
from metalearn.training.guard import blamed
from metalearn.training.laboratory import Laboratory
from metalearn.training.plots import save
from metalearn.training.run_directory import FIT
from metalearn.types import Examples, Tensors

STEPS = (0, 1, 5, 10)
_NUM_TASKS = 4
_NUM_POINTS = 200


def draw_fit(laboratory: Laboratory, checkpoint: Checkpoint, folder: Path) -> None:
    """Draws the fit after 0, 1, 5 and 10 inner steps on a few test tasks; nothing for a source that has no curve.

    Args:
        laboratory: the experiment's parts.
        checkpoint: what was learned.
        folder: the run directory.

    Raises:
        UsageError: the picture can not be written.
    """
    source: Any = laboratory.test_source
    if not hasattr(source, "true_function") or source.input_shape != (1,) or source.num_outputs != 1:
        return
    seed, indices = laboratory.experiment.settings.seed, list(range(_NUM_TASKS))
    episodes = source.episodes("test", indices, seed=seed)
    x = _grid(source, episodes.support[0])
    with blamed(f"{type(laboratory.test_source.source).__name__}.true_function('test', …)", plugin=source.source):
        truth = source.true_function("test", indices, x, seed=seed)
    figure = Figure(figsize=(3.4 * _NUM_TASKS, 3.2), layout="constrained")
    for task, axes in enumerate(figure.subplots(1, _NUM_TASKS, squeeze=False)[0]):
        episode = tree.entry(episodes, task)
        fits = fitted(laboratory, checkpoint.meta, checkpoint.buffers, episode, x)
        axes.set(xlabel="x", ylabel="y", title=f"test task {task}")
        _draw_task(axes, x, truth[task], fits, unpadded(episode.support))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(STEPS) + 2, frameon=False)
    save(figure, folder / FIT)


def fitted(laboratory: Laboratory, meta: Tensors, buffers: Tensors, episode: Any, x: Tensor) -> dict[int, Tensor]:
    """The predictions at `x` `[point, 1]` after each number of inner steps in `STEPS`, for one episode."""
    algorithm = laboratory.experiment.algorithm
    model = laboratory.eval_model.with_buffers(buffers)
    if not has_inner_steps(algorithm):
        with torch.no_grad():
            adapted = algorithm.adapt(model, meta, model.buffers, unpadded(episode.support))
            return {0: algorithm.predict(model, meta, adapted, x)}
    problem = replace(algorithm.problem(model), num_inner_steps=max(STEPS), outer_weights=None)
    with torch.no_grad():
        return {
            step: _after(algorithm, step).predict(model, meta, Adapted(*state), x)
            for step, state in enumerate(inner.unroll(problem, meta, episode))
            if step in STEPS
        }


def _after(algorithm: Any, step: int) -> Any:
    """The algorithm with so many inner steps, where it has any: per-step statistics are those after the last."""
    known = is_dataclass(algorithm) and any(entry.name == "num_inner_steps" for entry in fields(algorithm))
    return replace(algorithm, num_inner_steps=step) if known else algorithm


def _grid(source: Any, inputs: Tensor) -> Tensor:
    low, high = getattr(source, "x_range", (inputs.min().item(), inputs.max().item()))
    return torch.linspace(low, high, _NUM_POINTS, device=inputs.device)[:, None]


def _draw_task(axes: Axes, x: Tensor, truth: Tensor, fits: dict[int, Tensor], support: Examples) -> None:
    grid = x.flatten().cpu()
    axes.plot(grid, truth.flatten().cpu(), color="black", linewidth=1.5, label="true function")
    for shade, (step, values) in enumerate(fits.items()):
        style = ":" if step == 0 and len(fits) > 1 else "-"
        plural = "" if step == 1 else "s"
        label = f"{step} inner step{plural}" if len(fits) > 1 else "prediction"
        axes.plot(grid, values.flatten().cpu(), style, color=f"C{shade}", label=label)
    axes.plot(*(part.flatten().cpu() for part in support[:2]), "^", color="black", markersize=5, label="support")
    axes.grid(alpha=0.3)
