"""Every optimizer of the table over 100 steps in float64, in easy and in awkward cases."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from metalearn import optim
from metalearn.testing import assert_close
from tests.optim.family import FAMILY, D, objective

STEPS = 100
Gradients = Callable[[dict[str, Tensor], int], dict[str, Tensor]]


@contextmanager
def in_double() -> Iterator[None]:
    """torch keeps a few numbers of an optimizer's state (NAdam's product of momenta) in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(D)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _descent(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    return torch.func.grad(objective)(params)


def _noisy(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """Of any size, and one entry in three is exactly zero; all are at every seventh step, the first among them."""
    generator = torch.Generator().manual_seed(step)
    grads = {}
    for name, value in params.items():
        noise = torch.randn(value.shape, generator=generator, dtype=D) * 10.0 ** (step % 5 - 3)
        grads[name] = torch.where(torch.rand(value.shape, generator=generator) < 1 / 3, 0.0, noise) * (step % 7 != 0)
    return grads


def _steady(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """A quadratic bowl, each entry of its own steepness over six orders of magnitude."""
    return {
        name: value * torch.logspace(-4, 2, max(value.numel(), 1), dtype=D).reshape(value.shape)
        for name, value in params.items()
    }


PROBLEMS: dict[str, Gradients] = {"curved valley": _descent, "noise and zeros": _noisy, "steep and flat": _steady}


@pytest.fixture(autouse=True)
def joined_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other test with parameters one by one, whatever their number."""
    if sum(map(ord, request.node.name)) % 2:
        monkeypatch.setattr(optim.joining, "JOINED_TENSORS", 100)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("row", FAMILY)
def test_equals_its_reference_over_100_steps(row: str, problem: str) -> None:
    params = FAMILY[row].start()
    theirs = {name: value.clone().requires_grad_() for name, value in params.items()}
    ours, start = FAMILY[row].ours(), params
    uphill = -1 if FAMILY[row].options.get("maximize") else 1  # or the valley would be left for infinity
    state = ours.init(params)
    with in_double():
        reference = FAMILY[row].theirs(list(theirs.values()))
        for step in range(STEPS):
            grads = {name: uphill * grad for name, grad in PROBLEMS[problem](params, step).items()}
            params, _, state = ours.step(grads, state, params)
            for name, value in theirs.items():
                value.grad = grads[name].clone()
            reference.step()
            for name, value in params.items():
                torch.testing.assert_close(value, theirs[name].detach(), rtol=1e-12, atol=1e-12, msg=f"{name}, {step}")
    assert (params["w"] - start["w"]).abs().max() > 1e-2
    assert all(value.isfinite().all() for value in params.values())


@pytest.mark.parametrize("row", FAMILY)
def test_mixed_dtypes(row: str) -> None:
    # Each parameter by itself is what it is among others of other dtypes, and keeps its own.
    dtypes = {"w": torch.float32, "v": D, "b": torch.bfloat16, "scalar": torch.float32}
    params = {name: value.to(dtypes.get(name, D)) for name, value in FAMILY[row].start().items()}
    together, alone = _three_steps(row, params), {}
    for name, value in params.items():
        alone |= _three_steps(row, {name: value})
    for name, value in together.items():
        assert value.dtype == params[name].dtype
        assert value.isfinite().all()
        torch.testing.assert_close(value, alone[name])


def _three_steps(row: str, params: dict[str, Tensor]) -> dict[str, Tensor]:
    optimizer = FAMILY[row].ours()
    state = optimizer.init(params)
    for step in range(3):
        grads = {name: (0.3 * value - step + 0.7) for name, value in params.items()}
        params, updates, state = optimizer.step(grads, state, params)
        assert all(update.dtype == params[name].dtype for name, update in updates.items())
    return params


COMPLEX = [
    # torch's Adafactor and Muon refuse complex parameters; the equations of Lion in papers.py are of real ones.
    row for row in FAMILY if row.split(",")[0] not in ("adafactor", "muon", "lion")
]  # fmt: skip


@pytest.mark.parametrize("row", COMPLEX)
def test_complex_parameters(row: str) -> None:
    start = {"w": torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))}
    theirs = start["w"].clone().requires_grad_()
    ours, params = FAMILY[row].ours(), start
    state = ours.init(params)
    with in_double():
        reference = FAMILY[row].theirs([theirs])
        for step in range(20):
            gradient = params["w"] * (0.5 + 0.2j) + step % 3
            params, _, state = ours.step({"w": gradient}, state, params)
            theirs.grad = gradient.clone()
            reference.step()
    torch.testing.assert_close(params["w"], theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", FAMILY)
def test_tensors_schedules_and_patterns_take_the_same_steps_as_numbers(row: str) -> None:
    params = FAMILY[row].start()
    expected = _after(FAMILY[row].ours(), params)
    forms: dict[str, Callable[[float], optim.hypers.Hyper]] = {
        "tensor": lambda value: torch.tensor(value, dtype=D),
        "by name": lambda value: {name: torch.tensor(value, dtype=D) for name in params},
        "by pattern": lambda value: {"w": value, "?": torch.tensor(value, dtype=D), "*": value},
        "schedule": lambda value: lambda count: torch.tensor([value] * 3, dtype=D)[count],
        "schedule of dicts": lambda value: lambda count: {"*": torch.tensor([value] * 3, dtype=D)[count]},
        "an entry": lambda value: {name: torch.full_like(param, value) for name, param in params.items()},
    }
    if FAMILY[row].matrices or "adafactor" in row:
        del forms["an entry"]  # some of theirs are of a whole matrix
    for form, given in forms.items():
        hypers = {name: given(value) for name, value in FAMILY[row].hypers.items()}
        for name, value in _after(FAMILY[row].ours(**hypers), params).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=1e-14, msg=f"{form}, {name}")


def _after(optimizer: optim.GradientTransformation, params: dict[str, Tensor]) -> dict[str, Tensor]:
    state = optimizer.init(params)
    for step in range(3):
        params, _, state = optimizer.step(_noisy(params, step + 1), state, params)
    return params


@pytest.mark.parametrize("row", FAMILY)
def test_large_and_small_tensors_follow_one_rule(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = FAMILY[row].start()
    monkeypatch.setattr(optim.joining, "JOINED_TENSORS", 1)
    joined = _after(FAMILY[row].ours(), params)
    monkeypatch.setattr(optim.joining, "JOINED_ENTRIES", -1)
    assert_close(_after(FAMILY[row].ours(), params), joined, tolerance=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("row", [row for row in FAMILY if row.startswith(("sgd", "adam,", "adamw", "amsgrad"))])
def test_a_step_is_bit_equal_to_torch_optim(row: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (40, 30), "b": (7,), "large": (150, 130)}
    params = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in params.items()}
    ours, reference = FAMILY[row].ours(), FAMILY[row].theirs(list(theirs.values()))
    state = ours.init(params)
    for _ in range(100):
        grads = {name: torch.randn(value.shape, generator=generator, dtype=dtype) for name, value in params.items()}
        params, _, state = ours.step(grads, state, params)
        for name, value in theirs.items():
            value.grad = grads[name].clone()
        reference.step()
        assert all(torch.equal(params[name], value.detach()) for name, value in theirs.items())
