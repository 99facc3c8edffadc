"""Hyper-parameters: forms and mistakes; and that nothing is singular."""

import pickle

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim, tree
from metalearn.optim.numerics import norm, quotient, safe_sqrt

D = torch.float64
PARAMS = {"body.weight": torch.ones(2, 3), "head.weight": torch.ones(3), "head.bias": torch.ones(())}


def _rates(lr: optim.hypers.Hyper) -> dict[str, float]:
    optimizer = optim.sgd(lr)
    grads = {name: torch.ones_like(value) for name, value in PARAMS.items()}
    updates = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]
    return {name: round(-value.flatten()[0].item(), 6) for name, value in updates.items()}


def test_a_name_comes_before_a_pattern_and_the_first_pattern_before_the_next() -> None:
    assert _rates({"*": 0.1, "head.weight": 0.2}) == {"body.weight": 0.1, "head.weight": 0.2, "head.bias": 0.1}
    assert _rates({"head.*": 0.2, "*": 0.1}) == {"body.weight": 0.1, "head.weight": 0.2, "head.bias": 0.2}
    assert _rates({"*.weight": 0.3, "head.*": 0.2}) == {"body.weight": 0.3, "head.weight": 0.3, "head.bias": 0.2}


def _of(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def _late(optimizer: optim.GradientTransformation) -> None:
    state = optimizer.init(PARAMS)
    for _ in range(4):
        _, state = optimizer.update(PARAMS, state, PARAMS)


MISTAKES = {
    "an unknown hyper-parameter": (lambda: optim.adam(weight_decya=0.1), ["adam", "'weight_decya'", "'weight_decay'"]),
    "torch's name of a pair": (lambda: optim.adamw(betas=(0.9, 0.99)), ["'betas'", "b1=…", "b2=…"]),
    "another pair": (lambda: optim.rprop(etas=(0.5, 1.2)), ["eta_minus", "eta_plus"]),
    "a flag that is none": (lambda: optim.sgd(0.1, momentum=0.9, nesterov="no"), ["nesterov", "'no'", "True or False"]),
    "a text": (lambda: optim.sgd("fast"), ["lr", "'fast'", "number"]),
    "None": (lambda: optim.adam(None), ["lr", "None"]),
    "out of range": (lambda: optim.adam(b2=1.0), ["b2", "is 1", "[0, 1)", "1 - b2**t"]),
    "not a number": (lambda: optim.sgd(float("nan")), ["lr", "nan", "at least 0"]),
    "below zero": (lambda: optim.rmsprop(weight_decay=-1e-4), ["weight_decay", "-0.0001"]),
    "an open range": (lambda: optim.rprop(eta_plus=1.0), ["eta_plus", "above 1"]),
    "a range that ends": (lambda: optim.adafactor(beta2_decay=0.8), ["beta2_decay", "at most 0"]),
    "below one": (lambda: optim.adafactor(d=0.5), ["d is 0.5", "at least 1"]),
    "in a dict": (lambda: optim.adam(b1={"head.*": 1.5, "*": 0.9}), ["b1", "1.5"]),
    "a tensor out of range": (lambda: optim.adam(b2=_of(1.0)).init(PARAMS), ["b2", "is 1", "[0, 1)"]),
    "a tensor by pattern": (
        lambda: optim.adam(b2={"head.*": _of(1.5), "*": 0.9}).init(PARAMS), ["b2", "'head.*'", "1.5"],
    ),
    "of a schedule": (lambda: optim.adam(b1=lambda count: _of(2.0)).init(PARAMS), ["b1", "is 2"]),
    "under vmap": (
        lambda: torch.vmap(lambda b: optim.adam(b2=b).init(PARAMS).mean)(torch.tensor([0.9, 1.0])), ["b2", "is 1"],
    ),
    "while it is differentiated": (
        lambda: torch.func.grad(lambda b: optim.adam(b2=b).init(PARAMS).mean["head.bias"])(_of(-0.5)), ["b2", "-0.5"],
    ),
    "a shape": (
        lambda: optim.adam(torch.ones(5)).init(PARAMS), ["lr", "'body.weight'", "[5]", "[2, 3]", "per_step"],
    ),
    "a larger shape": (
        lambda: optim.sgd({"head.bias": torch.ones(2), "*": 0.1}).init(PARAMS), ["lr", "'head.bias'", "[2]", "[]"],
    ),
    "a pattern of nothing": (
        lambda: optim.sgd({"haed.*": 0.1, "*": 0.2}).init(PARAMS), ["lr", "'haed.*'", "none of the 3", "'head.*'"],
    ),
    "a misspelt name": (
        lambda: optim.adam({"head.wait": 0.1, "*": 0.2}).init(PARAMS), ["'head.wait'", "'head.weight'"],
    ),
    "a parameter without a value": (lambda: optim.sgd({"head.*": 0.1}).init(PARAMS), ["lr", "'body.weight'", "'*'"]),
    "other names of gradients": (
        lambda: optim.adam().update({"w": torch.ones(1)}, optim.adam().init(PARAMS), PARAMS), ["'w'", "no parameter"],
    ),
    "a missing gradient": (
        lambda: optim.sgd(0.1, momentum=0.9).update({}, optim.sgd(0.1, momentum=0.9).init(PARAMS), PARAMS),
        ["'body.weight'", "no update"],
    ),
    "a gradient of another shape": (
        lambda: optim.adam().update({**PARAMS, "head.weight": torch.ones(4)}, optim.adam().init(PARAMS), PARAMS),
        ["'head.weight'", "[4]", "[3]"],
    ),
    "a gradient of another dtype": (
        lambda: optim.sgd(0.1).update({**PARAMS, "head.bias": _of(1.0, D)}, optim.sgd(0.1).init(PARAMS), PARAMS),
        ["'head.bias'", "float64", "float32"],
    ),
    "a gradient that is None": (
        lambda: optim.sgd(0.1).update({**PARAMS, "head.bias": None}, optim.sgd(0.1).init(PARAMS), PARAMS),
        ["'head.bias'", "None", "zeros", "only_if"],
    ),
    "an integer parameter": (lambda: optim.adam().init({"steps": torch.tensor(3)}), ["'steps'", "int64", "buffers"]),
    "a dict's key": (lambda: optim.adam({0: 0.1}), ["lr", "for 0", "text"]),
    "a complex rate": (lambda: optim.sgd(torch.tensor(0.1 + 0.5j)), ["lr", "complex64"]),
    "a schedule that leaves its range": (
        lambda: _late(optim.adam(b1=optim.schedules.linear(0.9, 1.0, num_steps=2))), ["b1", "is 1", "[0, 1)"],
    ),
    "a schedule that returns nothing": (lambda: _late(optim.sgd(lambda count: None)), ["schedule of lr", "None"]),
    "a schedule of another shape": (
        lambda: _late(optim.adam(lambda count: torch.ones(7) if count else 0.1)), ["lr", "'body.weight'", "[7]"],
    ),
    "a late clip of another shape": (
        lambda: _late(optim.chain(optim.clip(lambda count: torch.ones(4, 2, 3) if count else 1.0), optim.sgd(0.1))),
        ["'body.weight'", "[4, 2, 3]", "[2, 3]"],
    ),
    "a carried state with a tensor out of range": (
        lambda: optim.adam(b2=_of(1.0)).update(PARAMS, optim.adam().init(PARAMS), PARAMS), ["b2", "is 1"],
    ),
    "an entry's value of a matrix's": (
        lambda: optim.adafactor(beta2_decay={"w": torch.full((2, 2), -0.8)}).init({"w": torch.ones(2, 2)}),
        ["beta2_decay", "'w'", "whole"],
    ),
    "a state of other shapes": (
        lambda: optim.adam().update(PARAMS, optim.adam().init({name: _of(1.0) for name in PARAMS}), PARAMS),
        ["`mean`", "'body.weight'", "[]", "[2, 3]"],
    ),
    "a state of another dtype": (
        lambda: optim.adam().update(PARAMS, optim.adam().init(tree.cast(PARAMS, D)), PARAMS), ["`mean`", "float64"],
    ),
    "a chain's state": (
        lambda: optim.chain(optim.sgd(0.1)).update(PARAMS, optim.sgd(0.1).init(PARAMS), PARAMS),
        ["chain", "CountState"],
    ),
    "parameters in place of a rate": (lambda: optim.adam([torch.ones(2)], lr=0.1), ["adam", "'lr'", "init(params)"]),
    "too many numbers": (lambda: optim.adam(0.1, 0.9), ["adam", "positional", "names"]),
    "a module": (lambda: optim.adam().init(torch.nn.Linear(2, 2)), ["Linear", "dict of tensors"]),
    "a factory in a chain": (lambda: optim.chain(optim.sgd), ["chain", "sgd", "GradientTransformation"]),
    "a factory that accumulates": (lambda: optim.accumulate(optim.sgd, 2), ["accumulate", "sgd"]),
    "a mask of bools": (lambda: optim.masked(optim.sgd(0.1), {"w": True}), ["{'w': True}", "patterns"]),
    "a mask of nothing": (lambda: optim.masked(optim.sgd(0.1), []), ["no parameter"]),
    "a condition that is a number": (lambda: optim.only_if(optim.sgd(0.1), 5), ["only_if", "5", "function"]),
    "the state of others": (
        lambda: optim.adam().update(PARAMS, optim.adam().init({"w": torch.ones(1)}), PARAMS),
        ["state", "'body.weight'", "init"],
    ),
    "a clip's state": (
        lambda: optim.clip(1.0).update(PARAMS, optim.adam().init(PARAMS), PARAMS), ["AdamState", "CountState"],
    ),
    "an accumulator's state": (
        lambda: optim.accumulate(optim.adam(), 2).update(PARAMS, optim.adam().init(PARAMS), PARAMS),
        ["AdamState", "AccumulationState"],
    ),
    "a partition's state": (
        lambda: optim.partition({"*": optim.adam()}).update(PARAMS, optim.adam().init(PARAMS), PARAMS),
        ["AdamState", "PartitionState"],
    ),
    "Rprop's bounds": (lambda: optim.rprop(min_step=1.0, max_step=0.1), ["min_step is 1", "max_step 0.1"]),
    "the state of another": (
        lambda: optim.adam().update(PARAMS, optim.sgd(0.1, momentum=0.9).init(PARAMS), PARAMS),
        ["TraceState", "square"],
    ),
    "Muon's vector": (lambda: optim.muon().init(PARAMS), ["'head.weight'", "[3]", "2 axes", "partition"]),
    "Muon's adjustment": (lambda: optim.muon(adjust_lr_fn="orginal"), ["adjust_lr_fn", "'original'"]),
    "Muon's coefficients": (lambda: optim.muon(ns_coefficients=(1.0, 2.0)), ["three"]),
    "Muon's coefficient": (lambda: optim.muon(ns_coefficients=1.0), ["three"]),
    "Muon's steps": (lambda: optim.muon(ns_steps=-1), ["ns_steps", "-1"]),
    "a complex matrix": (
        lambda: optim.adafactor().init({"w": torch.ones(2, 2, dtype=torch.complex64)}), ["'w'", "complex"],
    ),
    "dampening alone": (lambda: optim.sgd(0.1, dampening=0.5), ["dampening", "momentum"]),
    "Nesterov with dampening": (lambda: optim.sgd(0.1, momentum=0.9, dampening=0.5, nesterov=True), ["dampening=0.0"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_a_line(mistake: str) -> None:
    call, words = MISTAKES[mistake]
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_learned_rate_may_be_negative() -> None:
    assert _rates(torch.tensor(-0.5)) == {"body.weight": -0.5, "head.weight": -0.5, "head.bias": -0.5}


SINGULAR = {
    "safe_sqrt": (lambda x: safe_sqrt(x).sum(), torch.zeros(3, dtype=D)),
    "norm": (norm, torch.zeros(3, dtype=D)),
    "quotient by zero": (lambda x: quotient(x, x, 0.0).sum(), torch.zeros(3, dtype=D)),
    "quotient by a root": (lambda x: quotient(x, safe_sqrt(x * x), 1e-8).sum(), torch.zeros(3, dtype=D)),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_first_and_second_derivatives_are_finite_at_the_singular_point(name: str) -> None:
    function, at = SINGULAR[name]
    first = torch.func.grad(function)(at)
    second = torch.func.jacrev(torch.func.grad(function))(at)
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert torch.equal(second, torch.zeros_like(second))
    # a quotient with eps has the slope 1 / eps there, which is that of x / (|x| + eps)
    assert torch.equal(first, torch.full_like(at, 1e8 if name == "quotient by a root" else 0.0))


def test_the_numbers_are_those_of_torch_wherever_those_are_finite() -> None:
    x = torch.cat([torch.zeros(2, dtype=D), torch.logspace(-300, 300, 50, dtype=D)])
    for history in (False, True):
        given = x.clone().requires_grad_(history)
        assert torch.equal(safe_sqrt(given), x.sqrt())
        assert torch.equal(quotient(given, x.sqrt(), 1e-8), x / (x.sqrt() + 1e-8))
        assert torch.equal(quotient(given[2:], x[2:], 0.0), x[2:] / x[2:])


def test_a_dict_may_hold_schedules_and_is_copied() -> None:
    rates: dict[str, optim.hypers.Hyper] = {"head.*": optim.schedules.step(0.4, 1, decay=0.5), "*": 0.1}
    optimizer = optim.sgd(rates)
    rates["*"] = 7.0
    state, seen = optimizer.init(PARAMS), []
    for _ in range(3):
        updates, state = optimizer.update(
            {name: torch.ones_like(value) for name, value in PARAMS.items()}, state, PARAMS
        )
        seen.append((-updates["head.bias"].item(), -updates["body.weight"][0, 0].item()))
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([(0.4, 0.1), (0.2, 0.1), (0.1, 0.1)]))


def test_a_second_moment_below_zero_is_nan_with_history_and_without() -> None:
    optimizer, params = optim.adam(0.1), {"w": torch.ones(2)}
    state = optimizer.init(params)._replace(square={"w": torch.tensor([-1.0, 1.0])})
    for history in (False, True):
        grads = {"w": torch.ones(2, requires_grad=history)}
        assert optimizer.step(grads, state, params)[0]["w"].isnan().tolist() == [True, False]


@pytest.mark.parametrize("clip", [optim.clip, optim.clip_by_norm, optim.clip_by_global_norm])
@pytest.mark.parametrize(
    "limit", [float("inf"), torch.tensor(float("inf")), lambda count: float("inf")], ids=["float", "tensor", "schedule"]
)
def test_a_limit_without_end_clips_nothing(clip, limit) -> None:
    def clipped(x: Tensor) -> Tensor:
        part = clip(limit)
        return part.update({"w": x}, part.init({"w": x}), {"w": x})[0]["w"]

    x = torch.tensor([1.0, 2.0])
    assert torch.equal(clipped(x), x)
    assert torch.equal(torch.func.jacrev(clipped)(x), torch.eye(2))


@pytest.mark.parametrize("name", optim.FAMILY)
def test_an_optimizer_can_be_sent_to_another_process(name: str) -> None:
    params = {"w": torch.linspace(-1, 1, 6, dtype=D).reshape(2, 3)}
    optimizer = optim.chain(optim.scale_by_adam(), optim.trace(0.9), optim.FAMILY[name](torch.tensor(0.1, dtype=D)))
    again = pickle.loads(pickle.dumps(optimizer))
    expected, got = (each.step(params, each.init(params), params)[0]["w"] for each in (optimizer, again))
    assert torch.equal(got, expected)


def test_a_state_can_be_printed_stacked_and_gone_on_with() -> None:
    params = {"w": torch.linspace(-1, 1, 4, dtype=D)}
    optimizer = optim.adam(0.1)
    young, old = optimizer.init(params), optimizer.init(params)
    for _ in range(3):
        _, _, old = optimizer.step({"w": params["w"] + 1}, old, params)
    assert str(young).startswith("AdamState(num_steps=tensor(0), mean={'w': tensor(")
    assert old._fields == ("num_steps", "mean", "square")
    both = torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), young, old)
    grads = {"w": torch.stack([params["w"], params["w"]])}
    stacked = {"w": torch.stack([params["w"], params["w"]])}
    got, after = torch.vmap(optimizer.update)(grads, both, stacked)
    for index, state in enumerate((young, old)):
        expected, one = optimizer.update(params, state, params)
        torch.testing.assert_close(got["w"][index], expected["w"], rtol=1e-14, atol=0)
        torch.testing.assert_close(after.square["w"][index], one.square["w"], rtol=1e-14, atol=0)
    assert after.num_steps.tolist() == [1, 4]


def test_stacked_parameters_need_no_special_state() -> None:
    # An optimizer that treats entries alike takes a batch of states as it is: many runs at once, without vmap.
    stacked = {"w": torch.randn(3, 5, dtype=D, generator=torch.Generator().manual_seed(0))}
    optimizer = optim.adamw(0.1, weight_decay=0.1)
    state, got = optimizer.init(stacked), stacked
    for _ in range(4):
        got, _, state = optimizer.step({"w": got["w"] ** 2}, state, got)
    for index in range(3):
        one = {"w": stacked["w"][index]}
        own = optimizer.init(one)
        for _ in range(4):
            one, _, own = optimizer.step({"w": one["w"] ** 2}, own, one)
        torch.testing.assert_close(got["w"][index], one["w"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", optim.FAMILY)
def test_an_optimizer_is_made_and_steps_in_a_compiled_function(name: str) -> None:
    make, params = optim.FAMILY[name], {f"p{index}": torch.randn(3, 2, dtype=D) for index in range(9)}
    state = make(0.1).init(params)

    def two_steps(rate: Tensor) -> tuple[Tensor, ...]:
        optimizer = make(rate)
        moved, _, after = optimizer.step(params, state, params)
        return tuple(optimizer.step(params, after, moved)[0].values())

    torch.compiler.reset()
    rate = torch.tensor(0.1, dtype=D)
    compiled = torch.compile(two_steps, fullgraph=True, backend="eager")(rate)
    torch.testing.assert_close(compiled, two_steps(rate), rtol=1e-14, atol=1e-15)
