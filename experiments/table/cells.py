"""The cells of the table: algorithms x benchmarks, each a command of `metalearn.train` with what was published."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "scripts"))

from gpu_rows import ROWS  # noqa: E402 (the published numbers are those of the full protocols' rows)

STEPS = HERE / "steps.json"


@dataclass(frozen=True)
class Benchmark:
    """A data set with its numbers of classes and examples, at the budget of a CPU.

    Attributes:
        title: in the table.
        overrides: what all algorithms are given.
        minutes: of training, on one thread, that the number of meta steps is chosen for.
        metric: what is told, `"accuracy"` or `"loss"`.
    """

    title: str
    overrides: tuple[str, ...]
    minutes: float
    metric: str = "accuracy"


BENCHMARKS = {
    "omniglot_5way_1shot": Benchmark(
        "Omniglot 5-way 1-shot",
        (
            "task=omniglot", "task.ways=5", "task.shots=1", "task.query_shots=5", "model.downsampling=stride",
            "meta.batch_size=16", "meta.schedule=cosine",
        ),
        10.0,
    ),
    "omniglot_5way_5shot": Benchmark(
        "Omniglot 5-way 5-shot",
        (
            "task=omniglot", "task.ways=5", "task.shots=5", "task.query_shots=5", "model.downsampling=stride",
            "meta.batch_size=16", "meta.schedule=cosine",
        ),
        10.0,
    ),
    "omniglot_20way_1shot": Benchmark(
        "Omniglot 20-way 1-shot",
        (
            "task=omniglot", "task.ways=20", "task.shots=1", "task.query_shots=3", "model.downsampling=stride",
            "meta.batch_size=8", "meta.schedule=cosine",
        ),
        10.0,
    ),
    "omniglot_20way_5shot": Benchmark(
        "Omniglot 20-way 5-shot",
        (
            "task=omniglot", "task.ways=20", "task.shots=5", "task.query_shots=3", "model.downsampling=stride",
            "meta.batch_size=8", "meta.schedule=cosine",
        ),
        10.0,
    ),
    "cifar_fs_5way_1shot": Benchmark(
        "CIFAR-FS 5-way 1-shot",
        (
            "task=cifar_fs", "task.ways=5", "task.shots=1", "task.query_shots=10", "model=conv4_32",
            "meta.batch_size=4", "meta.schedule=cosine",
        ),
        10.0,
    ),
    "cifar_fs_5way_5shot": Benchmark(
        "CIFAR-FS 5-way 5-shot",
        (
            "task=cifar_fs", "task.ways=5", "task.shots=5", "task.query_shots=10", "model=conv4_32",
            "meta.batch_size=4", "meta.schedule=cosine",
        ),
        10.0,
    ),
    "sinusoid_10shot": Benchmark(
        "sinusoid 10-shot", ("task=sinusoid", "task.shots=10", "meta.schedule=cosine"), 2.0, metric="loss"
    ),
}  # fmt: skip

_OMNIGLOT = ("omniglot_5way_1shot", "omniglot_20way_1shot")
_CIFAR_FS = ("cifar_fs_5way_1shot", "cifar_fs_5way_5shot")


@dataclass(frozen=True)
class Algorithm:
    """How an algorithm is run.

    Attributes:
        title: in the table.
        overrides: by benchmark, or `""` for all; those of both are given.
        benchmarks: where it is run.
    """

    title: str
    overrides: dict[str, tuple[str, ...]]
    benchmarks: tuple[str, ...]


def _inner(steps: int, lr: float, at_test: int | None = None) -> tuple[str, ...]:
    return (f"inner.num_steps={steps}", f"inner.lr={lr:g}", f"eval.num_inner_steps={at_test or steps}")


_MAML = {
    "omniglot_5way_1shot": _inner(1, 0.4, 3),
    "omniglot_20way_1shot": _inner(5, 0.1),
    "cifar_fs_5way_1shot": _inner(5, 0.01, 10),
    "cifar_fs_5way_5shot": _inner(5, 0.01, 10),
    "sinusoid_10shot": _inner(1, 0.01, 10),
}
_WIDE = ("omniglot_5way_1shot", "sinusoid_10shot")
_TELLING = (*_OMNIGLOT, *_CIFAR_FS)

ALGORITHMS = {
    "maml": Algorithm("MAML", {"": ("algorithm=maml",), **_MAML}, (*_TELLING, "sinusoid_10shot")),
    "fomaml": Algorithm("first-order MAML", {"": ("algorithm=fomaml",), **_MAML}, _WIDE),
    "maml_plus_plus": Algorithm(
        "MAML++",
        {
            "": (
                "algorithm=maml_plus_plus", "algorithm.multi_step_until=100", *_inner(3, 0.1),
            ),
        },
        ("omniglot_5way_1shot",),
    ),
    "anil": Algorithm("ANIL", {"": ("algorithm=anil",), **_MAML}, _WIDE),
    "boil": Algorithm("BOIL", {"": ("algorithm=boil",), **_MAML}, _WIDE),
    "meta_sgd": Algorithm(
        "Meta-SGD",
        {
            "": ("algorithm=meta_sgd",), "omniglot_5way_1shot": _inner(1, 0.1), "omniglot_20way_1shot": _inner(1, 0.1),
            "cifar_fs_5way_1shot": _inner(1, 0.01), "cifar_fs_5way_5shot": _inner(1, 0.01),
            # Tested with the one step that it learns the rates of: more of them diverge.
            "sinusoid_10shot": _inner(1, 0.01),
        },
        (*_TELLING, "sinusoid_10shot"),
    ),
    "meta_curvature": Algorithm(
        "Meta-Curvature", {"": ("algorithm=meta_curvature",), **_MAML}, _WIDE
    ),
    "reptile": Algorithm(
        "Reptile",
        {
            "": (
                "algorithm=reptile", "inner.optimizer=adam", "inner.options={b1: 0}", "meta.optimizer=sgd",
                "meta.lr=1.0", "meta.schedule=linear", "algorithm.batch_size=10", *_inner(5, 0.001, 50),
            ),
        },
        ("omniglot_5way_1shot",),
    ),
    "imaml": Algorithm(
        "iMAML",
        {
            # As the authors' code, whose system is (24 I + H) v = g (`gpu_rows.py`).
            "": ("algorithm=imaml", "algorithm.proximal=0.5", "metagrad.num_iterations=5", "metagrad.damping=23.5"),
            "omniglot_5way_1shot": _inner(16, 0.1),
        },
        ("omniglot_5way_1shot",),
    ),
    "cavia": Algorithm(
        "CAVIA",
        {
            "": ("algorithm=cavia",), "omniglot_5way_1shot": _inner(2, 1.0),
            "sinusoid_10shot": ("algorithm.num_context=5", *_inner(1, 1.0)),
        },
        _WIDE,
    ),
    "proto_maml": Algorithm(
        "ProtoMAML", {"": ("algorithm=proto_maml",), "omniglot_5way_1shot": _inner(1, 0.1)}, ("omniglot_5way_1shot",)
    ),
    "protonet": Algorithm("ProtoNet", {"": ("algorithm=protonet",)}, _TELLING),
    "r2d2": Algorithm("R2-D2", {"": ("algorithm=r2d2",)}, (*_TELLING, "sinusoid_10shot")),
    "pretraining": Algorithm("plain training, nearest prototypes", {"": ("algorithm=pretraining",)}, _TELLING),
    "pretraining_fine_tuned": Algorithm(
        "plain training, fine-tuned head", {"": ("algorithm=pretraining_fine_tuned",)}, ("omniglot_5way_1shot",)
    ),
}  # fmt: skip

CELLS = tuple((algorithm, benchmark) for benchmark in BENCHMARKS for algorithm in ALGORITHMS
              if benchmark in ALGORITHMS[algorithm].benchmarks)  # fmt: skip


def row_of(algorithm: str, benchmark: str) -> str:
    """What the full protocol is called in `gpu_rows.py`, if it is there."""
    return benchmark if algorithm == "maml" else f"{benchmark}_{algorithm}"


def published_of(algorithm: str, benchmark: str) -> str | None:
    """The number of the full protocol's row, where there is one."""
    return {row.name: row.published for row in ROWS}.get(row_of(algorithm, benchmark))


def name_of(cell: tuple[str, str]) -> str:
    """As its folder and files are called."""
    return f"{cell[1]}-{cell[0]}"


def overrides_of(cell: tuple[str, str]) -> list[str]:
    """Without the number of meta steps."""
    algorithm, benchmark = ALGORITHMS[cell[0]], BENCHMARKS[cell[1]]
    return [*benchmark.overrides, *algorithm.overrides[""], *algorithm.overrides.get(cell[1], ())]


def known_steps() -> dict[str, dict[str, float]]:
    """What `run.py calibrate` has found, by the names of cells."""
    found: dict[str, dict[str, float]] = json.loads(STEPS.read_text()) if STEPS.exists() else {}
    return found


def command_of(cell: tuple[str, str], num_steps: int) -> list[str]:
    """The whole training run: validated ten times, tested on 600 episodes."""
    every = max(num_steps // 10, 1)
    return [
        *overrides_of(cell), f"meta.num_steps={num_steps}", f"eval.every={every}", "eval.val_episodes=100",
        "eval.num_episodes=600", f"meta.checkpoint_every={every}", "device=cpu",
    ]  # fmt: skip
