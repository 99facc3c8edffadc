"""Hyper-parameters by gradients through a whole training run, each strategy against random search at equal cost.

python run.py schedule       # rates and weight decays, a value for each quarter of the run; minibatches
python run.py penalties      # an L2 penalty for the weights and the biases of each layer; full batches
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from searches import SEARCHES, Data, Search, Trial, data_of, descend, judge, model_of

from metalearn import Problem, tree
from metalearn.inner import outer_value
from metalearn.metagrad import Strategy
from metalearn.metagrad.memory import peak_bytes

RANDOM = {"random, each value": False, "random, one value for all": True}
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t for 2, 3, … seeds


def guess(search: Search, problem: Problem, data: Data, seconds: float, *, seed: int, shared: bool) -> list[Trial]:
    """Random search that goes on until its process time is used up; a trial is a training run without any gradient."""
    generator, trials = torch.Generator().manual_seed(seed), []
    while sum(trial.seconds for trial in trials) < seconds:
        meta, begun = search.draw(generator, shared=shared), time.process_time()
        with torch.no_grad():
            loss = float(outer_value(problem, meta, data)[0])
        trials.append(Trial(meta, loss, time.process_time() - begun))
    return trials


def within(trials: list[Trial], seconds: float) -> Trial:
    """The best by validation of those that were done in the time."""
    done, spent = trials[:1], trials[0].seconds
    for trial in trials[1:]:
        spent += trial.seconds
        done += [trial] if spent <= seconds + 1e-9 else []
    return min(done, key=lambda trial: trial.loss if math.isfinite(trial.loss) else math.inf)


def disagreement(search: Search, num_steps: int) -> dict[str, float]:
    """How far each strategy's gradient is from Unrolled's in float64, relative to its norm, in the ranges' middle."""
    problem, data = search.problem(model_of(0, torch.float64), num_steps), data_of(0, num_steps, torch.float64)
    meta = tree.cast(search.draw(), torch.float64)
    gradient = {
        name: tree.to_vector(each.value_and_grad(problem)(meta, data).grads) for name, each in search.strategies.items()
    }
    expected = gradient["Unrolled"]
    return {name: float((each - expected).norm() / expected.norm()) for name, each in gradient.items()}


def peak_megabytes(search: Search, strategy: Strategy | None) -> float:
    """The most memory of one gradient's tensors; without a strategy, that of a training run."""
    problem, data = search.problem(model_of(0), search.num_steps), data_of(0, search.num_steps)
    if strategy is not None:
        return peak_bytes(lambda: strategy.value_and_grad(problem)(search.draw(), data), "cpu") / 1e6
    with torch.no_grad():
        return peak_bytes(lambda: outer_value(problem, search.draw(), data), "cpu") / 1e6


def compare(search: Search, seed: int, num_trials: int) -> tuple[dict[str, Any], dict[str, list[Trial]]]:
    """On one draw of characters: what every way found and at what cost, and all trials, in training runs' time.

    The two random searches go on for as long as the costliest strategy took; `within` reads off less.
    """
    model, data = model_of(seed), data_of(seed, search.num_steps)
    problem = search.problem(model, search.num_steps)
    on_test = replace(problem, outer_loss=judge(model, "test"))
    tried = {name: descend(search, each, problem, data, num_trials) for name, each in search.strategies.items()}
    longest = max(sum(trial.seconds for trial in trials) for trials in tried.values())
    for name, shared in RANDOM.items():
        tried[name] = guess(search, problem, data, longest, seed=seed, shared=shared)
    plain = statistics.median(trial.seconds for name in RANDOM for trial in tried[name])

    def found(name: str, seconds: float) -> dict[str, float]:
        best = within(tried[name], seconds)
        with torch.no_grad():
            accuracy = outer_value(on_test, best.meta, data)[1].metrics["accuracy"]
        return {"validation loss": best.loss, "test accuracy": float(accuracy), "cost": seconds / plain}

    rows = {"not searched": found("Unrolled", 0.0)}
    for name in search.strategies:
        seconds = sum(trial.seconds for trial in tried[name])
        others = {f"{other}, at the cost of {name}": found(other, seconds) for other in RANDOM}
        rows |= {name: found(name, seconds), **others}
        least = min(other["validation loss"] for other in others.values())
        rows[name]["loss below the better random search"] = least - rows[name]["validation loss"]
    return rows, {name: [t._replace(seconds=t.seconds / plain) for t in trials] for name, trials in tried.items()}


def summary(values: list[float]) -> dict[str, Any]:
    interval = T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "ci95": interval, "values": values}


def draw_curves(axes: Any, tried: list[dict[str, list[Trial]]]) -> None:
    """The best validation loss so far against what was spent, the mean over seeds."""
    for name in tried[0]:
        runs = [trials[name] for trials in tried]
        last = min(sum(trial.seconds for trial in trials) for trials in runs)
        costs = [last * index / 200 for index in range(201)]
        means = [statistics.mean(within(trials, cost).loss for trials in runs) for cost in costs]
        axes.plot(costs, means, "--" if name in RANDOM else "-", label=name)
    axes.set(xlabel="process time, in training runs", ylabel="best validation loss so far")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", choices=SEARCHES)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=12, help="gradients of each strategy")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    search = SEARCHES[options.search]
    memory = {name: peak_megabytes(search, each) for name, each in {"training": None, **search.strategies}.items()}
    differences = disagreement(search, search.num_steps)  # before anything is timed: first calls are slow
    seeds, tried = zip(*(compare(search, seed, options.trials) for seed in range(options.seeds)), strict=True)
    rows = {
        name: {what: summary([rows[name][what] for rows in seeds]) for what in row} for name, row in seeds[0].items()
    }
    for name, row in rows.items():
        print(f"{name:<52}", *(f"{what} {each['mean']:.3f} ± {each['ci95']:.3f}" for what, each in row.items()))
    found = {"rows": rows, "peak megabytes": memory, "relative difference to Unrolled": differences}
    (options.folder / f"{options.search}.json").write_text(json.dumps(found, indent=2) + "\n")
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    draw_curves(axes, tried)
    figure.savefig(options.folder / f"{options.search}.png", dpi=110)


if __name__ == "__main__":
    main()
