"""What a meta-gradient of each algorithm costs: the work of its cell of Omniglot 5-way 1-shot, 16 tasks on one core.

    python experiments/table/costs.py                     # all of them: costs.json
    python experiments/table/costs.py --only imaml cavia  # some; the others stay

The time is the process's own, the least of several calls; the memory what a call takes at its peak over what the
process has before it. Each algorithm has a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cells import ALGORITHMS, HERE, overrides_of  # cells.py puts `scripts` on the path

COSTS = HERE / "costs.json"
BENCHMARK = "omniglot_5way_1shot"
REPEATS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(ALGORITHMS), default=list(ALGORITHMS), help="algorithms")
    parser.add_argument("--measure", metavar="RUN", type=Path, help=argparse.SUPPRESS)  # a process of its own
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measured(options.measure)))
        return 0
    for algorithm in options.only:
        known = json.loads(COSTS.read_text()) if COSTS.exists() else {}
        known[algorithm] = cost_of(algorithm)
        COSTS.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
        print(algorithm, known[algorithm], flush=True)
    return 0


def cost_of(algorithm: str) -> dict[str, float]:
    """Seconds and megabytes of a meta-gradient."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        few = ["meta.num_steps=0", "eval.every=0", "eval.val_episodes=0", "eval.num_episodes=1", "eval.baseline=false"]
        arguments = [*overrides_of((algorithm, BENCHMARK)), *few, "device=cpu", "logger=none", f"hydra.run.dir={run}"]
        subprocess.run([sys.executable, "-m", "metalearn.train", *arguments], check=True, stdout=subprocess.DEVNULL)
        told = subprocess.run(
            [sys.executable, __file__, "--measure", str(run)], check=True, stdout=subprocess.PIPE, text=True
        )
    found: dict[str, float] = json.loads(told.stdout)
    return found


def measured(run: Path) -> dict[str, float]:
    """The cost of a meta-gradient of the run in a folder, in this process."""
    import torch
    from benchmarks.common import peak_megabytes, process_seconds

    from metalearn import config
    from metalearn.training.gradients import episodes_of, forms_of, gradient_of
    from metalearn.training.laboratory import prepare_laboratory

    torch.set_num_threads(1)
    laboratory = prepare_laboratory(config.build_experiment(config.read_config(run)))
    experiment = laboratory.experiment
    meta, episodes = laboratory.initial_meta(), episodes_of(laboratory, 0)
    form = forms_of(experiment, 0)[0]
    gradient = gradient_of(experiment.execution, laboratory, form, laboratory.initial_buffers())

    def work() -> None:
        gradient(meta, episodes)

    work()  # what torch loads at its first calls is not the algorithm's
    megabytes = peak_megabytes(work)
    times = [process_seconds(work) for _ in range(REPEATS)]
    return {"seconds": min(times), "median_seconds": statistics.median(times), "peak_megabytes": megabytes}


if __name__ == "__main__":
    sys.exit(main())
