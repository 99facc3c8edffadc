"""The rule by which execution.compile=true compiles, and the names beside it."""

from typing import Any

import pytest
from torch import nn

from metalearn import metagrad
from metalearn.errors import UsageError
from metalearn.execution import Loop, Vmap, choose
from metalearn.execution.choice import compiled_as, is_walk

MLP, CONVOLUTION = nn.Linear(2, 2), nn.Conv2d(1, 1, 3)


@pytest.mark.parametrize(
    ("strategy", "num_inner_steps", "expected"),
    [
        (metagrad.Unrolled(), 0, "whole"),
        (metagrad.Unrolled(), 1, "whole"),
        (metagrad.Unrolled(), 2, "pieces"),
        (metagrad.FirstOrder(), 50, "pieces"),
        (metagrad.FirstOrder(until=5), 50, "pieces"),
        (metagrad.Stepwise(), 5, "pieces"),
        (metagrad.Auto(), 5, "pieces"),
        (metagrad.ForwardMode(), 5, "whole"),
        (metagrad.Truncated(2), 5, "whole"),
        (object(), 5, "whole"),
    ],
)
def test_the_rule_looks_at_the_strategy_and_the_steps(strategy: Any, num_inner_steps: int, expected: str) -> None:
    assert compiled_as(True, strategy=strategy, num_inner_steps=num_inner_steps) == expected
    assert compiled_as(False, strategy=strategy, num_inner_steps=num_inner_steps) is None


@pytest.mark.parametrize(
    ("model", "device", "expected", "compiled"),
    [
        (MLP, "cpu", Vmap, Vmap),
        (CONVOLUTION, "cpu", Loop, Loop),
        (CONVOLUTION, "cuda", Vmap, Vmap),
        (nn.Linear(449, 445), "cpu", Vmap, Loop),  # 199,805 entries
        (nn.Linear(450, 445), "cpu", Loop, Loop),
        (nn.Linear(450, 445), "cuda", Vmap, Vmap),
        (nn.Linear(223, 224), "cpu", Vmap, Vmap),  # 49,952 entries
        (nn.LSTM(2, 2), "cpu", Vmap, Loop),
        (nn.Identity(), "cpu", Vmap, Vmap),
    ],
)
def test_how_tasks_are_run(model: nn.Module, device: str, expected: type, compiled: type) -> None:
    given = {"model": model, "device": device, "strategy": metagrad.Unrolled(), "num_inner_steps": 5}
    eager, chosen = choose("auto", **given), choose("auto", compile=True, **given)
    assert (type(eager), type(chosen)) == (expected, compiled)
    assert (chosen.compiled, eager.compiled) == ("pieces", None)
    assert "compiled='pieces'" in repr(chosen)


@pytest.mark.parametrize("name", ["pieces", "whole"])
def test_a_name_is_taken_as_it_is(name: str) -> None:
    for tasks in ("loop", "vmap"):
        chosen = choose(tasks, model=MLP, device="cpu", compile=name, strategy=metagrad.Unrolled(), num_inner_steps=1)
        assert chosen.compiled == name


def test_pieces_are_of_walks_alone() -> None:
    with pytest.raises(UsageError, match=r"ForwardMode does not: take execution\.compile=whole"):
        compiled_as("pieces", strategy=metagrad.ForwardMode(), num_inner_steps=5)
    assert is_walk(metagrad.Unrolled())
    assert not is_walk(metagrad.ForwardMode())


@pytest.mark.parametrize("name", ["piecess", 1, None])
def test_another_name_is_refused(name: Any) -> None:
    with pytest.raises(UsageError, match="is not a way of compiling"):
        compiled_as(name, strategy=metagrad.Unrolled(), num_inner_steps=5)
