"""Float32 against bfloat16 mixed precision at equal meta steps: accuracies reached, and how far the gradients are off.

python experiments/precision/run.py --runs FOLDER     # makes FOLDER's runs and precision.json beside this file
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMON = (
    "task=glyphs", "task.ways=5", "task.shots=1", "task.query_shots=5", "model=conv4", "model.filters=16",
    "execution.tasks=vmap", "meta.num_steps=300", "meta.batch_size=8", "meta.log_every=50", "eval.every=100",
    "eval.val_episodes=100", "eval.num_episodes=600", "eval.baseline=false", "logger=none", "device=cpu",
)  # fmt: skip
INNER = {"rate 0.4, 1 step": (0.4, 1), "rate 0.1, 5 steps": (0.1, 5)}
PRECISIONS = ("float32", "bf16")


def result_of(folder: Path, precision: str, *, rate: float, num_steps: int, seed: int) -> dict[str, Any]:
    """One run, or what is left of it in its folder."""
    if not (folder / "results.json").exists():
        own = (f"execution.precision={precision}", f"inner.lr={rate}", f"inner.num_steps={num_steps}", f"seed={seed}")
        command = [sys.executable, "-m", "metalearn.train", *COMMON, *own, f"hydra.run.dir={folder}"]
        subprocess.run(command, check=True)
    found = json.loads((folder / "results.json").read_text())
    protocol = found["protocol"]
    return {
        "test": found["test"],
        "precision_errors": protocol.get("precision_errors", []),
        "checkpoint_step": protocol["meta_steps_of_checkpoint"],
        "seconds": protocol["wall_time_seconds"],
        "versions": protocol["versions"],
        "device": protocol["device"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, (rate, num_steps) in INNER.items():
        for precision in PRECISIONS:
            for seed in range(options.seeds):
                folder = options.runs / f"{rate}x{num_steps}-{precision}-{seed}"
                row = result_of(folder, precision, rate=rate, num_steps=num_steps, seed=seed)
                found.setdefault(name, {}).setdefault(precision, []).append({"seed": seed, **row})
    report = {"command": "python -m metalearn.train " + " ".join(COMMON), "runs": found}
    (HERE / "precision.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
