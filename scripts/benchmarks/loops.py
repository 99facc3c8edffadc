"""The same inner loop and meta-gradient in plain torch and in other libraries, each as its own documentation writes it.

The work is any model, loss and meta-batch: some steps of SGD a task on its support set, and the gradient of the tasks'
mean query loss by the model's initial parameters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metalearn.models import Conv4
from metalearn.torchvision_import import torchvision_module

WAYS = 5
RATE = 0.01

Set = tuple[Tensor, Tensor]
"""Inputs and targets."""

Gradient = Callable[[], list[Any]]
"""The meta-gradient in the order of the model's parameters: tensors, or what NumPy can read."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy, "mean_squared_error": F.mse_loss,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What every way computes the meta-gradient of.

    Attributes:
        module: the model, whose parameters are the start of all tasks.
        loss: a name in `LOSSES`.
        support: what the inner loop adapts on, `[task, example, …]` each.
        query: what the adapted model is judged on, likewise.
        num_steps: inner steps.
        rate: the inner rate.
    """

    module: nn.Module
    loss: str
    support: Set
    query: Set
    num_steps: int
    rate: float = RATE

    @property
    def num_tasks(self) -> int:
        return len(self.support[0])

    def tasks(self) -> Iterator[tuple[Set, Set]]:
        """The support and query set of one task after another."""
        yield from zip(zip(*self.support, strict=True), zip(*self.query, strict=True), strict=True)

    def loss_of(self, call: Callable[[Tensor], Tensor], examples: Set) -> Tensor:
        return LOSSES[self.loss](call(examples[0]), examples[1])


def one_image_task(num_steps: int) -> Work:
    """One 5-way 1-shot task of 28x28 images, one query image a class, Conv-4-64."""
    torch.manual_seed(0)
    model = Conv4(input_shape=(1, 28, 28), num_outputs=WAYS)
    support, query = (torch.randn(1, WAYS, 1, 28, 28) for _ in range(2))
    labels = torch.arange(WAYS).unsqueeze(0)
    return Work(model, "cross_entropy", (support, labels), (query, labels), num_steps)


def _summed(work: Work, query_loss: Callable[[Set, Set], Tensor]) -> Gradient:
    """One backward pass a task: gradients add up at the model's parameters, as in the libraries' own examples."""
    leaves = list(work.module.parameters())

    def run() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        for support, query in work.tasks():
            (query_loss(support, query) / work.num_tasks).backward()
        return [leaf.grad for leaf in leaves]  # type: ignore[misc]

    return run


def plain(work: Work) -> Gradient:
    start = dict(work.module.named_parameters())

    def loss(params: dict[str, Tensor], examples: Set) -> Tensor:
        return work.loss_of(lambda inputs: functional_call(work.module, params, (inputs,)), examples)

    def query_loss(support: Set, query: Set) -> Tensor:
        params = start
        for _ in range(work.num_steps):
            grads = torch.autograd.grad(loss(params, support), list(params.values()), create_graph=True)
            params = {name: value - work.rate * grad for (name, value), grad in zip(params.items(), grads, strict=True)}
        return loss(params, query)

    return _summed(work, query_loss)


def _of_torch_func(work: Work) -> tuple[dict[str, Tensor], Callable[..., dict[str, Tensor]]]:
    """The start, and the gradient of a task by it: `(start, support inputs, targets, query inputs, targets)`."""

    def loss(params: dict[str, Tensor], *examples: Tensor) -> Tensor:
        return work.loss_of(lambda inputs: functional_call(work.module, params, (inputs,)), examples)

    def query_loss(params: dict[str, Tensor], x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        for _ in range(work.num_steps):
            grads = torch.func.grad(loss)(params, x, y)
            params = {name: value - work.rate * grads[name] for name, value in params.items()}
        return loss(params, query_x, query_y)

    return {name: value.detach() for name, value in work.module.named_parameters()}, torch.func.grad(query_loss)


def torch_func(work: Work) -> Gradient:
    start, gradient = _of_torch_func(work)

    def run() -> list[Tensor]:
        total: dict[str, Tensor] = {}
        for support, query in work.tasks():
            grads = gradient(start, *support, *query)
            total = {name: total[name] + grad for name, grad in grads.items()} if total else grads
        return [value / work.num_tasks for value in total.values()]

    return run


def torch_func_vmap(work: Work) -> Gradient:
    start, gradient = _of_torch_func(work)
    of_all = torch.vmap(gradient, in_dims=(None, 0, 0, 0, 0))
    return lambda: [grads.mean(0) for grads in of_all(start, *work.support, *work.query).values()]


def higher(work: Work) -> Gradient:
    import higher as library

    def query_loss(support: Set, query: Set) -> Tensor:
        optimizer = torch.optim.SGD(work.module.parameters(), lr=work.rate)
        with library.innerloop_ctx(work.module, optimizer, copy_initial_weights=False) as (fast, differentiable):
            for _ in range(work.num_steps):
                differentiable.step(work.loss_of(fast, support))
            return work.loss_of(fast, query)

    return _summed(work, query_loss)


def torchopt(work: Work) -> Gradient:
    import torchopt as library

    module, start = work.module, list(work.module.parameters())

    def run() -> list[Tensor]:
        for leaf in start:
            leaf.grad = None
        for support, query in work.tasks():
            optimizer = library.MetaSGD(module, lr=work.rate)
            before = library.extract_state_dict(module, by="reference")
            for _ in range(work.num_steps):
                optimizer.step(work.loss_of(module, support))
            (work.loss_of(module, query) / work.num_tasks).backward()
            library.recover_state_dict(module, before)
        return [leaf.grad for leaf in start]  # type: ignore[misc]

    return run


def learn2learn(work: Work) -> Gradient:
    torchvision_module("transforms")  # learn2learn imports it, and beside a CPU build of torch that needs help
    import learn2learn as library

    maml = library.algorithms.MAML(work.module, lr=work.rate, first_order=False)

    def query_loss(support: Set, query: Set) -> Tensor:
        learner = maml.clone()
        for _ in range(work.num_steps):
            learner.adapt(work.loss_of(learner, support))
        return work.loss_of(learner, query)

    return _summed(work, query_loss)


PEERS: dict[str, Callable[[Work], Gradient]] = {"higher": higher, "TorchOpt": torchopt, "learn2learn": learn2learn}


def error(found: list[Any], expected: list[Any]) -> float:
    """The distance of two gradients, relative to the norm of the second."""
    pairs = [torch.cat([_as_tensor(part).flatten() for part in parts]) for parts in (found, expected)]
    return float((pairs[0] - pairs[1]).norm() / pairs[1].norm())


def _as_tensor(part: Any) -> Tensor:
    return (part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))).detach().cpu().double()
