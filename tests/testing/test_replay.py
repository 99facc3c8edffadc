"""What torch holds constant is replayed in finite differences, and nothing else is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metalearn import UsageError, algorithms, functionalize, losses
from metalearn.testing import check_meta_gradient
from metalearn.testing.replay import holding_constants
from tests import problems
from tests.testing.test_gradients import Tampered

X = torch.tensor([0.7, -0.4, 1.3], dtype=torch.float64)


def _case(module: nn.Module):
    maml = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.2, num_inner_steps=2)
    model = functionalize(module.double())
    return maml.problem(model), maml.init(model), problems.one(problems.values())


def _spectral() -> nn.Module:
    torch.manual_seed(0)
    parametrized = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    return nn.Sequential(parametrized, nn.Tanh(), nn.Linear(4, 1))


class Gated(nn.Module):
    """A linear layer times a gate that has no gradient, for a reason given by the subclass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear, self.gate = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.held(x)

    def held(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class WithoutGrad(Gated):
    def held(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.gate(x).sigmoid()


class Detached(Gated):
    def held(self, x: Tensor) -> Tensor:
        return self.gate(x).sigmoid().detach()


class Moving(Gated):
    """The gate is a moving average, written in place through views and with `out=`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.ones(2, 1))
        self.register_buffer("total", torch.zeros(1))

    def held(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.average[0].mul_(0.5).add_(0.5 * self.gate(x).mean(0))
            self.average[1] = self.average[0] * self.linear.weight.norm().item()
            torch.sum(self.average, 0, out=self.total)
        return self.total.clone()


@pytest.mark.parametrize("build", [_spectral, WithoutGrad, Moving], ids=lambda build: build.__name__)
def test_what_torch_holds_constant_is_certified_with_its_values_replayed(build: Callable[[], nn.Module]) -> None:
    case = _case(build())
    assert check_meta_gradient(*case, replay_constants=True).error < 1e-8
    with pytest.raises(AssertionError, match="Unrolled is wrong"):
        check_meta_gradient(*case)
    with pytest.raises(AssertionError, match="Tampered is wrong"):
        check_meta_gradient(*case, strategy=Tampered(1e-4), replay_constants=True)


def test_an_accidental_detach_is_refused_with_and_without() -> None:
    case = _case(Detached())
    for replay in (False, True):
        with pytest.raises(AssertionError, match="Unrolled is wrong"):
            check_meta_gradient(*case, replay_constants=replay)


def test_a_wrong_gradient_of_a_module_without_constants_is_refused_too() -> None:
    case = _case(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    assert check_meta_gradient(*case, replay_constants=True).error < 1e-8
    with pytest.raises(AssertionError, match="Tampered is wrong"):
        check_meta_gradient(*case, strategy=Tampered(1e-4), replay_constants=True)


def test_the_value_at_the_point_itself_is_untouched_and_elsewhere_the_constants_stay() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.norm()
        return scale * x.sum()

    held = holding_constants(function, X)
    assert torch.equal(held(X), function(X))
    assert torch.equal(held(2 * X), 2 * held(X))
    assert torch.equal(function(2 * X), 4 * function(X))


def test_constants_inside_the_transforms_of_torch_func() -> None:
    def one_row(x: Tensor, row: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x * row.sum()
        return (scale * x * row).square().sum()

    def function(x: Tensor) -> Tensor:
        return torch.vmap(torch.func.grad(one_row), in_dims=(None, 0))(x, torch.stack([X, X + 1])).sum()

    held = holding_constants(function, X)
    assert torch.equal(held(X), function(X))
    # With the scale held the gradient is linear in x, and without it is cubic.
    torch.testing.assert_close(held(2 * X), 2 * function(X))
    torch.testing.assert_close(function(2 * X), 8 * function(X))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_running_statistics_written_by_torch_are_constants_unless_they_are_only_read(norm: nn.Module) -> None:
    norm = norm.double()

    def function(x: Tensor) -> Tensor:
        norm.reset_running_stats()
        norm.train()(x.expand(2, 3)[..., None] * torch.tensor([1.0, 2.0, 4.0]))
        return norm.running_mean.sum() * x.sum()

    held = holding_constants(function, X)
    assert torch.equal(held(X), function(X))
    torch.testing.assert_close(held(2 * X), 2 * function(X))
    torch.testing.assert_close(function(2 * X), 4 * function(X))

    def reads(x: Tensor) -> Tensor:
        return nn.functional.batch_norm(torch.ones(1, 3, dtype=x.dtype), x, torch.ones_like(x)).sum()

    assert torch.equal(holding_constants(reads, X)(2 * X), reads(2 * X))


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.exp()
        ctx.save_for_backward(y)
        return y.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def test_the_forward_of_an_autograd_function_is_no_constant() -> None:
    held = holding_constants(lambda x: Exponential.apply(x.clone().requires_grad_()).sum(), X)
    torch.testing.assert_close(held(2 * X), (2 * X).exp().sum(), check_dtype=True)


def test_other_functions_without_grad_elsewhere_are_refused() -> None:
    def function(x: Tensor) -> Tensor:
        if x[0] > 1:
            with torch.no_grad():
                x = x.tanh()
        return x.sum()

    with pytest.raises(UsageError, match=r"calls TensorBase\.tanh at a point where it called none before"):
        holding_constants(function, X)(2 * X)
