"""A learned optimizer against tuned ones, on training runs that it has not seen.

python run.py train mlp 0      # trains the optimizer "mlp" with seed 0, into mlp-0.json
python run.py tune             # Adam, RMSprop and SGD by grids, into tuned.json
python run.py compare          # all that are trained and tuned, on held-out runs, into results.json and curves.png
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from problems import RECIPES, Family, Run, meta_train
from torch import Tensor

from metalearn import optim, tree
from metalearn.types import Tensors

Optimizer = Callable[[Tensors], optim.GradientTransformation]
# What is tried on held-out runs: the family that was trained on with unseen characters, then what else is different.
HELD_OUT = {
    "as trained": Family("test"),
    "64 hidden units": Family("test", width=64),
    "2 hidden layers": Family("test", depth=2),
    "relu": Family("test", activation="relu"),
    "300 steps": Family("test", num_steps=300),
}
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda lr, num_steps: lr,
    "linear": lambda lr, num_steps: optim.schedules.linear(lr, 0.0, num_steps=num_steps),
    "cosine": lambda lr, num_steps: optim.schedules.cosine(lr, num_steps),
}
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "adam": {"lr": (0.0125, 0.025, 0.05, 0.1, 0.2), "b1": (0.3, 0.5, 0.7, 0.9), "b2": (0.9, 0.99, 0.999)},
    "rmsprop": {"lr": (0.003125, 0.00625, 0.0125, 0.025, 0.05), "alpha": (0.9, 0.99), "momentum": (0.0, 0.5, 0.9)},
    "sgd": {"lr": (0.2, 0.4, 0.8, 1.6, 3.2), "momentum": (0.5, 0.7, 0.9, 0.95), "nesterov": (False, True)},
}
for _grid in GRIDS.values():
    _grid["schedule"] = tuple(SCHEDULES)
# For the families that are not trained on.
FEWER = {**GRIDS["adam"], "b1": (0.5, 0.9), "b2": (0.9, 0.99), "schedule": ("constant", "linear")}
MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over the run": lambda curves: curves[:, 1:].mean(1),
    "at the end": lambda curves: curves[:, -1],
}


def made(setting: dict[str, Any], num_steps: int) -> Optimizer:
    """The hand-made optimizer of a setting."""
    given = {name: value for name, value in setting.items() if name not in ("optimizer", "lr", "schedule")}
    optimizer = getattr(optim, setting["optimizer"])(SCHEDULES[setting["schedule"]](setting["lr"], num_steps), **given)
    return lambda meta: optimizer


def tune(kind: str, grid: dict[str, tuple[Any, ...]], family: Family, runs: Run) -> dict[str, Any]:
    """By each measure, the best setting of a grid and of what lies beside its best: rates between, betas beyond."""
    tried: list[tuple[dict[str, Any], dict[str, float]]] = []

    def attempt(setting: dict[str, Any]) -> None:
        curves = family.curves(made(setting, family.num_steps), {}, runs)[0]
        losses = {name: float(measure(curves).mean()) for name, measure in MEASURES.items()}
        tried.append((setting, {name: loss if math.isfinite(loss) else math.inf for name, loss in losses.items()}))

    def best(measure: str) -> dict[str, Any]:
        return min(tried, key=lambda each: each[1][measure])[0]

    for values in itertools.product(*grid.values()):
        attempt({"optimizer": kind, **dict(zip(grid, values, strict=True))})
    for beside in (rates_beside, betas_beside):
        for measure in MEASURES:
            for setting in beside(best(measure)):
                attempt(setting)
    found = {measure: {**best(measure), "loss": min(each[measure] for _, each in tried)} for measure in MEASURES}
    print(kind, family, found, flush=True)
    return {**found, "settings tried": len(tried)}


def rates_beside(setting: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**setting, "lr": round(setting["lr"] * factor, 6)} for factor in (0.5**0.5, 2**0.5)]


def betas_beside(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Adam's, as they are not on a scale of factors: the grid's best may be at its edge."""
    if setting["optimizer"] != "adam":
        return []
    b1 = [round(max(0.0, setting["b1"] + change), 3) for change in (-0.2, -0.1, 0.1)]
    b2 = [round(1 - (1 - setting["b2"]) * factor, 6) for factor in (0.5, 2.0)]
    return [{**setting, "b1": each} for each in b1 if each < 1] + [{**setting, "b2": each} for each in b2]


