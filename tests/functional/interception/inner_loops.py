"""A module of sequences in a second-order inner loop: against finite differences, and vmap against the loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import Episodes, algorithms, functionalize, losses, random, tree
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from metalearn.testing import assert_close, check_meta_gradient

D = torch.float64
WAYS = {"vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}


def sequences(*shape: int, seed: int = 0) -> Tensor:
    return random.normal(random.key(seed), shape, dtype=D)


def episodes(*shape: int, num_tasks: int = 3) -> Episodes:
    """Inputs `[task, *shape]` and a number to predict for each example."""
    sets = [(sequences(num_tasks, *shape, seed=s), sequences(num_tasks, shape[0], 1, seed=s + 1)) for s in (1, 3)]
    return Episodes(*sets, random.key(torch.arange(num_tasks)))


def read_out(result: Any, num_examples: int, *, batch_dims: Callable[[Tensor], int] = lambda leaf: 0) -> Tensor:
    """One number an example `[example, 1]` that depends on everything that is differentiable in a result."""
    total = torch.zeros(num_examples, 1, dtype=D)
    for leaf in tree.tensors(result):
        features = leaf.movedim(batch_dims(leaf), 0).flatten(1)
        weights = torch.arange(features.shape[1], dtype=D).cos()
        total = total + ((features + 0.5).sin() * weights).sum(1, keepdim=True)
    return total


def certify(build: Callable[[], nn.Module], data: Episodes, *, num_directions: int = 2) -> None:
    """The gradient through two inner steps: against finite differences; and under vmap, as in the loop."""
    torch.manual_seed(5)
    model = functionalize(build().double())
    maml = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.1, num_inner_steps=2)
    problem, meta = maml.problem(model), maml.init(model)
    report = check_meta_gradient(problem, meta, tree.map_tensors(lambda x: x[0], data), num_directions=num_directions)
    assert report.gradient_norm > 1e-3
    expected = Loop().value_and_grad(Unrolled(), problem)(meta, data)
    for name, grad in expected.grads.items():
        assert grad.norm() > 0, name
    for way in WAYS.values():
        got = way.value_and_grad(Unrolled(), problem)(meta, data)
        assert_close((got.grads, got.value), (expected.grads, expected.value), tolerance=1e-10)


def gradients(call: Callable[[dict[str, Tensor]], Any], params: dict[str, Tensor]) -> dict[str, Tensor]:
    """By plain autograd, of a number that depends on everything the call returns."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    total = sum((leaf + 0.5).sin().sum() for leaf in tree.tensors(call(leaves)) if leaf.is_floating_point())
    assert isinstance(total, Tensor)
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True), strict=True))
