"""Ways around a skeleton: closures, slots, compiled parts, generators that no key governs."""

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import UsageError, functionalize
from metalearn.functional.hidden_draws import refused_hidden_draws


class _Keeps(nn.Module):
    """Keeps a feature by a hook made in a function, as feature extractors do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.kept = nn.Linear(2, 2), {}

        def keeper(name):
            def keep(part, args, output):
                self.kept[name] = output

            return keep

        self.linear.register_forward_hook(keeper("feature"))

    def forward(self, x):
        self.linear(x)
        return self.kept["feature"]


def test_a_feature_kept_by_a_hook_is_this_calls_not_that_of_an_earlier_one() -> None:
    module = _Keeps()
    stale = module(torch.ones(1, 2))
    model = functionalize(module)
    params = {name: 2 * value for name, value in model.params.items()}
    output, _ = model(params, model.buffers, torch.ones(1, 2))
    torch.testing.assert_close(output, 2 * stale.detach())
    assert module.kept["feature"] is stale


class _Slotted(nn.Module):
    __slots__ = ("run",)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.run = self.linear

    def forward(self, x):
        return self.run(x)


class _Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

        def repeat(x, times):
            return x if times == 0 else repeat(self.linear(x), times - 1)

        self.repeat = repeat

    def forward(self, x):
        return self.repeat(x, 1)


def _compiled() -> nn.Module:
    return torch.compile(nn.Linear(2, 2), backend="eager")


def _compiled_in_place() -> nn.Module:
    part = nn.Linear(2, 2)
    part.compile(backend="eager")
    return nn.Sequential(part)


@pytest.mark.parametrize("build", [_Slotted, _Recursive, _compiled, _compiled_in_place])
def test_what_refers_to_the_module_refers_to_the_state_passed_in(build) -> None:
    model, x = functionalize(build()), torch.ones(3, 2)
    params = {name: torch.full_like(value, 0.5) for name, value in model.params.items()}
    assert torch.equal(model(params, model.buffers, x)[0], torch.full((3, 2), 1.5))
    gradients = torch.func.grad(lambda params: model(params, model.buffers, x)[0].sum())(params)
    assert all(torch.equal(value, torch.full_like(value, 3.0)) for value in gradients.values())


def _numbers(name: str):
    return {"Python's random": random.random, "numpy.random": np.random.rand}[name]()


class _Draws(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x):
        return x * _numbers(self.name) if self.training else x


@pytest.mark.parametrize("name", ["Python's random", "numpy.random"])
def test_numbers_of_a_global_generator_are_refused(name: str) -> None:
    if threading.active_count() > 1:
        pytest.skip("nothing is said where other threads may be who has drawn")
    model = functionalize(_Draws(name))
    with pytest.raises(UsageError, match=f"draws from {name}"):
        model({}, model.buffers, torch.ones(2))
    assert torch.equal(model.eval()({}, model.buffers, torch.ones(2))[0], torch.ones(2))


def test_numbers_of_torchs_generator_are_refused() -> None:
    if threading.active_count() > 1:
        pytest.skip("nothing is said where other threads may be who has drawn")
    with pytest.raises(UsageError, match="torch's global generator"), refused_hidden_draws():
        torch.rand(1)
    with refused_hidden_draws():
        torch.rand(1, generator=torch.Generator())


def test_a_parametrized_weight_of_a_recurrent_layer_is_computed_as_often_as_in_torch() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.LSTM(2, 3).double(), "weight_hh_l0")
    model, x = functionalize(layer), torch.randn(4, 1, 2, dtype=torch.float64)
    output, buffers = model(model.params, model.buffers, x)
    torch.testing.assert_close(output[0], layer(x)[0], rtol=1e-12, atol=1e-14)  # each look-up is a power iteration
    for name, value in layer.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=1e-12, atol=1e-14)
