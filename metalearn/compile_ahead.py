"""`python -m metalearn.compile_ahead RUN CHANGES THREADS`: fills torch's cache with a run's compiled meta-gradients.

A run starts it beside itself (`execution.compile`), so that nobody waits for a compiler. It is no command for people.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":

    def _end_with_the_run() -> None:
        sys.stdin.buffer.read()  # the run holds the other end open
        os._exit(1)

    threading.Thread(target=_end_with_the_run, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(5)  # what trains goes first, but on one core this is to be done one day

import torch

from metalearn import config as configuration
from metalearn.errors import UsageError
from metalearn.training.chosen import as_chosen
from metalearn.training.gradients import warm_up
from metalearn.training.guard import in_a_line
from metalearn.training.laboratory import prepare_laboratory, repeatable


def main(argv: Sequence[str]) -> int:
    """Compiles; prints one line of JSON: `error`, empty where all went well, and `seconds`.

    Args:
        argv: the run directory, changes to its configuration as JSON, the number of threads.
    """
    folder, changes, num_threads = Path(argv[0]), json.loads(argv[1]), int(argv[2])
    torch.set_num_threads(num_threads)  # compiled code is made for a number of threads
    began, error = time.monotonic(), ""
    try:
        with configuration.importable_folder(), repeatable():
            config = configuration.read_config(folder, changes.items())
            warm_up(prepare_laboratory(as_chosen(configuration.build_experiment(config), folder)))
    except UsageError as mistake:
        error = " ".join(str(mistake).split())
    except Exception as failure:
        error = in_a_line(failure)
    print("\n" + json.dumps({"error": error, "seconds": round(time.monotonic() - began, 2)}), flush=True)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the thread above still reads, which would keep the interpreter from ending
