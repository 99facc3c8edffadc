"""Layers that there are one of for each number of dimensions."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.functional.interception.cases import Between, Case, Given, case, positive, real

_SPACE = {1: (9,), 2: (7, 8), 3: (5, 6, 5)}


def _per_dimension() -> list[Case]:
    cases = []
    for d, space in _SPACE.items():
        of = lambda name, d=d: getattr(nn, f"{name}{d}d")  # noqa: E731
        x, wide = real(2, 2, *space), real(2, 4, *space)

        def add(name: str, build: Callable[[], nn.Module], *inputs: Given, special: str = "", d: int = d, **kw: Any):
            cases.append(case(f"{name}{d}d{', ' + special if special else ''}", build, *inputs, **kw))

        add("Conv", lambda of=of: of("Conv")(2, 3, 3, padding=1, stride=2), x)
        add("Conv", lambda of=of: of("Conv")(4, 6, 2, groups=2, dilation=2), wide, special="groups, dilation")
        add("Conv", lambda of=of: of("Conv")(4, 8, 3, groups=4), wide, special="depthwise")
        for mode in ("circular", "reflect", "replicate"):
            add(
                "Conv",
                lambda of=of, mode=mode: of("Conv")(2, 3, 3, padding=1, padding_mode=mode),
                x,
                special=f"{mode} padding",
            )
        add("ConvTranspose", lambda of=of: of("ConvTranspose")(2, 3, 3, stride=2, output_padding=1, padding=1), x)
        add("ConvTranspose", lambda of=of: of("ConvTranspose")(4, 6, 2, groups=2), wide, special="groups")
        add("MaxPool", lambda of=of: of("MaxPool")(2), x)
        add("MaxPool", lambda of=of: of("MaxPool")(3, 2, 1, ceil_mode=True), x, special="overlapping")
        add("MaxPool", lambda of=of: of("MaxPool")(2, return_indices=True), x, special="indices")
        add("AvgPool", lambda of=of: of("AvgPool")(2, 1), x)
        add("AdaptiveMaxPool", lambda of=of: of("AdaptiveMaxPool")(3), x)
        add("AdaptiveAvgPool", lambda of=of: of("AdaptiveAvgPool")(3), x)
        add("LPPool", lambda of=of: of("LPPool")(2.0, 2), positive(2, 2, *space))
        add("LPPool", lambda of=of: of("LPPool")(3.0, 2), positive(2, 2, *space), special="of order 3")
        add(
            "MaxUnpool",
            lambda of=of: Between(of("MaxPool")(2, return_indices=True), of("MaxUnpool")(2)),
            real(2, 2, *(2 * (size // 2) for size in space)),
        )
        if d > 1:
            add("FractionalMaxPool", lambda of=of: of("FractionalMaxPool")(2, output_size=3), x, draws=True)
            add(
                "FractionalMaxPool",
                lambda of=of: of("FractionalMaxPool")(2, output_ratio=0.7, return_indices=True),
                x,
                special="a ratio, indices",
                draws=True,
            )
        for name in ("Circular", "Reflection", "Replication", "Zero"):
            add(f"{name}Pad", lambda of=of, name=name: of(f"{name}Pad")(1), x)
        add("ConstantPad", lambda of=of: of("ConstantPad")(1, 0.5), x)
        add("BatchNorm", lambda of=of: of("BatchNorm")(2), real(6, 2, *space))
        add("BatchNorm", lambda of=of: of("BatchNorm")(2).eval(), real(6, 2, *space), special="evaluation")
        add("BatchNorm", lambda of=of: of("BatchNorm")(2, momentum=None), real(6, 2, *space), special="momentum=None")
        add(
            "BatchNorm",
            lambda of=of: of("BatchNorm")(2, track_running_stats=False, affine=False),
            real(6, 2, *space),
            special="no statistics, not affine",
        )
        add("InstanceNorm", lambda of=of: of("InstanceNorm")(2), x)
        add("InstanceNorm", lambda of=of: of("InstanceNorm")(2, affine=True), x, special="affine")
        add(
            "InstanceNorm",
            lambda of=of: of("InstanceNorm")(2, affine=True, track_running_stats=True),
            x,
            special="statistics",
        )
        add(
            "InstanceNorm",
            lambda of=of: of("InstanceNorm")(2, affine=True, track_running_stats=True).eval(),
            x,
            special="statistics, evaluation",
        )
        add("Dropout", lambda of=of: of("Dropout")(0.3), x, draws=True)
    return cases


CASES = _per_dimension()
