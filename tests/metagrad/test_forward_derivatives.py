"""Forward derivatives stop where reverse ones do: at what is computed without grad, and at what is detached."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from metalearn import UsageError, functionalize, losses
from metalearn.metagrad import ForwardMode, Stepwise
from metalearn.metagrad.forward import pushforward
from metalearn.testing import check_agreement
from tests import problems

POINT = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)


def _without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        double, squares = 2 * x, x.square()
        double.add_(x)
        norm = nn.functional.normalize(x, dim=0)
    return (double * x).sum() + (squares * x).sum() + (norm @ x)


def _through_data(x: Tensor) -> Tensor:
    return (x.data.square() * x).sum() + (x.detach() * x).sum()


def _grad_again(x: Tensor) -> Tensor:
    with torch.no_grad():
        constant = x.exp()
        with torch.enable_grad():
            followed = x.sin()
    return (constant * x).sum() + (followed * x).sum()


@pytest.mark.parametrize("function", [_without_grad, _through_data, _grad_again])
def test_both_ways_give_one_derivative(function) -> None:
    expected = grad(function)(POINT)
    units = torch.eye(3, dtype=torch.float64)
    got = torch.stack([pushforward(function, (POINT,), (unit,))[1] for unit in units])
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    batched = vmap(lambda unit: pushforward(function, (POINT,), (unit,))[1])(units)
    torch.testing.assert_close(batched, expected, rtol=1e-14, atol=0)
    with torch.no_grad():  # the caller's
        torch.testing.assert_close(pushforward(function, (POINT,), (units[0],))[1], expected[0], rtol=1e-14, atol=0)
    plain = torch.stack([torch.func.jvp(function, (POINT,), (unit,))[1] for unit in units])
    assert torch.allclose(plain, expected) == (function is _through_data), "torch's own does not stop at no_grad"


def test_it_is_off_again_afterwards() -> None:
    pushforward(_without_grad, (POINT,), (POINT,))
    with torch.no_grad():
        _, slope = torch.func.jvp(torch.sin, (POINT,), (torch.ones_like(POINT),))
    torch.testing.assert_close(slope, POINT.cos(), rtol=1e-14, atol=0)


class Centred(nn.Module):
    """Divides by a norm that it takes for a constant, as spectral norm does, and moves an average."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).tanh()
        with torch.no_grad():
            scale = features.square().mean().sqrt()
            self.average.mul_(0.9).add_(0.1 * features.mean(0))
        return self.head((features - self.average) / scale)


def test_a_module_that_computes_without_grad() -> None:
    torch.manual_seed(0)
    problem, meta = problems.problem_of(
        functionalize(Centred().double()), "sgd", num_inner_steps=3, loss=losses.mean_squared_error
    )
    strategies = {"forward over reverse": Stepwise(mode="forward"), "forward": ForwardMode()}
    check_agreement(problem, meta, problems.one(problems.values()), strategies)


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * cotangent


@pytest.mark.parametrize("strategy", [Stepwise(mode="forward"), ForwardMode()])
def test_a_function_without_a_forward_derivative_is_told(strategy) -> None:
    class Cubed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return Cube.apply(super().forward(x))

    torch.manual_seed(0)
    model = functionalize(Cubed(nn.Linear(3, 1)).double())
    problem, meta = problems.problem_of(model, "sgd", loss=losses.mean_squared_error)
    with pytest.raises(UsageError, match=r"autograd.Function without jvp.*Stepwise\(\)"):
        strategy.value_and_grad(problem)(meta, problems.one(problems.values()))
    check_agreement(problem, meta, problems.one(problems.values()), {"stepwise": Stepwise()})
