"""Schedules: torch's values, their derivatives, and what they are past their end."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from metalearn import UsageError, optim, tree
from metalearn.optim import schedules
from metalearn.testing import assert_close, check_transformation

D = torch.float64
NUM_STEPS = 100
LR = 0.3


def count(step: int) -> Tensor:
    return torch.tensor(step)


def aged(state, at: Tensor):
    """An optimizer's state after so many steps, whatever it is made of."""
    return tree.map_tensors(lambda leaf: at if leaf.dtype == torch.int64 else leaf, state)


# From the numbers as they are given (floats or tensors), so that a row holds in every form.
ROWS: dict[str, tuple[Callable, Callable]] = {
    "ConstantLR": (
        lambda n: schedules.join([schedules.constant(n(0.2 * LR)), schedules.constant(n(LR))], [15]),
        lambda opt: lr_scheduler.ConstantLR(opt, 0.2, 15),
    ),
    "LinearLR": (
        lambda n: schedules.linear(n(0.1 * LR), n(0.9 * LR), num_steps=40),
        lambda opt: lr_scheduler.LinearLR(opt, 0.1, 0.9, 40),
    ),
    "ExponentialLR": (
        lambda n: schedules.exponential(n(LR), n(0.95)),
        lambda opt: lr_scheduler.ExponentialLR(opt, 0.95),
    ),
    "CosineAnnealingLR": (
        lambda n: schedules.cosine(n(LR), NUM_STEPS, end=n(0.01)),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, NUM_STEPS, 0.01),
    ),
    "PolynomialLR": (
        lambda n: schedules.polynomial(n(LR), 60, power=n(1.7)),
        lambda opt: lr_scheduler.PolynomialLR(opt, 60, 1.7),
    ),
    "StepLR": (lambda n: schedules.step(n(LR), 7, decay=n(0.6)), lambda opt: lr_scheduler.StepLR(opt, 7, 0.6)),
    "MultiStepLR": (
        lambda n: schedules.join([n(LR), n(0.5 * LR), n(0.25 * LR), n(0.125 * LR)], [30, 31, 80]),
        lambda opt: lr_scheduler.MultiStepLR(opt, [30, 31, 80], 0.5),
    ),
    "SequentialLR of warm-up and cosine": (
        lambda n: schedules.warmup(schedules.cosine(n(LR), 90), 10, start=n(0.1 * LR)),
        lambda opt: lr_scheduler.SequentialLR(
            opt, [lr_scheduler.LinearLR(opt, 0.1, 1.0, 10), lr_scheduler.CosineAnnealingLR(opt, 90)], [10]
        ),
    ),
    "SequentialLR of three": (
        lambda n: schedules.join([n(0.5 * LR), schedules.exponential(n(LR), n(0.9)), n(LR)], [5, 40]),
        lambda opt: lr_scheduler.SequentialLR(
            opt,
            [
                lr_scheduler.ConstantLR(opt, 0.5, 1000),
                lr_scheduler.ExponentialLR(opt, 0.9),
                lr_scheduler.ConstantLR(opt, 1.0, 0),
            ],
            [5, 40],
        ),
    ),
}
FORMS: dict[str, Callable] = {
    "floats": lambda value: value,
    "tensors": lambda value: torch.tensor(value, dtype=D),
    "by name": lambda value: {"w": value, "other.*": 2 * value},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
def test_equals_torch_over_100_steps(row: str, form: str) -> None:
    make, of_torch = ROWS[row]
    optimizer = torch.optim.SGD([torch.zeros((), dtype=D, requires_grad=True)], LR)
    schedule, scheduler = make(FORMS[form]), of_torch(optimizer)
    values = []
    for step in range(NUM_STEPS):
        value = schedule(count(step))
        value = value["w"] if form == "by name" else value
        assert isinstance(value, Tensor) == (form == "tensors")
        values.append(float(value))
        assert values[-1] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-15), step
        optimizer.step()  # before the scheduler, or torch warns
        scheduler.step()
    assert len(set(values)) > 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
def test_a_batch_of_counts_gives_what_each_gives(row: str, form: str) -> None:
    schedule = ROWS[row][0](FORMS[form])
    counts = torch.tensor([0, 4, 5, 29, 30, 31, 60, 99, 300])
    batched = torch.vmap(schedule)(counts)
    for index, one in enumerate(counts):
        expected = schedule(one)
        for name, value in (expected if isinstance(expected, dict) else {"": expected}).items():
            got = batched[name][index] if name else batched[index]
            assert got.dtype == D
            assert float(got) == pytest.approx(float(value), rel=1e-14, abs=1e-17)


