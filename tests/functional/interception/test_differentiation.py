"""Derivatives that a forward takes itself (the rows of the table of modules certify second order)."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from metalearn import UsageError, functionalize

D = torch.float64


class _Energy(nn.Module):
    def __init__(self, slope) -> None:
        super().__init__()
        self.net, self.slope = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(D), slope

    def forward(self, x):
        return self.slope(self.net, x)


def _of_a_copy(net, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]


def _of_the_input(net, x):
    x.requires_grad = True
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]


def _by_a_jacobian(net, x):
    return torch.autograd.functional.jacobian(lambda x: net(x).sum(), x, create_graph=True)


def _slope(net, x):
    return grad(lambda x: net(x).sum())(x)


def _model(slope):
    torch.manual_seed(0)
    return functionalize(_Energy(slope))


def _gradient(model, x):
    return grad(lambda params: model(params, model.buffers, x)[0].square().sum())(model.params)


@pytest.mark.parametrize("slope", [_of_a_copy, _of_the_input, _by_a_jacobian])
def test_derivatives_in_forward_are_those_of_torch_func(slope) -> None:
    model, reference = _model(slope), _model(_slope)
    xs = torch.randn(3, 5, 3, dtype=D, generator=torch.Generator().manual_seed(1))
    expected = [reference(reference.params, reference.buffers, x)[0] for x in xs]
    for got in (
        vmap(lambda x: model(model.params, model.buffers, x)[0])(xs),
        [model(model.params, model.buffers, x.clone())[0] for x in xs],
    ):
        torch.testing.assert_close(torch.stack(list(got)), torch.stack(expected), rtol=1e-12, atol=1e-14)
    gradients = vmap(lambda x: _gradient(model, x))(xs)
    for index, x in enumerate(xs):
        torch.testing.assert_close(
            {name: value[index] for name, value in gradients.items()}, _gradient(reference, x), rtol=1e-12, atol=1e-14
        )
    assert not xs.requires_grad


@pytest.mark.parametrize("call", ["eager", "no_grad", "vmap"])
def test_steps_on_parameters_passed_in_without_gradients(call: str) -> None:
    class Adapts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=D))

        def forward(self, x):
            (slope,) = torch.autograd.grad((self.weight * x).square().sum(), self.weight, create_graph=True)
            return self.weight - 0.1 * slope

    model, x = functionalize(Adapts()), torch.tensor([[1.0, 3.0], [0.5, 2.0]], dtype=D)
    expected = model.params["weight"] * (1 - 0.2 * x.square())

    def run(x):
        output, buffers = model(model.params, model.buffers, x)
        assert "weight" not in buffers  # unchanged, though it went through a level
        return output

    with torch.set_grad_enabled(call != "no_grad"):
        outputs = vmap(run)(x) if call == "vmap" else torch.stack([run(row) for row in x])
    torch.testing.assert_close(outputs, expected, rtol=1e-14, atol=1e-15)
    assert not outputs.requires_grad


def test_a_derivative_without_create_graph_is_a_constant() -> None:
    def scaled(net, x):
        x = x.detach().requires_grad_()
        return net(x) * torch.autograd.grad(net(x).sum(), x)[0]

    def constant(net, x):
        return net(x) * grad(lambda x: net(x).sum())(x).detach()

    x = torch.randn(5, 3, dtype=D, generator=torch.Generator().manual_seed(2))
    got, expected = (_gradient(_model(slope), x) for slope in (scaled, constant))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_statistics_and_draws_go_on_in_the_level() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(3).to(D), nn.Dropout(0.5)

        def forward(self, x):
            (slope,) = torch.autograd.grad(self.norm(x).pow(3).sum(), self.norm.weight, create_graph=True)
            return self.drop(slope * torch.ones(8, 3, dtype=D))

    model = functionalize(Normed())
    xs = torch.randn(2, 6, 3, dtype=D, generator=torch.Generator().manual_seed(3))
    outputs, buffers = vmap(lambda x: model(model.params, model.buffers, x))(xs)
    for index, x in enumerate(xs):
        output, after = model(model.params, model.buffers, x)
        torch.testing.assert_close(outputs[index], output, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(buffers["norm.running_mean"][index], 0.1 * x.mean(0), rtol=1e-12, atol=1e-14)
        assert int(after["norm.num_batches_tracked"]) == 1
        assert int(after["rng"]) == int(model.buffers["rng"]) + 1


def _backward(net, x):
    x = x.detach().requires_grad_()
    net(x).sum().backward()
    return x.grad


def _hooked(net, x):
    x = _of_a_copy(net, x)
    x.register_hook(lambda slope: 2 * slope)
    return x


def _frozen(net, x):
    return net(x.requires_grad_(requires_grad=False))


@pytest.mark.parametrize(
    ("slope", "words"),
    [(_backward, r"\.backward\(\).*create_graph=True"), (_hooked, "registers a hook"), (_frozen, r"x\.detach\(\)")],
)
def test_what_can_not_be_done_is_refused_with_the_fix(slope, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _gradient(_model(slope), torch.ones(2, 3, dtype=D))
