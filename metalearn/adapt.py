"""`python -m metalearn.adapt run=DIR support=FOLDER query=FOLDER`: labels a person's own images with a trained run.

The function `metalearn.adapt`, the inner loop, has the same name. To import this module binds that name in the package
to the module instead of the function, whatever the package does. So the module can be called, and is then the function.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

if __name__ == "__main__":
    # The imports below take seconds; a signal during them is no traceback. `command_line` installs what follows.
    def _stop(number: int, frame: object) -> NoReturn:
        os.write(2, b"metalearn: stopped before anything was started.\n")
        os._exit(130)

    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _stop)

from metalearn import config as configuration
from metalearn import inner
from metalearn.config import AdaptConfig, Composed
from metalearn.errors import UsageError
from metalearn.use import as_text, draw_gallery, label_images, load, write_csv

CSV, PICTURE = "predictions.csv", "predictions.png"
_PATHS = ("run", "support", "query", "output")


class _CallableModule(ModuleType):
    """This module, which can be called as the function that it hides."""

    __call__ = staticmethod(inner.adapt)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Functions can be pickled, and so can what stands for one."""
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallableModule


def _run(argv: Sequence[str]) -> int:
    arguments = [configuration.quoted_path(argument, _PATHS) for argument in argv]
    if configuration.parse(arguments).multirun:
        raise UsageError("adapt uses one run at a time: leave -m out and call it once for each value.")
    return configuration.run_hydra("adapt", arguments, _adapt)


def _adapt(composed: Composed) -> None:
    asked: AdaptConfig = composed.config
    run, support, query = (_given(name, getattr(asked, name)) for name in ("run", "support", "query"))
    output = Path(_given("output", asked.output)).expanduser()
    _check_free(output)
    learner = load(run, checkpoint=asked.checkpoint.value, device=asked.device, source=asked.source)
    labelled = label_images(
        learner,
        Path(support).expanduser(),
        Path(query).expanduser(),
        inverted=asked.inverted,
        on_bad_image=asked.on_bad_image.value,
        num_inner_steps=asked.num_inner_steps,
        batch_size=asked.batch_size,
    )
    draw_gallery(labelled, output / PICTURE)  # first, as more can go wrong with it
    write_csv(labelled, output / CSV)
    print(as_text(labelled))
    if learner.transductive:
        print("(The model normalises by the set at hand: an image's label depends on the images it is labelled with.)")
    print(f"Written to {output / CSV} and {PICTURE}")


def _given(name: str, value: str | None) -> str:
    if not value:
        raise UsageError(
            f"{name}= is missing: python -m metalearn.adapt run=DIR support=FOLDER query=FOLDER (see --help)."
        )
    return value


def _check_free(output: Path) -> None:
    """Before the work is done: nothing of an earlier call is written over."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"output={output} is a file: give a folder.")
    for name in (CSV, PICTURE):
        if (output / name).exists():
            raise UsageError(f"output={output} already holds {name}. Choose another output=….")


main, command = configuration.command_line(_run)

if __name__ == "__main__":
    command()
