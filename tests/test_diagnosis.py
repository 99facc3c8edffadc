"""torch's errors are told in terms of what the user wrote."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from metalearn import UsageError, adapt, functionalize, optim
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from tests import problems


class _Does(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.scale = what, nn.Parameter(torch.ones(3))
        self.register_buffer("state", torch.ones(3))

    def forward(self, x):
        if self.what == "overwrites an activation":
            hidden = (x * self.scale).sigmoid()
            hidden += 1
            return hidden
        if self.what == "overwrites its state":
            y = x * self.scale * self.state
            self.state.add_(self.scale)
            return y
        if self.what == "item":
            return x * self.scale.sum().item()
        if self.what == "if":
            return x * self.scale if x.sum() > 0 else x
        return x[x > 0] * 2


def _loss(model):
    def loss(params, buffers, x):
        output, buffers = model(params, buffers, x)
        return output.square().sum(), buffers

    return loss


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("overwrites an activation", r"shape \[3\] \(last written by Sigmoid.*x = x \+ y"),
        ("overwrites its state", r"perhaps 'scale' or 'state'.*x = x \+ y"),
    ],
)
def test_a_change_in_place_that_autograd_can_not_undo(what: str, words: str) -> None:
    model = functionalize(_Does(what))
    with pytest.raises(UsageError, match=words):
        adapt(_loss(model), model.params, model.buffers, torch.ones(3), optimizer=optim.sgd(0.1), num_inner_steps=1)


@pytest.mark.parametrize(
    ("what", "words"), [("item", "reads a number"), ("if", "decides"), ("mask", "mask as an index")]
)
def test_what_vmap_can_not_do(what: str, words: str) -> None:
    model, xs = functionalize(_Does(what)), torch.tensor([[1.0, 2.0, 3.0], [-4.0, 1.0, 1.0]])
    model(model.params, model.buffers, xs[0])

    def scaled(x, factor):
        return model({"scale": model.params["scale"] * factor}, model.buffers, x)[0]

    with pytest.raises(UsageError, match=f"{words}.*execution.tasks=loop"):
        vmap(scaled)(xs, torch.tensor([1.0, 2.0]))


def test_state_on_two_devices_names_the_tensor() -> None:
    model = functionalize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    params = {**model.params, "0.bias": model.params["0.bias"].to("meta")}
    with pytest.raises(UsageError, match=r"'0\.bias' is on meta, other state on cpu.*model\.to"):
        model(params, model.buffers, torch.ones(3, 2))


@pytest.mark.parametrize("way", [Loop(), Vmap()])
def test_in_the_outer_loss_too(way) -> None:
    problem, meta = problems.problem_of(problems.model_of("plain, tanh"), "sgd")

    def outer_loss(meta, params, buffers, episode, step):
        loss, aux = problem.outer_loss(meta, params, buffers, episode, step)
        root = loss.exp()
        product = root * root
        root.add_(1)
        return product, aux

    from dataclasses import replace

    with pytest.raises(UsageError, match="changed in place"):
        way.value_and_grad(Unrolled(), replace(problem, outer_loss=outer_loss))(meta, problems.images())


def test_other_errors_stay_as_they_are() -> None:
    model = functionalize(nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(model.params, model.buffers, torch.ones(2, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        grad(lambda x: model(model.params, model.buffers, x)[0].sum())(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("what", "line"),
    [("item", "return x * self.scale.sum().item()"), ("if", "if x.sum() > 0"), ("mask", "return x[x > 0] * 2")],
)
def test_the_users_own_line_is_named(what: str, line: str) -> None:
    model, xs = functionalize(_Does(what)), torch.tensor([[1.0, 2.0, 3.0], [-4.0, 1.0, 1.0]])

    def scaled(x, factor):
        return model({"scale": model.params["scale"] * factor}, model.buffers, x)[0]

    with pytest.raises(UsageError) as caught:
        vmap(scaled)(xs, torch.tensor([1.0, 2.0]))
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    number = next(n for n, text in enumerate(lines, start=1) if line in text)
    assert f"({__file__}:{number}: " in str(caught.value)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_of_the_wrong_dtype_are_left_to_torch() -> None:
    class Loss(nn.Module):
        def forward(self, x, labels):
            return nn.functional.nll_loss(x, labels)

    model = functionalize(Loss())
    with pytest.raises(RuntimeError, match="Long"):
        model({}, model.buffers, torch.zeros(2, 3), torch.zeros(2))
