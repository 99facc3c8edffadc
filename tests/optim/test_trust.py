"""LARS and LAMB against their papers' equations, and the ratio where a norm is zero."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim
from metalearn.testing import assert_close, check_transformation

D = torch.float64


class PaperOptimizer(torch.optim.Optimizer):
    """An optimizer written as in a paper: `move(param, grad, state, step)` returns the next parameter."""

    def __init__(self, params: list[Tensor], move: Callable[[Tensor, Tensor, dict, int], Tensor]) -> None:
        super().__init__(params, {})
        self.move, self.count = move, 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.count += 1
        for param in self.param_groups[0]["params"]:
            param.copy_(self.move(param.clone(), param.grad, self.state[param], self.count))


def lars_of_the_paper(params: list[Tensor]) -> torch.optim.Optimizer:
    """Algorithm 1 of arXiv:1708.03888, the ratio 1 where a norm is zero."""
    rate, momentum, decay, trust = 0.7, 0.8, 0.05, 0.1

    def move(w: Tensor, g: Tensor, state: dict, step: int) -> Tensor:
        sizes = w.norm().item(), g.norm().item()
        local = trust * sizes[0] / (sizes[1] + decay * sizes[0]) if min(sizes) > 0 else 1.0
        state["v"] = momentum * state.get("v", 0.0) + rate * local * (g + decay * w)
        return w - state["v"]

    return PaperOptimizer(params, move)


def lamb_of_the_paper(params: list[Tensor]) -> torch.optim.Optimizer:
    """Algorithm 2 of arXiv:1904.00962, the ratio 1 where a norm is zero."""
    rate, b1, b2, eps, decay = 0.02, 0.8, 0.95, 1e-3, 0.05

    def move(x: Tensor, g: Tensor, state: dict, step: int) -> Tensor:
        state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
        state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g**2
        m, v = state["m"] / (1 - b1**step), state["v"] / (1 - b2**step)
        u = m / (v.sqrt() + eps) + decay * x
        sizes = x.norm().item(), u.norm().item()
        return x - rate * (sizes[0] / sizes[1] if min(sizes) > 0 else 1.0) * u

    return PaperOptimizer(params, move)


LARS = {"lr": 0.7, "coefficient": 0.1, "momentum": 0.8, "weight_decay": 0.05}
LAMB = {"lr": 0.02, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.05}


@pytest.mark.parametrize(
    ("make", "hypers", "reference"),
    [(optim.lars, LARS, lars_of_the_paper), (optim.lamb, LAMB, lamb_of_the_paper)],
    ids=["lars", "lamb"],
)
def test_equals_the_paper_over_100_steps_and_every_derivative_is_certified(make, hypers, reference) -> None:
    report = check_transformation(lambda h: make(**h), hypers=hypers, reference=reference)
    assert report.reference_error <= 1e-12
    assert all(report.row(name, steps).gradient_norm > 1e-7 for name in hypers for steps in (5, 20))


def test_every_hyper_parameter_of_the_ratio_is_certified() -> None:
    hypers = {"coefficient": 0.2, "weight_decay": 0.1, "eps": 0.05}
    report = check_transformation(lambda h: optim.scale_by_trust_ratio(**h), hypers=hypers, is_whole=False)
    assert all(report.row(name, steps).gradient_norm > 1e-5 for name in hypers for steps in (5, 20))


def test_a_coefficient_an_entry_and_a_step_is_certified() -> None:
    check_transformation(
        lambda h: optim.chain(
            optim.scale_by_trust_ratio({"weight": h["weight"], "*": 0.2}, weight_decay=optim.per_step(h["decays"])),
            optim.scale_by_learning_rate(0.5),
        ),
        hypers={
            "weight": torch.linspace(0.1, 0.3, 6, dtype=D).reshape(2, 3),
            "decays": torch.tensor([0.1, 0.2, 0.3], dtype=D),
        },
    )


def test_the_update_is_as_large_as_the_parameter() -> None:
    params = {"w": torch.tensor([3.0, 4.0], dtype=D), "v": torch.tensor([[0.3], [0.4]], dtype=D)}
    grads = {"w": torch.tensor([1.0, -7.0], dtype=D), "v": torch.tensor([[1e8], [1e-8]], dtype=D)}
    part = optim.scale_by_trust_ratio()
    updates, _ = part.update(grads, part.init(params), params)
    for name, value in updates.items():
        assert_close(value.norm(), params[name].norm(), tolerance=1e-14)
        assert_close(value / value.norm(), grads[name] / grads[name].norm(), tolerance=1e-14)
    biases_left_out = optim.masked(optim.scale_by_trust_ratio(), "w")
    updates, _ = biases_left_out.update(grads, biases_left_out.init(params), params)
    assert torch.equal(updates["v"], grads["v"])


@pytest.mark.parametrize("which", ["parameter", "update", "both"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_the_ratio_is_one_where_a_norm_is_zero_with_a_finite_derivative(which: str, eps: float) -> None:
    part = optim.scale_by_trust_ratio(torch.tensor(0.3, dtype=D), eps=torch.tensor(eps, dtype=D))
    x, y = torch.ones(3, dtype=D), torch.full((3,), 2.0, dtype=D)
    param = torch.zeros_like(x) if which != "update" else x
    update = torch.zeros_like(y) if which != "parameter" else y

    def total(both: tuple[Tensor, Tensor]) -> Tensor:
        updates, _ = part.update({"w": both[1]}, part.init({"w": both[0]}), {"w": both[0]})
        return updates["w"].sum()

    assert torch.equal(part.update({"w": update}, part.init({"w": param}), {"w": param})[0]["w"], update)
    by_param, by_update = torch.func.grad(total)((param, update))
    assert torch.equal(by_param, torch.zeros(3, dtype=D))
    assert torch.equal(by_update, torch.ones(3, dtype=D))
    second = torch.func.hessian(total)((param, update))
    assert not any(block.any() for row in second for block in row)


def test_parameters_keep_their_dtype() -> None:
    params = {"half": torch.full((300,), 30.0, dtype=torch.float16), "c": torch.tensor([3.0 + 4.0j, 0.0])}
    for hyper in (0.5, torch.tensor(0.5, dtype=D)):
        part = optim.scale_by_trust_ratio(hyper, weight_decay=hyper, eps=hyper)
        updates, _ = part.update(params, part.init(params), params)
        assert {name: value.dtype for name, value in updates.items()} == {"half": torch.float16, "c": torch.complex64}
        # r (u + decay * w) with u = w, so 1.5 w times 0.5 |w| / (1.5 |w| + 0.5).
        for name, value in params.items():
            size = value.abs().float().norm()
            torch.testing.assert_close(updates[name], (value * 0.75 * size / (1.5 * size + 0.5)).to(value.dtype))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optim.scale_by_trust_ratio(-1.0), ["coefficient", "-1"]),
        (lambda: optim.scale_by_trust_ratio(eps=-1.0), ["eps", "-1"]),
        (lambda: optim.lars(trust_coefficient=0.1), ["trust_coefficient", "'coefficient'"]),
        (lambda: optim.lars(momentum=-0.1), ["momentum", "-0.1"]),
        (lambda: optim.lamb(b2=1.0), ["b2", "[0, 1)"]),
        (lambda: optim.lamb(betas=(0.9, 0.99)), ["b1=", "b2="]),
        (lambda: optim.lamb({"v": 0.1}).init({"w": torch.ones(1)}), ["lr", "'v'"]),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
