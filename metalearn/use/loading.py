"""`metalearn.load`: from a run directory to a learner, without the run's data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from metalearn.config import TrainConfig, build_source, read_config
from metalearn.config.build import build_algorithm, build_module
from metalearn.errors import UsageError, did_you_mean
from metalearn.functional import functionalize
from metalearn.normalisation import policy_of
from metalearn.training import TaskCard, find_checkpoint, load_checkpoint, resolve_device
from metalearn.training.checkpoint import check_fits
from metalearn.training.experiment import has_inner_steps
from metalearn.training.run_directory import CHECKPOINTS
from metalearn.types import Tensors
from metalearn.use.learner import Learner

_CHECKPOINTS = ("best", "last")


def load(
    run: str | os.PathLike[str],
    *,
    checkpoint: str = "best",
    device: str = "auto",
    num_inner_steps: int | None = None,
    source: str | None = None,
) -> Learner:
    """The learner of a run.

    It takes the run directory alone (config.yaml, task.json, checkpoints/), so a copy of it on another machine will do,
    without the data. Of what config.yaml names, only models and algorithms are imported and called.

    Args:
        run: the run directory.
        checkpoint: `"best"` (on validation; the last one of a run without validation) or `"last"`.
        device: a torch device, or `"auto"`: CUDA where there is one.
        num_inner_steps: of adaptation; by default as many as in the run's test (`eval.num_inner_steps`).
        source: of a run on a mixture whose sources read pictures, standardise numbers or name classes differently, the
            name of the one whose examples are to come.

    Raises:
        UsageError: no such run or checkpoint, one of another version or damaged, or the device is not there.

    Example:
        learner = metalearn.load("outputs/sinusoid/…")
        learner.adapt([[0.0], [1.0], [2.0]], [0.0, 0.8, 0.9]).predict([[1.5]])
    """
    if not isinstance(run, (str, os.PathLike)):
        raise UsageError(f"run is {run!r}: give the folder of a run, such as load('outputs/glyphs/…').")
    folder = Path(run).expanduser()
    if checkpoint not in _CHECKPOINTS:
        raise UsageError(f"checkpoint={checkpoint!r} is unknown. {did_you_mean(str(checkpoint), _CHECKPOINTS)}")
    config = read_config(folder)
    # A run without validation has no best checkpoint: its results are the last one's too.
    path = find_checkpoint(folder if checkpoint == "best" else folder / CHECKPOINTS / checkpoint)
    card = _card(folder, config)
    where = resolve_device(str(device))
    task = card if source is None else card.of_source(source)
    with torch.inference_mode(False):  # what is made in it could not be adapted
        found = load_checkpoint(path, device=where)
        with _default_dtype(found.meta):
            model = functionalize(build_module(config, card), seed=config.seed).to(where)
            algorithm = build_algorithm(config, card)
            expected = algorithm.init(model.train(), card)
        check_fits(found.meta, expected, path=path, what="meta-parameter")
        policy = policy_of(getattr(algorithm, "normalisation", "module"))
        buffers = policy.initial_buffers(model, config.inner.num_steps)
        check_fits(found.buffers, buffers, path=path, what="buffer")
    learner = Learner(
        task=task,
        algorithm=algorithm,
        model=model.eval().with_buffers(found.buffers),
        meta=found.meta,
        checkpoint=path.name,
        step=found.step,
        run=str(folder),
    )
    at_test = config.eval.num_inner_steps if num_inner_steps is None and has_inner_steps(algorithm) else num_inner_steps
    return learner if at_test is None else learner.with_inner_steps(at_test)


@contextmanager
def _default_dtype(meta: Tensors) -> Iterator[None]:
    """While a module is built, the dtype that the run was trained in: the caller's own default may be another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(next((value.dtype for value in meta.values() if value.is_floating_point()), before))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _card(folder: Path, config: TrainConfig) -> TaskCard:
    card = TaskCard.read(folder)
    if card is not None:
        return card
    # A run of before there was a task.json: its task itself can say what it is, where its data are.
    try:
        return TaskCard.of(build_source(config))
    except UsageError as error:
        raise UsageError(
            f"{folder} has no task.json (an older version trained it), and its task can not be built here: {error} "
            f"Where its data are, python -m metalearn.evaluate run=… writes the file."
        ) from None
