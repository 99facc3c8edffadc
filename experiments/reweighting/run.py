"""Learning to reweight examples under label noise: accuracy with and without, and the weights that were learned.

python run.py
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from reweight import data_of, model_of, online, throughout, trained, trained_on
from torch import Tensor

T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t for 2, 3, … seeds


def separation(weight: Tensor, flipped: Tensor) -> float:
    """The probability that a flipped example has less weight than one that is not; 0.5 by chance."""
    right, wrong = weight[~flipped][:, None], weight[flipped]
    return float(((right > wrong).double() + 0.5 * (right == wrong)).mean())


def compare(seed: int, num_clean: int) -> tuple[dict[str, float], dict[str, Tensor], Tensor]:
    """Every way's accuracy on one draw of characters, both methods' weights, and which examples were flipped."""
    model = model_of(seed)
    data = data_of(seed, model, num_clean=num_clean)
    both = tuple(torch.cat(pair) for pair in zip(data.noisy, data.clean, strict=True))
    found = {
        "noisy examples alone": trained(model, data, torch.ones(data.flipped.shape)),
        "clean examples alone": trained_on(model, data, data.clean),
        "both together": trained_on(model, data, both),
    }
    weights = {}
    for name, method in (("reweighted online", online), ("reweighted throughout", throughout)):
        found[name], weights[name] = method(model, data)
        found[f"{name}, above both together"] = found[name] - found["both together"]
        found[f"{name}, separation"] = separation(weights[name], data.flipped)
    found["noisy, flipped ones known"] = trained(model, data, (~data.flipped).float())
    return found, weights, data.flipped


def summary(values: list[float]) -> dict[str, Any]:
    interval = T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "ci95": interval, "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--clean", type=int, nargs="+", default=[1, 2, 4], help="clean drawings a character")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figure, grid = pyplot.subplots(len(options.clean), 2, figsize=(9, 2.6 * len(options.clean)), squeeze=False)
    results = {}
    for row, num_clean in zip(grid, options.clean, strict=True):
        founds, weights, flipped = zip(*(compare(seed, num_clean) for seed in range(options.seeds)), strict=True)
        results[str(num_clean)] = {name: summary([found[name] for found in founds]) for name in founds[0]}
        for axes, name in zip(row, weights[0], strict=True):
            pooled, wrong = torch.cat([each[name] for each in weights]), torch.cat(flipped)
            sides = [pooled[~wrong].tolist(), pooled[wrong].tolist()]
            axes.hist(sides, bins=30, density=True, label=["right label", "flipped label"])
            axes.set(title=f"{name}, {num_clean} clean a character", xlabel="weight", ylabel="density")
        for name, each in results[str(num_clean)].items():
            print(f"{num_clean} clean  {name:<36} {each['mean']:.3f} ± {each['ci95']:.3f}", flush=True)
    grid[0][0].legend()
    figure.tight_layout()
    figure.savefig(options.folder / "weights.png", dpi=110)
    (options.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