def tune_all(folder: Path, num_runs: int) -> None:
    """The family that is trained on with every optimizer; each of the others with Adam on half as many runs."""
    families = {place: replace(family, split="train") for place, family in HELD_OUT.items()}
    runs = families["as trained"].draw(0, num_runs)
    tuned = {"as trained": {kind: tune(kind, grid, families["as trained"], runs) for kind, grid in GRIDS.items()}}
    for place, family in list(families.items())[1:]:
        tuned[place] = {"adam": tune("adam", FEWER, family, family.draw(0, num_runs // 2))}
    (folder / "tuned.json").write_text(json.dumps(tuned, indent=1) + "\n")


def train(folder: Path, kind: str, seed: int, num_meta_steps: int) -> None:
    """The checkpoint that is best on validation runs is kept."""
    checkpoints = []
    for each in meta_train(RECIPES[kind], num_meta_steps=num_meta_steps, every=max(1, num_meta_steps // 10), seed=seed):
        checkpoints.append(each)
        print(kind, seed, round(each.validation, 4), f"{each.seconds:.0f} s", flush=True)
    best = min(checkpoints, key=lambda each: each.validation)
    training = {
        "recipe": str(RECIPES[kind].learned),
        **{name: value for name, value in RECIPES[kind]._asdict().items() if name in ("num_steps", "batch", "lr")},
        "strategy": repr(RECIPES[kind].strategy),
        "meta steps": num_meta_steps,
        "process seconds": checkpoints[-1].seconds,
        "validation loss": [each.validation for each in checkpoints],
    }
    found = {"training": training, "meta": {name: value.tolist() for name, value in best.meta.items()}}
    (folder / f"{kind}-{seed}.json").write_text(json.dumps(found) + "\n")


def rivals(place: str, tuned: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a learned optimizer is compared with, by name: tuned where it was trained, and Adam tuned there itself."""
    for kind, settings in tuned["as trained"].items():
        if place == "as trained" or kind == "adam":
            yield from ((f"{kind} by its loss {measure}", settings[measure]) for measure in MEASURES)
    if place != "as trained":
        yield from ((f"adam tuned here by its loss {m}", tuned[place]["adam"][m]) for m in MEASURES)


def compare(folder: Path, num_runs: int) -> None:
    """Every optimizer on the same held-out runs, "mlp" also on the other families; differences are paired by run."""
    tuned = json.loads((folder / "tuned.json").read_text())
    trained = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*-[0-9].json"))}
    results: dict[str, Any] = {"number of runs": num_runs, "training": {n: t["training"] for n, t in trained.items()}}
    for place, family in HELD_OUT.items():
        runs = family.draw(0, num_runs)
        settings = rivals(place, tuned)
        kept = {name: family.curves(made(_bare(each), family.num_steps), {}, runs) for name, each in settings}
        everywhere = {name: each for name, each in trained.items() if place == "as trained" or kind_of(name) == "mlp"}
        ours = {name: family.curves(*learned(name, each), runs) for name, each in everywhere.items()}
        results[place] = rows = {name: row(*each) for name, each in {**kept, **ours}.items()}
        for name, (what, measure) in itertools.product(ours, MEASURES.items()):
            for rival in (each for each in kept if each.endswith(what)):
                difference = measure(kept[rival][0]) - measure(ours[name][0])
                share = float((difference > 0).float().mean())
                rows[name][f"below {rival}"] = {**summary(difference), "share of runs": share}
        print(place, {name: round(each["mean over the run"]["mean"], 4) for name, each in rows.items()}, flush=True)
    cost = {"adam": (made(_bare(tuned["as trained"]["adam"]["at the end"]), 100), {})}
    cost |= {f"{kind}-0": learned(f"{kind}-0", trained[f"{kind}-0"]) for kind in RECIPES if f"{kind}-0" in trained}
    results["microseconds an update"] = {name: microseconds(*each) for name, each in cost.items()}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, folder / "curves.png")


def learned(name: str, trained: dict[str, Any]) -> tuple[Optimizer, Tensors]:
    meta = {of: torch.tensor(value) for of, value in trained["meta"].items()}
    return RECIPES[kind_of(name)].learned, meta


def kind_of(name: str) -> str:
    """`"mlp"` of `"mlp-0"`."""
    return name.rpartition("-")[0]


def row(curves: Tensor, accuracy: Tensor) -> dict[str, Any]:
    measured = {what: summary(measure(curves)) for what, measure in MEASURES.items()}
    return {**measured, "test accuracy": summary(accuracy), "curve": [round(x, 5) for x in curves.mean(0).tolist()]}


def summary(values: Tensor) -> dict[str, float]:
    """Mean and 95% interval over runs, which are many."""
    return {"mean": float(values.mean()), "ci95": 1.96 * float(values.std()) / math.sqrt(len(values))}


def microseconds(optimizer: Optimizer, meta: Tensors, repeats: int = 200) -> float:
    """Process time of one update of one run's parameters, without a gradient."""
    params = tree.entry(Family().draw(0, 1).params, 0)
    ours = optimizer(meta)
    state = ours.init(params)
    with torch.no_grad():
        for _ in range(20):
            _, state = ours.update(params, state, params)
        begun = time.process_time()
        for _ in range(repeats):
            _, state = ours.update(params, state, params)
    return 1e6 * (time.process_time() - begun) / repeats


def draw(results: dict[str, Any], path: Path) -> None:
    """Mean training loss by step, on a logarithmic scale."""
    shape = {"figsize": (4 * len(HELD_OUT), 3.8), "layout": "constrained", "squeeze": False}
    figure, (axes,) = pyplot.subplots(1, len(HELD_OUT), **shape)
    for at, place in zip(axes, HELD_OUT, strict=True):
        for name, each in results[place].items():
            at.plot(each["curve"], "-" if name[-1].isdigit() else "--", label=name)
        at.set(title=place, xlabel="step", yscale="log")
        at.legend(fontsize=6)
    axes[0].set_ylabel("loss on all training drawings")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _bare(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "loss"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("kind", choices=RECIPES)
    training.add_argument("seed", type=int)
    training.add_argument("--meta-steps", type=int, default=200)
    commands.add_parser("tune").add_argument("--runs", type=int, default=64)
    commands.add_parser("compare").add_argument("--runs", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "train":
        train(options.folder, options.kind, options.seed, options.meta_steps)
    else:
        {"tune": tune_all, "compare": compare}[options.command](options.folder, options.runs)


if __name__ == "__main__":
    main()
