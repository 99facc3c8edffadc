"""Finished runs, as far as a sweep looks at them."""

import json
from pathlib import Path
from typing import Any


def measured(mean: float | None, ci95: float | None = 0.01) -> dict[str, Any]:
    return {"mean": mean, "ci95": ci95, "num_episodes": 6}


def write_results(folder: Path, *, val: float | None, test: float, metric: str = "accuracy") -> None:
    """A finished run as far as a sweep looks at it."""
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"test": {metric: measured(test)}, "protocol": {"wall_time_seconds": 1.5}}
    if val is not None:
        data["val"] = {metric: measured(val)}
    (folder / "results.json").write_text(json.dumps(data))
