"""MAML against a meta-gradient written out in plain PyTorch, with nothing of ours in it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from metalearn import algorithms, losses, optim
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.testing import assert_close
from tests import problems

LAYERS = ["plain, tanh", "batch norm, current statistics", "group norm"]


def _by_hand(module, episodes, rate: float, steps: int, first_order: bool) -> dict[str, torch.Tensor]:
    """Mean over tasks of the query loss after `steps` gradient steps, differentiated by torch.autograd."""
    params = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    total = 0.0
    for (x, y), (xq, yq) in zip(zip(*episodes.support, strict=True), zip(*episodes.query, strict=True), strict=True):
        fast = dict(params)
        for _ in range(steps):
            loss = F.cross_entropy(torch.func.functional_call(module, fast, (x,)), y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
            fast = {name: value - rate * grad for (name, value), grad in zip(fast.items(), grads, strict=True)}
        total = total + F.cross_entropy(torch.func.functional_call(module, fast, (xq,)), yq)
    grads = torch.autograd.grad(total / episodes.support[0].shape[0], list(params.values()))
    return dict(zip(params, grads, strict=True))


@pytest.mark.parametrize("way", [Loop(), Vmap()], ids=["loop", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("layer", LAYERS)
def test_equals_plain_pytorch(layer: str, steps: int, first_order: bool, way) -> None:
    model, episodes = problems.model_of(layer), problems.images(3)
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.3, num_inner_steps=steps)
    strategy = FirstOrder() if first_order else Unrolled()
    grads = way.value_and_grad(strategy, maml.problem(model))(maml.init(model), episodes).grads
    expected = _by_hand(copy.deepcopy(model.module), episodes, 0.3, steps, first_order)
    assert_close(grads, {f"init.{name}": expected[name] for name in model.params}, tolerance=1e-12)


def test_adapt_and_predict_are_what_the_problem_does() -> None:
    model, episodes = problems.model_of("batch norm, running statistics"), problems.images(2)
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.3, num_inner_steps=2, inner_optimizer=optim.adam)
    meta, episode = maml.init(model), problems.one(episodes)
    adapted = maml.adapt(model, meta, model.buffers, episode.support)
    logits = maml.predict(model, meta, adapted, episode.query[0])
    value = Unrolled().value_and_grad(maml.problem(model))(meta, episode).value
    assert_close(F.cross_entropy(logits, episode.query[1]), value, tolerance=1e-13)


def test_meta_steps_with_torch_optim_learn() -> None:
    # The outer optimizer is any torch.optim over `meta`.
    model, episodes = problems.model_of("plain, tanh"), problems.images(3)
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.3)
    meta = {name: value.requires_grad_() for name, value in maml.init(model).items()}
    optimizer = torch.optim.Adam(meta.values(), 0.05)
    run, values = Vmap().value_and_grad(Unrolled(), maml.problem(model)), []
    for _ in range(30):
        outcome = run(meta, episodes)
        for name, value in meta.items():
            value.grad = outcome.grads[name]
        optimizer.step()
        values.append(outcome.value.item())
    assert values[-1] < 0.5 * values[0]