def test_a_step_has_the_bits_of_torch_with_a_scheduler() -> None:
    generator = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(50, generator=generator)}
    theirs = params["w"].clone().requires_grad_()
    optimizer = optim.sgd(schedules.exponential(LR, 0.9), momentum=0.9)
    state = optimizer.init(params)
    reference = torch.optim.SGD([theirs], LR, momentum=0.9)
    for step in range(NUM_STEPS):
        theirs.grad = torch.randn(50, generator=generator)
        reference.param_groups[0]["lr"] = LR * 0.9**step
        reference.step()
        params, _, state = optimizer.step({"w": theirs.grad}, state, params)
        assert torch.equal(params["w"], theirs)


# From learned numbers to a schedule, and where they begin.
LEARNED: dict[str, tuple[Callable, dict]] = {
    "constant": (lambda h: schedules.constant(h["value"]), {"value": 0.4}),
    "linear": (
        lambda h: schedules.linear(h["start"], h["end"], num_steps=h["length"]),
        {"start": 0.5, "end": 0.2, "length": 12.3},
    ),
    "exponential": (lambda h: schedules.exponential(h["start"], h["decay"]), {"start": 0.5, "decay": 0.9}),
    "cosine": (
        lambda h: schedules.cosine(h["start"], h["length"], end=h["end"]),
        {"start": 0.5, "end": 0.2, "length": 30.5},
    ),
    "cosine, by pattern": (
        lambda h: schedules.cosine({"weight": h["start"], "*": h["others"]}, 8, end=h["end"]),
        {"start": 0.5, "others": 0.3, "end": 0.2},
    ),
    "cosine, one an entry": (
        lambda h: schedules.cosine({"weight": h["start"], "*": 0.3}, 8),
        {"start": torch.linspace(0.3, 0.5, 6, dtype=D).reshape(2, 3)},
    ),
    "polynomial": (
        lambda h: schedules.polynomial(h["start"], 10, end=h["end"], power=h["power"]),
        {"start": 0.5, "end": 0.1, "power": 1.5},
    ),
    "step": (lambda h: schedules.step(h["start"], 2, decay=h["decay"]), {"start": 0.5, "decay": 0.8}),
    "warm-up": (
        lambda h: schedules.warmup(schedules.cosine(h["peak"], 15), 3, start=h["start"]),
        {"peak": 0.5, "start": 0.1},
    ),
    "join": (
        lambda h: schedules.join([h["first"], schedules.exponential(h["second"], 0.9), h["third"]], [2, 4]),
        {"first": 0.5, "second": 0.4, "third": 0.3},
    ),
    "per step": (lambda h: optim.per_step(h["rates"]), {"rates": torch.linspace(0.5, 0.3, 5, dtype=D)}),
    "per step and layer": (
        lambda h: optim.per_step({"weight": h["rates"], "*": h["others"]}),
        {"rates": torch.linspace(0.5, 0.3, 5, dtype=D), "others": torch.linspace(0.3, 0.4, 3, dtype=D)},
    ),
    "per step and entry": (
        lambda h: optim.per_step({"weight": h["rates"], "*": [0.1, 0.2]}),
        {"rates": torch.linspace(0.5, 0.3, 30, dtype=D).reshape(5, 2, 3)},
    ),
    "a list of tensors": (
        lambda h: optim.per_step([h["first"], 0.3, h["third"]]),
        {"first": 0.5, "third": 0.4},
    ),
}


@pytest.mark.parametrize("row", LEARNED)
def test_every_number_of_a_schedule_is_certified(row: str) -> None:
    make, hypers = LEARNED[row]
    report = check_transformation(lambda h: optim.sgd(make(h), momentum=0.5), hypers=hypers)
    for name in hypers:
        assert report.row(name, 5).gradient_norm > 1e-7
        assert report.row(name, 20).gradient_norm > 1e-7


