"""Benchmarks: ratios measured in one run, on one thread, in process CPU time (on a GPU between its events).

    python scripts/bench.py sampling --peers ENVIRONMENT/bin/python --json experiments/sampling/sampling.json
    python scripts/bench.py ensemble --json ensembles.json --picture ensembles.png
    python scripts/bench.py memory --peers ENVIRONMENT/bin/python --json memory.json --picture memory.png
    python scripts/bench.py optimizers --peers ENVIRONMENT/bin/python --json cost.json --picture cost.png
    python scripts/bench.py speed --peers ENVIRONMENT/bin/python --json speed.json --picture speed.png
    python scripts/bench.py speed --cases sinusoid omniglot-5way-16-pooled --times-only
    python scripts/bench.py overhead --json experiments/speed/overhead.json

`sampling`: what drawing the episodes costs, as a share of the meta-step that uses them, and beside learn2learn.
`ensemble`: many copies of a model in one call, against a Python loop over them: time and memory (Linux).
`memory`: peak memory and time of every strategy by the number of inner steps, beside higher, TorchOpt and learn2learn
(`--peers` names the Python of an environment that scripts/peers.sh made; without it they are left out) (Linux).
`optimizers`: a step of ours against torch.optim and TorchOpt, and a differentiable inner loop against TorchOpt and
higher (`--peers` as above).
`speed`: the meta-gradient of many models in every way, plain torch's, the peers', JAX's and ours, each after a check
that it is the plain loop's. Cases are added to those that the JSON file has, which is written after each (Linux).
`overhead`: what a run spends beside the meta-gradient, as a share of its step, and the time to its first step.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks import ensemble, memory, optimizers, overhead, sampling, speed, speed_table
from benchmarks.common import Case, between_marks, write_report

CASES: dict[str, Case] = {
    "sampling": sampling.CASE, "ensemble": ensemble.CASE, "memory": memory.CASE, "optimizers": optimizers.CASE,
    "speed": speed.CASE, "overhead": overhead.CASE,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="of the ensemble, the memory, the optimizers or the speed")
    parser.add_argument(
        "--peers", type=Path, help="of the memory, optimizers, sampling, speed: the Python of scripts/peers.sh"
    )
    parser.add_argument("--cases", nargs="+", help="of the speed: its cases or groups of them, instead of all")
    parser.add_argument("--ways", nargs="+", help="of the speed: these beside the plain loop, instead of all")
    parser.add_argument("--times-only", action="store_true", help="of the speed: no first steps, no peak memory")
    parser.add_argument("--page", type=Path, help="of the speed: writes its table into this page in Markdown")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the speed")
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
        write_report(options.json, options.case, found)
    if options.page and options.json:
        text = between_marks(
            options.page.read_text(), options.json.name, speed_table.page(found["cases"], options.ways)
        )
        options.page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
