"""The checker itself: it accepts what is right, and says what is wrong with everything else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim
from metalearn.metagrad import FirstOrder
from metalearn.testing import check_transformation
from metalearn.testing.transformations import ways
from tests.testing.faulty import FAULTS, HYPERS, D, Right, adam, by_rule, rounding, through, with_update

RIGHT: dict[str, tuple[Any, dict[str, float], Any]] = {
    "a user's own": (by_rule(), HYPERS, None),
    "sgd": (lambda hypers: optim.sgd(hypers["lr"]), {"lr": 0.1}, lambda p: torch.optim.SGD(p, 0.1)),
    "sgd, nesterov": (
        lambda hypers: optim.sgd(
            hypers["lr"], momentum=hypers["momentum"], nesterov=True, weight_decay=hypers["decay"]
        ),
        {"lr": 0.1, "momentum": 0.8, "decay": 0.05},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    ),
    "adam": (
        adam,
        {"lr": 0.05, "b1": 0.8, "b2": 0.99, "eps": 1e-3, "decay": 0.05},
        lambda p: torch.optim.Adam(p, 0.05, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.05),
    ),
    "adam, at its defaults": (
        adam,
        {"lr": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "decay": 0.0},
        lambda p: torch.optim.Adam(p),
    ),
}


@pytest.mark.parametrize("row", RIGHT)
def test_what_is_right_is_accepted(row: str) -> None:
    make, hypers, reference = RIGHT[row]
    report = check_transformation(make, hypers=hypers, reference=reference)
    assert report.error <= 1e-6
    assert {of.of for of in report.rows} >= {f"hyper-parameter {name!r}" for name in hypers} | {
        "initial parameters", "data",
    }  # fmt: skip
    assert report.row("lr", 20).gradient_norm > 1e-3
    assert all(each.finite_difference_error <= 5e-7 for each in report.rows)
    assert (report.reference_error is None) == (reference is None)
    assert max(report.forward_error, report.strategies_error) <= 1e-10


def test_the_rows_are_every_hyper_parameter_alone_and_all_that_goes_in() -> None:
    report = check_transformation(by_rule(), hypers=HYPERS, num_steps=(2, 7))
    names = ["hyper-parameter 'lr'", "hyper-parameter 'decay'", "hyper-parameter 'eps'", "initial parameters", "data",
             "initial state"]  # fmt: skip
    expected = [(name, steps, 1) for steps in (2, 7) for name in names] + [(name, 2, 2) for name in names]
    assert [(row.of, row.num_steps, row.order) for row in report.rows] == expected
    assert min(row.gradient_norm for row in report.rows) > 1e-6
    assert "second derivative, hyper-parameter 'eps', 2 steps" in str(report)
    with pytest.raises(UsageError, match=r"no row of 'decai'.*'decay'"):
        report.row("decai", 2)


def test_a_transformation_without_hyper_parameters_and_a_part_of_an_optimizer_are_taken_as_they_are() -> None:
    of_a_whole = check_transformation(optim.sgd(0.1), num_steps=[3])
    of_a_part = check_transformation(optim.trace(0.9), num_steps=[3], is_whole=False)
    assert [row.of for row in of_a_whole.rows] == ["initial parameters", "data"] * 2
    assert [row.of for row in of_a_part.rows] == ["initial parameters", "data", "initial state"] * 2


def test_a_sign_has_no_derivative_by_data_and_its_kinks_are_redrawn() -> None:
    def update(hypers, updates, state, params):
        return {name: -hypers["lr"] * g.sign() for name, g in updates.items()}, state

    report = check_transformation(with_update(update), hypers={"lr": 0.02}, num_steps=[5])
    assert report.row("data", 5).gradient_norm == report.row("data", 5).error == 0
    assert report.row("lr", 5).gradient_norm > 1e-3


def test_kinks_are_redrawn_and_counted() -> None:
    def sawtooth(g: Tensor) -> Tensor:  # its slope jumps at every 0.0005
        return g + ((g * 1000) - (g * 1000).round()).abs() / 2000

    def update(hypers, updates, state, params):
        return {name: -hypers["lr"] * sawtooth(g) for name, g in updates.items()}, state

    report = check_transformation(with_update(update), hypers={"lr": 0.1}, num_steps=[5], num_directions=4)
    assert sum(row.num_redrawn for row in report.rows) > 0
    assert "redrawn" in str(report)


def test_own_parameters_and_tensors_for_hyper_parameters() -> None:
    params = {"a.w": torch.ones(3, 2, dtype=D), "b": torch.zeros(2, 2, 2, dtype=D)}
    rates = {f"lr.{name}": torch.full_like(value, 0.1) for name, value in params.items()}
    make = with_update(
        lambda h, updates, state, p: ({name: -h[f"lr.{name}"] * g for name, g in updates.items()}, state)
    )
    report = check_transformation(make, hypers=rates, params=params, num_steps=[5])
    assert report.row("lr.a.w", 5).gradient_norm > 1e-4


# Each wrong in one thing, with words of the sentence that tells it.


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_told(fault: str) -> None:
    make, words = FAULTS[fault]
    with pytest.raises(AssertionError, match=words):
        check_transformation(make, hypers=HYPERS)


def test_a_function_with_all_its_derivatives_is_accepted() -> None:
    check_transformation(through(Right), hypers={"lr": 0.1}, num_steps=[5])


def test_another_reference_is_told_with_its_place() -> None:
    def check(reference: Any) -> float | None:
        hypers = {"lr": 0.05, "b1": 0.9, "b2": 0.99, "eps": 1e-3, "decay": 0.0}
        return check_transformation(adam, hypers=hypers, num_steps=[1], reference=reference).reference_error

    assert check(lambda p: torch.optim.Adam(p, 0.05, betas=(0.9, 0.99), eps=1e-3)) < 1e-13
    with pytest.raises(AssertionError, match="it is not Adam: on a quadratic, step 1 leaves 'weight'"):
        check(lambda p: torch.optim.Adam(p, 0.05, betas=(0.9, 0.99), eps=1.0001e-3))
    with pytest.raises(AssertionError, match=r"it is not Adam: on .*, step 2"):
        check(lambda p: torch.optim.Adam(p, 0.05, betas=(0.9, 0.990001), eps=1e-3))
    with pytest.raises(UsageError, match="reference returned list"):
        check(lambda p: [])
    assert torch.get_default_dtype() == torch.float32


def test_strategies_that_disagree_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "Stepwise", FirstOrder)
    with pytest.raises(AssertionError, match=r"strategies differ.* params\.weight with Stepwise\(\)"):
        check_transformation(optim.sgd(0.1), num_steps=[3])


WRONG_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "no transformation": (lambda: check_transformation(lambda hypers: None), "make returned NoneType"),
    "hypers that can not reach it": (lambda: check_transformation(optim.sgd(0.1), hypers={"lr": 0.1}), "lambda hypers"),
    "keywords": (lambda: check_transformation(optim.sgd, hypers={"lr": 0.1}), r"lambda hypers: make\(\*\*hypers\)"),
    "a text": (lambda: check_transformation("sgd", hypers={"lr": 0.1}), "make is a str"),
    "float32": (lambda: check_transformation(optim.sgd(0.1), params={"w": torch.ones(2)}), r"value\.double\(\)"),
    "no parameters": (lambda: check_transformation(optim.sgd(0.1), params={}), "params is empty"),
    "no steps": (lambda: check_transformation(optim.sgd(0.1), num_steps=[]), "nothing to certify"),
    "half a step": (lambda: check_transformation(optim.sgd(0.1), num_steps=[0.5]), "0.5, but each must be"),
    "kinks everywhere": (
        lambda: check_transformation(by_rule(rounding(1e4, straight_through=False)), hypers=HYPERS, max_redrawn=3),
        "kinks everywhere",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_what_can_not_be_checked_is_refused(call: str) -> None:
    function, words = WRONG_CALLS[call]
    with pytest.raises(UsageError, match=words):
        function()
