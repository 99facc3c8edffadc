"""The papers' full protocols: for each algorithm and data set the run, and the number published for it."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A paper's protocol.

    Attributes:
        name: of the row and of its folder.
        overrides: the run, for `python -m metalearn.train`.
        published: the accuracy.
        source: where.
    """

    name: str
    overrides: tuple[str, ...]
    published: str
    source: str


@dataclass(frozen=True)
class Method:
    """How an algorithm is trained on Omniglot, and what was published for it.

    Attributes:
        overrides: of `experiment=omniglot_20way_1shot` and `experiment=omniglot_5way_1shot_paper` alike.
        of_ways: those that depend on the number of ways.
        published: by ways and shots.
        source: of the numbers.
    """

    overrides: tuple[str, ...]
    published: dict[tuple[int, int], str]
    source: str
    of_ways: dict[int, tuple[str, ...]]


_NO_MORE: dict[int, tuple[str, ...]] = {5: (), 20: ()}
_REPTILE = (
    "algorithm=reptile", "task.query_shots=10", "inner.optimizer=adam", "inner.options={b1: 0}", "meta.optimizer=sgd",
    "meta.lr=1.0", "meta.schedule=linear", "meta.batch_size=5", "eval.num_inner_steps=50",
)  # fmt: skip

OMNIGLOT: dict[str, Method] = {
    "maml": Method(
        (),
        {(20, 1): "95.8 ± 0.3 %", (20, 5): "98.9 ± 0.2 %", (5, 1): "98.7 ± 0.4 %", (5, 5): "99.9 ± 0.1 %"},
        "Finn et al. 2017, arXiv:1703.03400, table 1",
        _NO_MORE,
    ),
    "maml_plus_plus": Method(
        (
            # Norms by the set at hand, at test too, as the authors' code (experiments/table: running statistics fail).
            "algorithm=maml_plus_plus", "algorithm.multi_step_until=5000", "model.downsampling=pool",
            "inner.num_steps=5", "inner.lr=0.1",
            "eval.num_inner_steps=5", "meta.schedule=cosine", "meta.num_steps=50000",
        ),
        {(20, 1): "97.7 %", (20, 5): "99.3 %", (5, 1): "99.5 %", (5, 5): "99.9 %"},
        "Antoniou et al. 2019, arXiv:1810.09502",
        {5: ("meta.batch_size=16",), 20: ("meta.batch_size=8",)},
    ),
    "meta_sgd": Method(
        ("algorithm=meta_sgd", "inner.num_steps=1", "inner.lr=0.1", "eval.num_inner_steps=1"),
        {(20, 1): "95.9 %", (20, 5): "99.0 %", (5, 1): "99.5 %", (5, 5): "99.9 %"},
        "Li et al. 2017, arXiv:1707.09835",
        _NO_MORE,
    ),
    "fomaml": Method(
        ("algorithm=fomaml",),
        {(20, 1): "89.4 %", (20, 5): "97.9 %", (5, 1): "98.3 %", (5, 5): "99.2 %"},
        "Nichol et al. 2018, arXiv:1803.02999",
        _NO_MORE,
    ),
    "anil": Method(
        ("algorithm=anil", "inner.num_steps=5", "inner.lr=0.1", "eval.num_inner_steps=5"),
        {(20, 1): "96.2 %", (20, 5): "98.0 %"},
        "Raghu et al. 2020, arXiv:1909.09157",
        _NO_MORE,
    ),
    "reptile": Method(
        _REPTILE,
        {(20, 1): "89.4 %", (20, 5): "97.1 %", (5, 1): "97.7 %", (5, 5): "99.5 %"},
        "Nichol et al. 2018, arXiv:1803.02999 (with transduction)",
        {
            5: ("algorithm.batch_size=10", "inner.num_steps=5", "inner.lr=0.001", "meta.num_steps=100000"),
            20: ("algorithm.batch_size=20", "inner.num_steps=10", "inner.lr=0.0005", "meta.num_steps=200000"),
        },
    ),
    # The authors' code (aravindr93/imaml_dev) takes 16 steps without a proximal term, one back towards the start, and
    # solves (2 I + H / 12) v = g; its README names 20,000 meta steps. Here the term is there in every step, weaker, and
    # the sum of its weight and the damping is their 24.
    "imaml": Method(
        (
            "algorithm=imaml", "algorithm.proximal=0.5", "metagrad.damping=23.5", "metagrad.num_iterations=5",
            "inner.lr=0.1", "meta.num_steps=20000",
        ),
        {(20, 1): "94.5 %", (20, 5): "98.7 %", (5, 1): "99.2 %", (5, 5): "99.7 %"},
        "Rajeswaran et al. 2019, arXiv:1909.04630 (gradient descent inside)",
        {
            5: ("inner.num_steps=16", "eval.num_inner_steps=16"),
            20: ("inner.num_steps=25", "eval.num_inner_steps=25"),
        },
    ),
    "protonet": Method(
        (
            "algorithm=protonet", "algorithm.train_ways=60", "task.query_shots=5", "model.downsampling=pool",
            "meta.batch_size=1", "eval.num_inner_steps=null",
        ),
        {(20, 1): "96.0 %", (20, 5): "98.9 %", (5, 1): "98.8 %", (5, 5): "99.7 %"},
        "Snell et al. 2017, arXiv:1703.05175",
        _NO_MORE,
    ),
}  # fmt: skip
_EXPERIMENTS = {20: "omniglot_20way_1shot", 5: "omniglot_5way_1shot_paper"}


def omniglot_rows() -> Iterator[Row]:
    """Omniglot, 20-way first: what tells algorithms apart."""
    for ways, shots in ((20, 1), (20, 5), (5, 1), (5, 5)):
        for name, method in OMNIGLOT.items():
            if (ways, shots) not in method.published:
                continue
            # As many query images as support images, as in MAML's code, where the method says no other number.
            drawn = (f"task.shots={shots}", f"task.query_shots={shots}") if shots > 1 else ()
            overrides = (f"experiment={_EXPERIMENTS[ways]}", *drawn, *method.overrides, *method.of_ways[ways])
            suffix = "" if name == "maml" else f"_{name}"
            published = method.published[ways, shots]
            yield Row(f"omniglot_{ways}way_{shots}shot{suffix}", overrides, published, method.source)


_R2D2 = (
    "model=conv4_r2d2", "algorithm=r2d2", "meta.batch_size=1", "eval.num_inner_steps=null",
)  # fmt: skip
_PROTONET = ("algorithm=protonet", "model=conv4", "meta.batch_size=1", "eval.num_inner_steps=null")
_BERTINETTO = "Bertinetto et al. 2019, arXiv:1805.08136, table 1"


def cifar_fs_rows() -> Iterator[Row]:
    """CIFAR-FS, 5-way."""
    published = {
        "": ((), "58.9 ± 1.9 %", "71.5 ± 1.0 %"),
        "_protonet": (_PROTONET, "55.5 %", "72.0 %"),
        "_r2d2": (_R2D2, "65.3 %", "79.4 %"),
    }
    for suffix, (overrides, *accuracies) in published.items():
        for shots, accuracy in zip((1, 5), accuracies, strict=True):
            experiment = f"experiment=cifar_fs_5way_{shots}shot_paper"
            yield Row(f"cifar_fs_5way_{shots}shot{suffix}", (experiment, *overrides), accuracy, _BERTINETTO)


ROWS = (*omniglot_rows(), *cifar_fs_rows())