@pytest.mark.parametrize("hyper", ["b1", "b2", "eps", "weight_decay"])
def test_other_hyper_parameters_follow_schedules(hyper: str) -> None:
    given = {"lr": 0.05, "eps": 1e-2}
    check_transformation(
        lambda h: optim.adam(**{**given, hyper: schedules.linear(h["start"], h["end"], num_steps=4)}),
        hypers={"start": 0.7, "end": 0.9},
    )


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (schedules.linear(0.5, 0.2, num_steps=10), 0.2),
        (schedules.cosine(0.5, 10, end=0.2), 0.2),
        (schedules.polynomial(0.5, 10, end=0.2, power=0.5), 0.2),
        (schedules.warmup(0.2, 10), 0.2),
        (schedules.warmup(schedules.linear(0.5, 0.2, num_steps=4), 6), 0.2),
        (schedules.join([0.5, schedules.cosine(0.5, 5, end=0.2)], [5]), 0.2),
        (optim.per_step([0.5] * 9 + [0.2]), 0.2),
        (optim.per_step(torch.tensor([0.5, 0.2], dtype=D)), 0.2),
        (schedules.exponential(1.0, 0.5), None),
        (schedules.step(1.0, 5, decay=0.5), None),
    ],
)
def test_past_its_end_a_schedule_stays(schedule, end: float | None) -> None:
    values = [float(schedule(count(step))) for step in (10, 11, 25, 1000)]
    if end is None:
        assert values[0] > values[2] > values[3] > 0
    else:
        assert values == pytest.approx([end] * 4, rel=1e-15)


def test_a_warm_up_of_no_steps_is_none() -> None:
    follows = schedules.cosine(0.5, 10)
    assert schedules.warmup(follows, 0) is follows


def test_per_step_is_by_name_or_pattern_and_may_differ_in_length() -> None:
    schedule = optim.per_step({"head.*": torch.tensor([1.0, 2.0]), "*": torch.tensor([3.0, 4.0, 5.0])})
    assert [{name: float(value) for name, value in schedule(count(step)).items()} for step in (0, 1, 2)] == [
        {"head.*": 1.0, "*": 3.0},
        {"head.*": 2.0, "*": 4.0},
        {"head.*": 2.0, "*": 5.0},
    ]


@pytest.mark.parametrize("given", [torch.float32, D], ids=str)
def test_a_schedule_has_the_dtype_of_its_tensors(given: torch.dtype) -> None:
    for schedule in (
        schedules.cosine(torch.full((3,), 0.5, dtype=given), 10),
        schedules.warmup(torch.tensor(0.5, dtype=given), 2),
        optim.per_step([torch.tensor(0.5, dtype=given), 0.2]),
    ):
        assert schedule(count(3)).dtype == given
        assert torch.vmap(schedule)(torch.arange(4)).dtype == given


SCHEDULED: dict[str, Callable] = {
    "sgd": lambda schedule: optim.sgd(schedule, momentum=schedule, weight_decay=schedule),
    "adam": lambda schedule: optim.adam(schedule, b1=schedule, eps=schedule, weight_decay=schedule),
    "a chain": lambda schedule: optim.chain(
        optim.add_decayed_weights(schedule),
        optim.scale(schedule),
        optim.trace(schedule, dampening=schedule),
        optim.clip(schedule),
        optim.scale_by_learning_rate(schedule),
    ),
}


