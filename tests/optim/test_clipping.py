"""Clipping by value, by norm and by global norm: torch's values, and derivatives where the norm is zero."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from metalearn import UsageError, optim
from metalearn.optim import schedules
from metalearn.testing import assert_close, check_transformation

D = torch.float64
LIMIT = 0.2
ROWS: dict[str, tuple[Callable, Callable]] = {
    "clip": (optim.clip, lambda params: clip_grad_value_(params, LIMIT)),
    "clip_by_norm": (optim.clip_by_norm, lambda params: [clip_grad_norm_([param], LIMIT) for param in params]),
    "clip_by_global_norm": (optim.clip_by_global_norm, lambda params: clip_grad_norm_(params, LIMIT)),
}
FORMS: dict[str, Callable] = {
    "float": lambda value: value,
    "tensor": lambda value: torch.tensor(value, dtype=D),
    "schedule": lambda value: schedules.linear(value, value, num_steps=10),
    "pattern": lambda value: {"weight": value, "*": torch.tensor(value, dtype=D)},
    "one an entry": lambda value: {"weight": torch.full((2, 3), value, dtype=D), "*": value},
}


def forms_of(row: str) -> list[str]:
    return [form for form in FORMS if not (row == "clip_by_global_norm" and form in {"pattern", "one an entry"})]


@pytest.mark.parametrize(("row", "form"), [(row, form) for row in ROWS for form in forms_of(row)])
def test_equals_torch_over_100_steps(row: str, form: str) -> None:
    make, of_torch = ROWS[row]

    def reference(params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(params, 0.05)
        optimizer.register_step_pre_hook(lambda *_: (of_torch(params), None)[1])  # a hook may not return a norm
        return optimizer

    limit = FORMS[form](LIMIT)
    report = check_transformation(optim.chain(make(limit), optim.adam(0.05)), num_steps=(5,), reference=reference)
    assert report.reference_error <= 1e-12


@pytest.mark.parametrize("limit", [0.05, LIMIT, 50.0])
@pytest.mark.parametrize("row", ROWS)
def test_every_limit_is_certified(row: str, limit: float) -> None:
    report = check_transformation(lambda h: ROWS[row][0](h["limit"]), hypers={"limit": limit}, is_whole=False)
    acts = limit < 50.0
    for num_steps in (5, 20):
        assert (report.row("limit", num_steps).gradient_norm > 1e-4) == acts
        assert report.row("data", num_steps).gradient_norm > 1e-4


def test_a_limit_an_entry_is_certified() -> None:
    limits = {"weight": torch.linspace(0.05, 0.3, 6, dtype=D).reshape(2, 3), "others": 0.1}
    for make in (optim.clip, optim.clip_by_norm):
        check_transformation(
            lambda h, make=make: make({"weight": h["weight"], "*": h["others"]}), hypers=limits, is_whole=False
        )


@pytest.mark.parametrize("row", ROWS)
def test_what_is_within_the_limit_passes_bit_by_bit(row: str) -> None:
    updates = {"w": torch.tensor([0.3, -0.4]), "v": torch.tensor([0.0, 1e-30])}
    part = ROWS[row][0](10.0)
    got, state = part.update(updates, part.init(updates), updates)
    assert all(torch.equal(got[name], updates[name]) for name in updates)
    assert int(state.num_steps) == 1


@pytest.mark.parametrize("limit", [1.0, 1e-9])
@pytest.mark.parametrize("row", ["clip_by_norm", "clip_by_global_norm"])
def test_derivatives_at_a_norm_of_zero_are_those_of_the_factor(row: str, limit: float) -> None:
    part = ROWS[row][0](torch.tensor(limit, dtype=D))

    def total(x: Tensor) -> Tensor:
        params = {"w": x, "v": 2 * x}
        updates, _ = part.update(params, part.init(params), params)
        return updates["w"].sum() + 3 * updates["v"].sum()

    zero = torch.zeros(3, dtype=D)
    factor = min(1.0, limit / 1e-6)
    assert_close(torch.func.grad(total)(zero), torch.full((3,), 7 * factor, dtype=D), tolerance=1e-12)
    assert torch.equal(torch.func.hessian(total)(zero), torch.zeros(3, 3, dtype=D))


def test_entries_on_the_limit_belong_inside() -> None:
    part, params = optim.clip(0.5), {"w": torch.zeros(4, dtype=D)}
    at = torch.tensor([-0.5, 0.5, 0.4, 0.6], dtype=D)
    grad = torch.func.grad(lambda x: part.update({"w": x}, part.init(params), params)[0]["w"].sum())(at)
    assert grad.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_the_limit_is_that_of_the_step() -> None:
    part, params = optim.clip_by_global_norm(optim.per_step([1.0, 2.0])), {"w": torch.zeros(1, dtype=D)}
    state, seen = part.init(params), []
    for _ in range(3):
        updates, state = part.update({"w": torch.tensor([5.0], dtype=D)}, state, params)
        seen.append(updates["w"].item())
    assert seen == pytest.approx([1.0, 2.0, 2.0], rel=1e-6)


@pytest.mark.parametrize("row", ROWS)
def test_mixed_dtypes_stay(row: str) -> None:
    updates = {
        "half": torch.full((4,), 300.0, dtype=torch.float16),  # whose squares are beyond float16
        "bfloat16": torch.full((2,), 3.0, dtype=torch.bfloat16),
        "scalar": torch.tensor(4.0),
        "double": torch.full((2, 2), 5.0, dtype=D),
        "complex": torch.tensor([3.0 + 4.0j, 0.0]),
    }
    for limit in (0.5, torch.tensor(0.5, dtype=D)):
        part = ROWS[row][0](limit)
        got, _ = part.update(updates, part.init(updates), updates)
        assert {name: value.dtype for name, value in got.items()} == {n: value.dtype for n, value in updates.items()}
        assert all(
            torch.view_as_real(v).isfinite().all() if v.is_complex() else v.isfinite().all() for v in got.values()
        )
        sizes = [(value.abs().double() ** 2).sum() for value in got.values()]
        if row == "clip_by_global_norm":
            assert float(torch.stack(sizes).sum().sqrt()) == pytest.approx(0.5, rel=1e-3)
        if row == "clip_by_norm":
            assert [float(size.sqrt()) for size in sizes] == pytest.approx([0.5] * 5, rel=1e-2)
        if row == "clip":
            assert torch.equal(got["complex"], torch.tensor([0.5 + 0.5j, 0.0]))
            assert torch.equal(got["half"], torch.full((4,), 0.5, dtype=torch.float16))


def test_of_no_parameters_the_global_norm_is_not_asked() -> None:
    part = optim.clip_by_global_norm(1.0)
    updates, state = part.update({}, part.init({}), {})
    assert updates == {}
    assert int(state.num_steps) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optim.clip(-1.0), ["limit", "-1", "at least 0"]),
        (lambda: optim.clip_by_norm("1"), ["limit", "'1'"]),
        (lambda: optim.clip_by_norm(max_norm=1.0), ["max_norm", "'limit'"]),
        (lambda: optim.clip_by_global_norm({"w": 1.0}), ["one limit for all", "1 names", "clip_by_norm"]),
        (lambda: optim.clip_by_global_norm(torch.ones(3)), ["one limit for all", "[3]"]),
        (
            lambda: optim.clip_by_global_norm(lambda count: {"w": 1.0}).init({"w": torch.ones(1)}),
            ["one limit for all", "clip_by_norm"],
        ),
        (lambda: optim.clip({"v*": 1.0}).init({"w": torch.ones(1)}), ["limit", "'v*'", "'w'"]),
        (lambda: optim.clip(torch.ones(4)).init({"w": torch.ones(3)}), ["limit", "[4]", "[3]"]),
        (
            lambda: optim.clip_by_global_norm(1.0).update(
                {"v": torch.ones(1)}, optim.CountState(torch.tensor(0)), {"w": torch.ones(1)}
            ),
            ["'v'", "no parameter"],
        ),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
