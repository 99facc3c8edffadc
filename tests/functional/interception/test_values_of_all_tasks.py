"""Masks, arrays and lists of tensors under vmap, and copies of parameters."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from metalearn import UsageError, functionalize

D = torch.float64
XS = torch.tensor([[[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], [[-3.0, 0.2, 0.1], [2.0, -0.3, 0.7]]], dtype=D)


class _Runs(nn.Module):
    """A function of the input and a mask in a buffer, which has a task axis under vmap."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x):
        return self.function(x.clone(), self.mask)


def _fill(x, mask):
    x[x > 0] = -0.25
    return x


def _fill_rows(x, mask):
    x[x.sum(-1) > 0] = torch.tensor(2)
    return x


def _write(x, mask):
    x[:, mask] = 2 * x[:, mask]
    return x


FUNCTIONS = {
    "read at a mask": lambda x, mask: x[:, mask],
    "read at a mask and a number": lambda x, mask: x[0, mask],
    "write at a mask": _write,
    "write a number where a mask of values is": _fill,
    "write a number in rows where a mask of values is": _fill_rows,
    "masked_select": lambda x, mask: x.masked_select(mask) + torch.masked_select(x, mask),
    "nonzero": lambda x, mask: x[:, mask.nonzero()[:, 0]] + torch.argwhere(mask).sum(),
    "nonzero as a tuple": lambda x, mask: x[:, torch.nonzero(mask, as_tuple=True)[0]],
    "where": lambda x, mask: x[:, torch.where(mask)[0]],
    "where of three": lambda x, mask: torch.where(mask, x, 0.0),
    "numpy": lambda x, mask: x * float(mask.numpy().sum()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_all_tasks_agree_on_can_be_used(name: str) -> None:
    model = functionalize(_Runs(FUNCTIONS[name]))
    masks = model.buffers["mask"].expand(2, 3)

    def run(x, mask):
        return model({}, {**model.buffers, "mask": mask}, x)[0]

    slopes = vmap(grad(lambda x, mask: run(x, mask).square().sum()))(XS, masks)
    for index, x in enumerate(XS):
        expected = FUNCTIONS[name](x.clone(), masks[0])
        assert torch.equal(vmap(run)(XS, masks)[index], expected)
        assert torch.equal(slopes[index], grad(lambda x: run(x, masks[0]).square().sum())(x))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, mask: x[x > 0].sum(), "shape depends on values"),
        (lambda x, mask: torch.where(x > 0)[0].sum(), "shape depends on values"),
        (lambda x, mask: x * float(x.numpy().sum()), "numpy"),
    ],
)
def test_what_tasks_do_not_agree_on_is_refused_with_the_fix(function, words: str) -> None:
    model = functionalize(_Runs(function))
    with pytest.raises(UsageError, match=f"{words}.*loop"):
        vmap(lambda x: model({}, model.buffers, x)[0])(XS)


class _WithoutRule(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def test_an_autograd_function_without_a_rule_for_vmap_is_told() -> None:
    model = functionalize(_Runs(lambda x, mask: _WithoutRule.apply(x)))
    with pytest.raises(UsageError, match="generate_vmap_rule = True"):
        vmap(lambda x: model({}, model.buffers, x)[0])(XS)


class _Followed(nn.Module):
    """A momentum encoder whose weights follow by torch's functions over lists."""

    def __init__(self) -> None:
        super().__init__()
        self.leader, self.follower = nn.Linear(3, 2).to(D), nn.Linear(3, 2).to(D)

    @torch.no_grad()
    def follow(self) -> None:
        theirs, own = list(self.leader.parameters()), list(self.follower.parameters())
        torch._foreach_mul_(own, 0.9)
        torch._foreach_add_(own, theirs, alpha=0.1)
        torch._foreach_copy_(own, torch._foreach_mul(own, [2.0, 3.0]))

    def forward(self, x):
        self.follow()
        return self.leader(x) * self.follower(x)


def test_functions_over_lists_of_tensors() -> None:
    torch.manual_seed(0)
    module = _Followed()
    model = functionalize(module)
    outputs, buffers = vmap(lambda x: model(model.params, model.buffers, x))(XS)
    follower = {"weight": 2.0, "bias": 3.0}
    for name, factor in follower.items():
        before, leader = model.params[f"follower.{name}"], model.params[f"leader.{name}"]
        after = buffers[f"follower.{name}"]
        expected = (factor * (0.9 * before + 0.1 * leader)).expand(after.shape)
        torch.testing.assert_close(after, expected, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(outputs[1], deepcopy(module)(XS[1]), rtol=1e-13, atol=1e-15)


def test_a_copy_of_a_layer_in_forward_is_a_constant_as_in_torch() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3).to(D)

        def forward(self, x):
            return deepcopy(self.linear)(self.linear(x).tanh())

    torch.manual_seed(0)
    module = Copies()
    model = functionalize(module)
    module(XS[0]).square().sum().backward()
    got = grad(lambda params: model(params, model.buffers, XS[0])[0].square().sum())(model.params)
    for name, value in module.named_parameters():
        torch.testing.assert_close(got[name], value.grad, rtol=1e-12, atol=1e-14)
