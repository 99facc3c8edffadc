"""Certifies a layer under functionalize: torch's values, second derivatives, and vmap against the loop."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn import functionalize, random, tree
from metalearn.functional import FunctionalModel
from metalearn.testing import FiniteDifferences
from metalearn.testing.replay import holding_constants
from tests.functional.interception.cases import Case

D = torch.float64
NUM_TASKS = 3


@dataclass(frozen=True)
class Subject:
    """A case made concrete: a model, its variables for every task, and its fixed inputs."""

    model: FunctionalModel
    variables: dict[str, Tensor]
    fixed: dict[str, Tensor]
    keys: Tensor
    names: tuple[str, ...]

    def call(self, variables: dict[str, Tensor], fixed: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        inputs = [variables[name] if name in variables else fixed[name] for name in self.names]
        return self.model({name: variables[name] for name in self.model.params}, buffers, *inputs)

    def loss(self, variables: dict[str, Tensor], fixed: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        output, buffers = self.call(variables, fixed, buffers)
        return _scalar(output), buffers

    def meta(self, variables: dict[str, Tensor], fixed: dict[str, Tensor], key: Tensor) -> Tensor:
        """The loss after one inner step on all variables: its gradient holds a second derivative of everything."""
        buffers = {**self.model.buffers, "rng": key}
        gradient, buffers = torch.func.grad(self.loss, has_aux=True)(variables, fixed, buffers)
        stepped = {name: value - 0.1 * gradient[name] for name, value in variables.items()}
        return self.loss(stepped, fixed, buffers)[0]

    def task(self, index: int, *, shared: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        return (
            {
                name: value if shared and name in self.model.params else value[index]
                for name, value in self.variables.items()
            },
            {name: value[index] for name, value in self.fixed.items()},
            self.keys[index],
        )


def subject_of(case: Case, *, shared: bool = False) -> Subject:
    model = functionalize(case.module())
    names = tuple(f"input {index}" for index in range(len(case.inputs)))
    keys = random.key(torch.arange(NUM_TASKS))
    given = {
        name: torch.stack([each.draw(random.fold_in(key, 7 + index)) for key in keys])
        for index, (name, each) in enumerate(zip(names, case.inputs, strict=True))
    }
    fixed = {name: given[name] for name, each in zip(names, case.inputs, strict=True) if each.fixed}
    noise = {
        name: value if shared else torch.stack([value + 0.1 * random.normal(key, value.shape, dtype=D) for key in keys])
        for name, value in model.params.items()
    }
    return Subject(model, {**noise, **{n: v for n, v in given.items() if n not in fixed}}, fixed, keys, names)


def _scalar(output: Any) -> Tensor:
    total = torch.zeros((), dtype=D)
    for leaf in tree.tensors(output):
        if leaf.is_floating_point():
            weights = torch.cos(torch.arange(leaf.numel(), dtype=D)).reshape(leaf.shape)
            total = total + (weights * (leaf + 0.5).sin()).sum()
    return total


def value_error(case: Case) -> tuple[float, float]:
    """Against torch: of the values and of the first gradient, relative."""
    subject = subject_of(case)
    variables, fixed, key = subject.task(0)
    buffers = {**subject.model.buffers, "rng": key}
    gradient = torch.func.grad(lambda v: subject.loss(v, fixed, buffers)[0])(variables)
    output, after = subject.call(variables, fixed, buffers)
    module = case.module()
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(variables[name])
    leaves = {**dict(module.named_parameters())}
    leaves |= {name: value.clone().requires_grad_() for name, value in variables.items() if name not in leaves}
    expected = module(*[leaves[name] if name in leaves else fixed[name] for name in subject.names])
    grads = torch.autograd.grad(_scalar(expected), list(leaves.values()), allow_unused=True)
    dense = [
        torch.zeros_like(leaf) if g is None else g.to_dense() for g, leaf in zip(grads, leaves.values(), strict=True)
    ]
    values = _distance(
        [output, [after[name] for name in dict(module.named_buffers())]], [expected, list(module.buffers())]
    )
    return values, _distance([gradient[name] for name in leaves], dense)


def difference_error(case: Case, *, num_directions: int = 1) -> tuple[float, float]:
    """Of the gradient of a gradient against finite differences, relative, and its norm."""
    subject = subject_of(case)
    variables, fixed, key = subject.task(0)
    gradient = torch.func.grad(subject.meta)(variables, fixed, key)
    scale = max(tree.norm(gradient).item(), 1e-6)
    objective = holding_constants(lambda point: subject.meta(point, fixed, key), variables)
    differences = FiniteDifferences(objective, variables, (1e-3, 3e-4, 1e-4), scale)
    errors: list[float] = []
    for draw in range(40):
        direction = _direction(case, variables, random.fold_in(random.key(5), draw))
        expected, spread = differences.along(direction)
        if spread > 5e-7:
            continue  # across a kink
        got = sum((gradient[name] * value).sum().item() for name, value in direction.items())
        errors.append(abs(got - expected) / scale)
        if len(errors) == num_directions:
            return max(errors), scale
    raise AssertionError("finite differences disagree among themselves everywhere")


def _direction(case: Case, variables: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
    direction = {
        name: random.normal(random.fold_in(key, index), value.shape, dtype=D)
        for index, (name, value) in enumerate(variables.items())
    }
    if case.constant_row is not None:
        direction["weight"][case.constant_row] = 0.0
    length = tree.norm(direction)
    return {name: value / length for name, value in direction.items()}


def autograd_error(case: Case) -> float:
    """Of autograd's second derivative against torch.func's, relative."""
    subject = subject_of(case)
    variables, fixed, key = subject.task(0)
    expected = torch.func.grad(subject.meta)(variables, fixed, key)
    leaves = {name: value.clone().requires_grad_() for name, value in variables.items()}
    loss, buffers = subject.loss(leaves, fixed, {**subject.model.buffers, "rng": key})
    grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
    stepped = {name: value - 0.1 * g for (name, value), g in zip(leaves.items(), grads, strict=True)}
    after = subject.loss(stepped, fixed, buffers)[0]
    got = torch.autograd.grad(after, list(leaves.values()), materialize_grads=True)
    return _distance(list(got), list(expected.values()))


def vmap_error(case: Case, *, shared: bool = False) -> float:
    """Of vmap against the loop, relative: gradients of every task, with parameters of its own or shared by all."""
    subject = subject_of(case, shared=shared)
    value_and_grad = torch.func.grad_and_value(subject.meta)
    looped = [value_and_grad(*subject.task(index, shared=shared)) for index in range(NUM_TASKS)]
    dims = {name: None if shared and name in subject.model.params else 0 for name in subject.variables}
    got = torch.vmap(value_and_grad, (dims, 0, 0))(subject.variables, subject.fixed, subject.keys)
    stacked = [torch.stack(leaves) for leaves in zip(*(tree.tensors(each) for each in looped), strict=True)]
    return _distance(tree.tensors(got), stacked)


def _distance(got: Any, expected: Any) -> float:
    pairs = list(zip(tree.tensors(got), tree.tensors(expected), strict=True))
    for a, b in pairs:
        assert a.shape == b.shape, f"shape {list(a.shape)}, expected {list(b.shape)}"
        if not a.is_floating_point():
            assert torch.equal(a, b), "other integers"
    pairs = [(a.detach(), b.detach()) for a, b in pairs if a.is_floating_point()]
    difference = tree.norm([a - b for a, b in pairs]) if pairs else torch.zeros(())
    return (difference / tree.norm([b for _, b in pairs]).clamp_min(1e-12)).item() if pairs else 0.0
