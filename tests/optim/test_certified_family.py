"""Every optimizer and every hyper-parameter of it, certified: `metalearn.testing.check_transformation` on the table.

That is, in float64 and through 5 and 20 steps: the derivative by each hyper-parameter alone, by the initial parameters,
by the initial state and by the data against finite differences to 1e-6; forward mode, Stepwise and vmap against reverse
mode to 1e-10; finite first and second derivatives where gradients are zero; 100 steps equal to the reference.
"""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from metalearn import optim
from metalearn.testing import TransformationReport, check_transformation
from tests.optim.family import FAMILY, D, Row

SEEN = 1e-6  # a gradient below this would be certified by its absolute error
STEPS = (5, 20)


def _params(row: Row) -> dict[str, Tensor] | None:
    return row.start() if row.matrices else None


def _flat(report: TransformationReport, hypers: Mapping[str, object]) -> set[str]:
    """Those whose derivative is zero after however many steps."""
    return {
        name for name in hypers if all(report.row(name, count).gradient_norm < SEEN for count in STEPS)
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILY)
def test_every_hyper_parameter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Here parameters go through a rule joined, and in half of the table of forms below one by one.
    monkeypatch.setattr(optim.joining, "JOINED_TENSORS", 1)
    row = FAMILY[name]
    report = check_transformation(
        lambda hypers: row.ours(**hypers), hypers=row.hypers, params=_params(row), num_steps=STEPS,
        is_whole=not row.options.get("maximize"), reference=row.theirs,
    )  # fmt: skip
    assert report.error <= 1e-6
    assert max(report.forward_error, report.strategies_error) <= 1e-10
    assert report.reference_error is not None
    assert report.reference_error <= 1e-12
    assert _flat(report, row.hypers) == row.flat
    assert report.row("initial parameters", 20).gradient_norm > SEEN


def test_each_is_certified_where_it_matters() -> None:
    everything = {(row.make.__name__, hyper) for row in FAMILY.values() for hyper in row.hypers}
    seen = {(row.make.__name__, hyper) for row in FAMILY.values() for hyper in row.hypers if hyper not in row.flat}
    # A sign has no slope; the average that ASGD keeps beside the parameters is certified below.
    assert everything - seen == {("lion", "b1"), ("lion", "b2"), ("asgd", "t0")}
    assert {make for make, _ in everything} == set(optim.FAMILY)


FIRST = {row.make.__name__: name for name, row in reversed(FAMILY.items())}
"""One row for each optimizer."""

Form = Callable[[Tensor, list[str]], optim.hypers.Hyper]
DICTS: list[tuple[int, Form]] = [  # by name and by pattern: one half of the optimizers each
    (3, lambda value, names: {name: value[index] for index, name in enumerate(names)}),
    (2, lambda value, names: {names[0]: value[0], "*": value[1]}),
]
A_VALUE_A_STEP: tuple[int, Form] = (
    max(STEPS), lambda value, names: lambda count: value[count.clamp(max=len(value) - 1)],
)  # fmt: skip


@pytest.mark.parametrize("form", ["a dict", "a value a step"])
@pytest.mark.parametrize("make", FIRST)
def test_every_form_of_a_hyper_parameter(make: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sum(map(ord, make + form)) % 2:
        monkeypatch.setattr(optim.joining, "JOINED_TENSORS", 100)
    row = FAMILY[FIRST[make]]
    params = row.start() if row.matrices else {"w": torch.randn(2, 3, dtype=D), "b": torch.ones(3, dtype=D)}
    params = {**params, "c": torch.linspace(-1, 1, 2, dtype=D).reshape(1, 2)}
    params = dict(list(params.items())[-3:])
    size, given = DICTS[sorted(FIRST).index(make) % 2] if form == "a dict" else A_VALUE_A_STEP
    values = {name: value * (1 + 0.1 * torch.linspace(-1, 1, size, dtype=D)) for name, value in row.hypers.items()}

    def ours(hypers: Mapping[str, Tensor]) -> optim.GradientTransformation:
        return row.ours(**{name: given(value, list(params)) for name, value in hypers.items()})

    report = check_transformation(ours, hypers=values, params=params, num_steps=STEPS)
    assert report.error <= 1e-6
    assert _flat(report, row.hypers) <= row.flat | {"min_step"}  # few entries of Rprop's come to it


def test_the_average_of_asgd_is_differentiable_in_its_first_step() -> None:
    def average(t0: Tensor) -> Tensor:
        optimizer = optim.asgd(0.1, t0=t0)
        params = {"w": torch.linspace(-1, 1, 5, dtype=D)}
        state = optimizer.init(params)
        for _ in range(12):
            params, _, state = optimizer.step({"w": params["w"] ** 3 - 1}, state, params)
        return state.average["w"].sum()

    at, step = torch.tensor(4.3, dtype=D), 1e-5
    expected = (average(at + step) - average(at - step)) / (2 * step)
    assert abs(expected) > 1e-3
    torch.testing.assert_close(torch.func.grad(average)(at), expected, rtol=1e-7, atol=0)