@pytest.mark.parametrize("optimizer", SCHEDULED)
@pytest.mark.parametrize("given", [None, torch.float32, D], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_keep_their_dtype_whatever_a_schedule_is(
    dtype: torch.dtype, given: torch.dtype | None, optimizer: str
) -> None:
    # In double under vmap, and a scalar parameter would give way to a scalar rate.
    value = 0.5 if given is None else torch.tensor(0.5, dtype=given)
    schedule = schedules.cosine(value, 10)
    whole = SCHEDULED[optimizer](schedule)
    params = {"w": torch.ones(3, dtype=dtype), "scalar": torch.ones((), dtype=dtype)}

    def two_steps(at: Tensor, params: dict[str, Tensor]):
        _, updates, state = whole.step(params, aged(whole.init(params), at), params)
        return updates, *whole.step(params, state, params)

    ages = torch.arange(4)
    batched = torch.vmap(two_steps, in_dims=(0, None))(ages, params)
    assert {leaf.dtype for leaf in tree.tensors(batched)} == {dtype, torch.int64}
    for index, age in enumerate(ages):
        expected = two_steps(age, params)
        for got, one in zip(tree.tensors(batched), tree.tensors(expected), strict=True):
            assert got.dtype == one.dtype
            # A float rounds each product once more than a tensor in double, of numbers up to 4 here.
            torch.testing.assert_close(got[index], one, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (lambda x: schedules.polynomial(0.5, 10, power=x), 10),
        (lambda x: schedules.polynomial(x, 10, power=0.5), 12),
        (lambda x: schedules.step(0.5, 3, decay=0 * x), 0),
        (lambda x: schedules.join([schedules.exponential(x, 1e3), x], [5]), 2000),
        (lambda x: schedules.join([x, schedules.exponential(x, 1e3), x], [5, 8]), 2000),
        (lambda x: schedules.join([x, schedules.exponential(x, 1e-3)], [2000]), 0),
        (lambda x: schedules.warmup(schedules.exponential(x, 1e-3), 2000), 0),
        (lambda x: schedules.warmup(schedules.exponential(0.1, 0.0 * x), 5), 0),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_no_derivative_is_nan(make, at: int, batched: bool) -> None:
    def value(x: Tensor) -> Tensor:
        if not batched:
            return torch.as_tensor(make(x)(count(at)))
        return torch.vmap(lambda one: make(x)(one))(torch.tensor([at, at])).sum()

    x = torch.tensor(0.7, dtype=D)
    assert value(x).isfinite()
    assert torch.func.grad(value)(x).isfinite()
    assert torch.func.grad(torch.func.grad(value))(x).isfinite()


def test_a_rate_that_is_not_in_use_yet_has_a_gradient_of_zero_under_vmap() -> None:
    def total(x: Tensor) -> Tensor:
        schedule = schedules.join([0.5, x[0], x[1]], [2, 4])
        return torch.vmap(schedule)(torch.tensor([1, 3])).sum()

    x = torch.tensor([2.0, 3.0], dtype=D)
    assert_close(torch.func.grad(total)(x), torch.tensor([1.0, 0.0], dtype=D), tolerance=1e-15)


def test_a_compiled_step_takes_a_schedule() -> None:
    optimizer, params = optim.sgd(schedules.warmup(schedules.cosine(0.5, 10), 2)), {"w": torch.ones(3, dtype=D)}
    compiled = torch.compile(lambda state: optimizer.step(params, state, params)[0], fullgraph=True, backend="eager")
    for step in (1, 3, 20):
        state = aged(optimizer.init(params), count(step))
        assert_close(compiled(state), optimizer.step(params, state, params)[0], tolerance=1e-15)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: schedules.linear(0.1, 0.2, num_steps=0), ["linear", "0 steps", "above 0"]),
        (lambda: schedules.cosine(0.1, -5), ["cosine", "-5"]),
        (lambda: schedules.cosine(0.1, math.nan), ["cosine", "nan"]),
        (lambda: schedules.cosine(0.1, "10"), ["'10'", "number above 0"]),
        (lambda: schedules.polynomial(0.1, -1), ["polynomial", "-1"]),
        (lambda: schedules.polynomial(0.1, 10, power=0.0), ["power", "constant"]),
        (lambda: schedules.step(0.1, 0), ["every", "at least 1"]),
        (lambda: schedules.step(0.1, 2.5), ["every", "2.5"]),
        (lambda: schedules.warmup(0.1, -1), ["num_steps is -1"]),
        (lambda: schedules.warmup("cosine", 3), ["'cosine'"]),
        (lambda: schedules.cosine([0.1], 3), ["start", "[0.1]", "dict"]),
        (lambda: schedules.cosine(True, 3), ["start", "True"]),
        (lambda: schedules.cosine({"w": 0.1}, 3, end={"v": 0.1}), ["'v'", "start and end"]),
        (lambda: schedules.join([0.1, 0.2], []), ["2 schedules", "0 boundaries"]),
        (lambda: schedules.join([0.1], [3]), ["1 schedules", "1 boundaries"]),
        (lambda: schedules.join([0.1, 0.2, 0.3], [5, 5]), ["[5, 5]", "increasing"]),
        (lambda: schedules.join([0.1, 0.2], [0]), ["[0]", "above 0"]),
        (lambda: schedules.join([0.1, 0.2], [1.5]), ["[1.5]", "whole"]),
        (lambda: schedules.join([{"w": 0.1}, {"v": 0.1}], [3])(count(0)), ["before and after"]),
        (lambda: optim.per_step(torch.tensor(0.1)), ["[]", "[num_steps, ...]"]),
        (lambda: optim.per_step(torch.zeros(0)), ["[0]"]),
        (lambda: optim.per_step(0.1), ["0.1", "[num_steps, ...]"]),
        (lambda: optim.per_step([]), ["[]"]),
        (lambda: optim.per_step(["a"]), ["'a'"]),
        (lambda: optim.per_step({"w": torch.tensor(0.1)}), ["[num_steps, ...]"]),
        (lambda: optim.sgd(schedules.cosine({"v": 0.1}, 3)).init({"w": torch.ones(1)}), ["lr", "'v'"]),
        (lambda: optim.sgd(schedules.cosine(-0.1, 3)).init({"w": torch.ones(1)}), ["lr", "-0.1"]),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
