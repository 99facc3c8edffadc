"""The same inner loop and meta-gradient in plain torch and in other libraries, each as its own documentation writes it.

The work: one 5-way 1-shot task of 28x28 images, one query image a class, Conv-4-64, inner SGD of rate 0.01, and the
gradient of the query loss by the model's initial parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metalearn.models import Conv4
from metalearn.tasks.images.torchvision_import import torchvision_module

WAYS = 5
RATE = 0.01

Images = tuple[Tensor, Tensor]
Gradient = Callable[[], list[Tensor]]


def work() -> tuple[nn.Module, Images, Images]:
    """The model, the support and the query set."""
    torch.manual_seed(0)
    model = Conv4(input_shape=(1, 28, 28), num_outputs=WAYS)
    support, query = (torch.randn(WAYS, 1, 28, 28) for _ in range(2))
    labels = torch.arange(WAYS)
    return model, (support, labels), (query, labels)


def plain(num_steps: int) -> Gradient:
    model, support, query = work()
    start = dict(model.named_parameters())

    def loss(params: dict[str, Tensor], images: Images) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, params, (images[0],)), images[1])

    def run() -> list[Tensor]:
        params = start
        for _ in range(num_steps):
            grads = torch.autograd.grad(loss(params, support), list(params.values()), create_graph=True)
            params = {name: value - RATE * grad for (name, value), grad in zip(params.items(), grads, strict=True)}
        return list(torch.autograd.grad(loss(params, query), list(start.values())))

    return run


def higher(num_steps: int) -> Gradient:
    import higher as library

    model, support, query = work()

    def run() -> list[Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        with library.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (fast, differentiable):
            for _ in range(num_steps):
                differentiable.step(cross_entropy(fast(support[0]), support[1]))
            return list(torch.autograd.grad(cross_entropy(fast(query[0]), query[1]), list(model.parameters())))

    return run


def torchopt(num_steps: int) -> Gradient:
    import torchopt as library

    model, support, query = work()
    start = list(model.parameters())

    def run() -> list[Tensor]:
        optimizer = library.MetaSGD(model, lr=RATE)
        before = library.extract_state_dict(model, by="reference")
        for _ in range(num_steps):
            optimizer.step(cross_entropy(model(support[0]), support[1]))
        grads = torch.autograd.grad(cross_entropy(model(query[0]), query[1]), start)
        library.recover_state_dict(model, before)
        return list(grads)

    return run


def learn2learn(num_steps: int) -> Gradient:
    torchvision_module("transforms")  # learn2learn imports it, and beside a CPU build of torch that needs help
    import learn2learn as library

    model, support, query = work()
    maml = library.algorithms.MAML(model, lr=RATE, first_order=False)

    def run() -> list[Tensor]:
        learner = maml.clone()
        for _ in range(num_steps):
            learner.adapt(cross_entropy(learner(support[0]), support[1]))
        return list(torch.autograd.grad(cross_entropy(learner(query[0]), query[1]), list(model.parameters())))

    return run


PEERS: dict[str, Callable[[int], Gradient]] = {"higher": higher, "TorchOpt": torchopt, "learn2learn": learn2learn}


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The distance of two gradients, relative to the norm of the second."""
    pairs: list[Any] = [torch.cat([part.flatten() for part in parts]).double() for parts in (found, expected)]
    return float((pairs[0] - pairs[1]).norm() / pairs[1].norm())
