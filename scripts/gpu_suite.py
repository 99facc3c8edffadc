"""What a GPU is for: checks that need one, the speed benchmark, the papers' full protocols, as far as the time allows.

    python scripts/gpu_suite.py --out results            # checks, then every case and row that still lacks results
    python scripts/gpu_suite.py --out results --minutes 10 --rows cifar_fs_5way_1shot

A row is a training run of its own folder. When the time is up the run is interrupted, saved and left to go on: the same
command, at another time or on another machine with the folder copied, resumes it. `suite.json` says what was found,
`speed.json` the benchmark (`scripts/bench.py speed`).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_checks import run_checks
from gpu_rows import ROWS, Row

INTERRUPTED = 130
BENCH = Path(__file__).resolve().parent / "bench.py"


SPEED = ("sinusoid-5", "sinusoid-50", "omniglot-5way-32-strided", "omniglot-20way-16-strided")
"""Cases of the speed benchmark."""


def run_speed(name: str, *, out: Path, device: str, peers: Path | None, seconds: float) -> str:
    """Measures a case of the speed benchmark into `speed.json`, unless it is there; says how that ended."""
    report = out / "speed.json"
    if report.exists() and name in json.loads(report.read_text())["measured"]["cases"]:
        return "finished"
    command = [sys.executable, str(BENCH), "speed", "--cases", name, "--device", device, "--json", str(report)]
    command += ["--times-only", "--repeats", "9", *(["--peers", str(peers)] if peers is not None else [])]
    try:
        code = subprocess.run(command, timeout=max(seconds, 1.0), check=False).returncode
    except subprocess.TimeoutExpired:
        return "unfinished"
    return "finished" if code == 0 else f"failed with exit code {code}"


def run_row(row: Row, *, folder: Path, device: str, extra: Sequence[str], seconds: float) -> dict[str, Any]:
    """Trains a row in `folder`, or goes on with it, for at most `seconds`; what is known of it afterwards."""
    results = folder / "results.json"
    if not results.exists():
        resumes = (folder / "checkpoints" / "last" / "state.json").exists()
        arguments = (
            [f"run={folder}", f"device={device}"]
            if resumes
            else [*row.overrides, f"device={device}", f"hydra.run.dir={folder}", *extra]
        )
        command = [sys.executable, "-m", "metalearn.train", *arguments]
        print(f"{row.name}: {'goes on' if resumes else 'starts'}, {seconds:.0f} s at most", flush=True)
        with subprocess.Popen(command) as process:
            try:
                code = process.wait(timeout=max(seconds, 1.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # the step is finished and saved
                code = process.wait()
        if code not in (0, INTERRUPTED):
            return {**asdict(row), "status": f"failed with exit code {code}"}
    if not results.exists():
        return {**asdict(row), "status": "unfinished", "steps": _steps(folder)}
    data = json.loads(results.read_text())
    return {**asdict(row), "status": "finished", "test": data["test"], "protocol": data["protocol"]}


def _steps(folder: Path) -> int:
    try:
        return int(json.loads((folder / "checkpoints" / "last" / "state.json").read_text())["step"])
    except (OSError, ValueError, KeyError):
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs and of suite.json")
    parser.add_argument("--minutes", type=float, default=9.0, help="for the rows together")
    parser.add_argument("--rows", nargs="*", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--speed", nargs="*", choices=SPEED, default=list(SPEED), help="cases of the benchmark")
    parser.add_argument("--peers", type=Path, help="the interpreter of scripts/peers.sh, to measure others beside ours")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--extra", nargs="*", default=[], help="more overrides for rows that start")
    parser.add_argument("--checks-only", action="store_true")
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu_suite: there is no GPU here. Use --device cpu to try the script itself.", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    end = time.monotonic() + 60 * options.minutes
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report: dict[str, Any] = {"device": name, "torch": str(torch.__version__), "checks": run_checks(device), "rows": []}
    report["speed"] = {}
    for case in () if options.checks_only else options.speed:
        seconds = end - time.monotonic()
        report["speed"][case] = run_speed(
            case, out=options.out, device=device.type, peers=options.peers, seconds=seconds
        )
        print(f"{case}: {report['speed'][case]}", flush=True)
    for row in ROWS:
        if options.checks_only or row.name not in options.rows:
            continue
        seconds = end - time.monotonic()
        if seconds < 5:
            report["rows"].append({**asdict(row), "status": "no time left"})
            continue
        report["rows"].append(
            run_row(row, folder=options.out / row.name, device=options.device, extra=options.extra, seconds=seconds)
        )
        print(f"{row.name}: {report['rows'][-1]['status']}", flush=True)
    (options.out / "suite.json").write_text(json.dumps(report, indent=2) + "\n")
    failed = [each for each in report["checks"].values() if not each["passed"]]
    statuses = [*(each["status"] for each in report["rows"]), *report["speed"].values()]
    return 1 if failed or any("failed" in status for status in statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
