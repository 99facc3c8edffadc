"""Benchmarks: ratios measured in one run, on one thread, in process CPU time.

    python scripts/bench.py sampling --json experiments/sampling/sampling.json
    python scripts/bench.py ensemble --json ensembles.json --picture ensembles.png
    python scripts/bench.py memory --peers ENVIRONMENT/bin/python --json memory.json --picture memory.png
    python scripts/bench.py optimizers --peers ENVIRONMENT/bin/python --json cost.json --picture cost.png

`sampling`: what drawing the episodes costs, as a share of the meta-step that uses them.
`ensemble`: many copies of a model in one call, against a Python loop over them: time and memory (Linux).
`memory`: peak memory and time of every strategy by the number of inner steps, beside higher, TorchOpt and learn2learn
(`--peers` names the Python of an environment that scripts/peers.sh made; without it they are left out) (Linux).
`optimizers`: a step of ours against torch.optim and TorchOpt, and a differentiable inner loop against TorchOpt and
higher (`--peers` as above).
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks import ensemble, memory, optimizers, sampling
from benchmarks.common import Case

from metalearn.training.protocol import device_name

CASES: dict[str, Case] = {
    "sampling": sampling.CASE, "ensemble": ensemble.CASE, "memory": memory.CASE, "optimizers": optimizers.CASE,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="of the ensemble, the memory or the optimizers")
    parser.add_argument(
        "--peers", type=Path, help="of the memory, the optimizers: the Python that has higher, torchopt and learn2learn"
    )
    parser.add_argument("--part", nargs="+", help="what the processes do that a case starts")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    case = CASES[options.case]
    if options.part:
        assert case.part is not None
        case.part(options.part)
        return 0
    if options.picture and case.picture is None:
        parser.error(f"{options.case} has no picture")
    found = case.measure(options)
    for name, measured in found.items():
        print(case.lines(name, measured))
    if options.picture and case.picture is not None:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        case.picture(found, options.picture)
    if options.json:
        machine = {"device": device_name(torch.device("cpu")), "threads": 1, "python": platform.python_version()}
        report = {"case": options.case, "machine": machine, "torch": str(torch.__version__), "measured": found}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
