"""Meta-training: the loop, its checkpoints, loggers, progress, results and pictures.

The room takes plain objects and knows nothing of configuration files:

    experiment = Experiment(source=..., module=..., algorithm=..., strategy=..., execution=...,
                            outer_optimizer=partial(torch.optim.Adam, lr=1e-3),
                            settings=TrainingSettings(num_steps=1000, batch_size=16), config={...})

    train(experiment, run_directory, *, resume=False, logger=None, progress=None, resume_command=None,
          on_validation=None, stop=None) -> Results
        Trains, validates, tests and fills `run_directory`: metrics.jsonl, results.json, curves.png, (fit.png,)
        task.json, data.json, checkpoints/last, checkpoints/best. A new run needs a directory without a run in it;
        `resume=True` needs an interrupted one, written under the same `experiment.config`. Raises `Interrupted` after
        SIGINT or SIGTERM, when the step is done and saved (its text ends with `resume_command`; exit code 130),
        `KeyboardInterrupt` at a second signal, and `UsageError` for what the user can mend (exit code 2).

    evaluate(experiment, checkpoint, *, num_episodes=None, num_inner_steps=None, split="test", baseline=True,
             progress=None) -> Results
        Measures a checkpoint. `checkpoint` is a run directory (its best checkpoint, else its last) or a checkpoint's
        own folder. `None` takes the number from `experiment.settings`. Writes nothing: `Results.save(path)` does.

    Results: `.data` is the content of results.json, `.save(path)`, `.summary()` a few lines of text for people.

Helpers for a command line: `run_status(run_directory)` -> "empty" | "interrupted" | "finished";
`resolve_device("auto")` -> torch.device; `Wandb(...)`, `TensorBoard(...)`, `Several([...])` as `logger`;
`progress_for(stream)`.
"""

from metalearn.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from metalearn.training.experiment import Experiment, TrainingSettings, resolve_device
from metalearn.training.interrupts import Interrupted, StopFlag, Stopped
from metalearn.training.loggers import Logger, Several, TensorBoard, Wandb
from metalearn.training.progress import LineProgress, LiveProgress, Progress, SilentProgress, progress_for
from metalearn.training.report import evaluate
from metalearn.training.results import Results
from metalearn.training.run_directory import run_status
from metalearn.training.task_card import TaskCard
from metalearn.training.trainer import train

__all__ = [
    "Checkpoint",
    "Experiment",
    "Interrupted",
    "LineProgress",
    "LiveProgress",
    "Logger",
    "Progress",
    "Results",
    "Several",
    "SilentProgress",
    "StopFlag",
    "Stopped",
    "TaskCard",
    "TensorBoard",
    "TrainingSettings",
    "Wandb",
    "evaluate",
    "find_checkpoint",
    "load_checkpoint",
    "progress_for",
    "resolve_device",
    "run_status",
    "save_checkpoint",
    "train",
]
