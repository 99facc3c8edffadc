"""The inner loop: a fold of pure, differentiable steps."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from metalearn import Aux, Problem, UsageError, adapt, functionalize, optim, tree
from metalearn.testing import assert_close

D = torch.float64


def _setting():
    torch.manual_seed(0)
    model = functionalize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double())
    support = torch.randn(6, 3, dtype=D), torch.randn(6, 1, dtype=D)

    def loss_fn(params, buffers, batch):
        output, buffers = model(params, buffers, batch[0])
        return (output - batch[1]).square().mean(), buffers

    return model, support, loss_fn


def test_zero_steps_are_the_identity() -> None:
    model, support, loss_fn = _setting()
    adapted = adapt(
        loss_fn, model.params, model.buffers, support, optimizer=optim.sgd(0.1), num_inner_steps=0, trace=True
    )
    assert all(adapted.params[name] is value for name, value in model.params.items())
    assert adapted.trace == ()


def test_equals_a_loop_that_mutates() -> None:
    model, (x, y), loss_fn = _setting()
    adapted = adapt(
        loss_fn, model.params, model.buffers, (x, y), optimizer=optim.sgd(0.1, momentum=0.9), num_inner_steps=7
    )
    module = copy.deepcopy(model.module)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for _ in range(7):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close({**adapted.params, **adapted.buffers}[name], value, rtol=1e-12, atol=1e-12)


def test_inputs_are_not_mutated() -> None:
    model, support, loss_fn = _setting()
    before = copy.deepcopy((model.params, model.buffers, support))
    adapt(loss_fn, model.params, model.buffers, support, optimizer=optim.adam(0.1), num_inner_steps=3)
    for a, b in zip(tree.tensors(before), tree.tensors((model.params, model.buffers, support)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", [optim.sgd(0.1, momentum=0.9), optim.adam(0.1)])
def test_goes_on_from_where_it_stopped(optimizer) -> None:
    model, support, loss_fn = _setting()
    whole = adapt(loss_fn, model.params, model.buffers, support, optimizer=optimizer, num_inner_steps=5)
    half = adapt(loss_fn, model.params, model.buffers, support, optimizer=optimizer, num_inner_steps=2)
    rest = adapt(
        loss_fn, half.params, half.buffers, support, optimizer=optimizer, num_inner_steps=3, opt_state=half.opt_state
    )
    assert all(torch.equal(a, b) for a, b in zip(tree.tensors(whole), tree.tensors(rest), strict=True))
    assert all(torch.equal(rest.params[name], value) for name, value in whole.params.items())


def test_the_trace_shows_every_step() -> None:
    model, support, loss_fn = _setting()
    adapted = adapt(
        loss_fn, model.params, model.buffers, support, optimizer=optim.sgd(0.1), num_inner_steps=3, trace=True
    )
    assert len(adapted.trace) == 3
    following = [step.params for step in adapted.trace[1:]] + [adapted.params]
    for step, after in zip(adapted.trace, following, strict=True):
        for name in step.params:
            torch.testing.assert_close(step.updates[name], -0.1 * step.grads[name], rtol=1e-14, atol=0)
            torch.testing.assert_close(step.params[name] + step.updates[name], after[name], rtol=1e-14, atol=1e-16)
    losses = [step.loss.item() for step in adapted.trace]
    assert losses == sorted(losses, reverse=True)


def test_plain_autograd_and_torch_func_give_the_same_gradient() -> None:
    model, support, loss_fn = _setting()

    def after(params, rate):
        adapted = adapt(loss_fn, params, model.buffers, support, optimizer=optim.sgd(rate), num_inner_steps=3)
        return loss_fn(adapted.params, adapted.buffers, support)[0]

    rate = torch.tensor(0.1, dtype=D, requires_grad=True)
    params = {name: value.clone().requires_grad_() for name, value in model.params.items()}
    plain = torch.autograd.grad(after(params, rate), [*params.values(), rate])
    grads, rate_grad = torch.func.grad(after, argnums=(0, 1))(tree.detach(params), rate.detach())
    assert_close(plain, (*grads.values(), rate_grad), tolerance=1e-13)
    assert rate_grad.abs() > 1e-6


def test_stop_gradient_is_first_order_for_a_start_but_not_for_a_rate() -> None:
    def loss_fn(params, buffers, target):
        return 0.5 * (params["w"] - target).square().sum()

    def after(w, rate, first_order):
        optimizer = optim.chain(optim.stop_gradient(), optim.sgd(rate)) if first_order else optim.sgd(rate)
        adapted = adapt(loss_fn, {"w": w}, {}, torch.ones(1, dtype=D), optimizer=optimizer, num_inner_steps=1)
        return adapted.params["w"].sum()

    w, rate = torch.zeros(1, dtype=D), torch.tensor(0.25, dtype=D)
    exact, first_order = (torch.func.grad(after, argnums=(0, 1))(w, rate, flag) for flag in (False, True))
    # w' = w - rate (w - 1): dw'/dw = 1 - rate, or 1 to first order; dw'/drate = 1 - w either way.
    assert (exact[0].item(), exact[1].item()) == (0.75, 1.0)
    assert (first_order[0].item(), first_order[1].item()) == (1.0, 1.0)


def test_an_unused_parameter_gets_a_zero_gradient() -> None:
    used_only = {"used": torch.ones(1), "unused": torch.ones(2)}
    adapted = adapt(
        lambda p, b, _: p["used"].sum(), used_only, {}, None, optimizer=optim.sgd(1.0), num_inner_steps=1, trace=True
    )
    assert torch.equal(adapted.trace[0].grads["unused"], torch.zeros(2))
    assert torch.equal(adapted.params["used"], torch.zeros(1))


def test_a_loss_may_return_metrics() -> None:
    def loss_fn(params, buffers, batch):
        return params["w"].sum(), Aux({"calls": buffers["calls"] + 1}, {"metric": params["w"].sum()})

    adapted = adapt(
        loss_fn,
        {"w": torch.ones(1)},
        {"calls": torch.tensor(0)},
        None,
        optimizer=optim.sgd(1.0),
        num_inner_steps=3,
        trace=True,
    )
    assert adapted.buffers["calls"].item() == 3
    assert [step.metrics["metric"].item() for step in adapted.trace] == [1.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_inner_steps": -1}, ["num_inner_steps", "-1"]),
        ({"num_inner_steps": 1.5}, ["num_inner_steps", "1.5"]),
        ({"buffers": {"w": torch.ones(1)}}, ["'w'", "buffer comes first"]),
        ({"loss_fn": lambda p, b, x: p["w"]}, ["shape [2]", "scalar"]),
        ({"loss_fn": lambda p, b, x: (p["w"].sum(), Aux({}, {"late": 1.0}))}, ["'late'", "scalar tensor"]),
        ({"loss_fn": lambda p, b, x: "high"}, ["str", "(loss, buffers)"]),
        ({"optimizer": optim.sgd({"v": 0.1})}, ["'w'", "'v'"]),
    ],
)
def test_mistakes_are_named(change, words: list[str]) -> None:
    settings = {
        "loss_fn": lambda p, b, x: p["w"].sum(), "params": {"w": torch.ones(2)}, "buffers": {}, "support": None,
        "optimizer": optim.sgd(0.1), "num_inner_steps": 1,
    }  # fmt: skip
    with pytest.raises(UsageError) as caught:
        adapt(**{**settings, **change})
    for word in words:
        assert word in str(caught.value)


def test_a_problem_checks_its_outer_weights() -> None:
    problem = Problem(init=None, inner_loss=None, optimizer=None, outer_loss=None, num_inner_steps=2)
    with pytest.raises(UsageError, match="3 weights for 2 inner steps"):
        replace(problem, outer_weights=[1.0, 1.0, 1.0])
