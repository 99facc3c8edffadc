"""Five inner steps of Adam and the gradient through them, in plain torch and in other libraries.

Each as its own documentation writes it. The gradient is that of the loss after the steps, by the initial parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.loops import error as distance
from metalearn import adapt, functionalize, optim
from metalearn.types import Tensors

STEPS = 5
RATE, BETAS, EPS = 1e-2, (0.9, 0.999), 1e-3
MOST_ERROR = 1e-9

Gradient = Callable[[], list[Tensor]]


class ManySmall(nn.Module):
    """A hundred vectors in one smooth loss: next to nothing to compute but the optimizer's work."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(64)) for _ in range(100)])

    def forward(self, x: Tensor) -> Tensor:
        return (torch.cat(list(self.parts)).view(100, 64) @ x / 8).tanh()


def _mlp(depth: int, width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(1, width), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "100 vectors of 64": (ManySmall, (64, 1)),
    "MLP of 2 x 40": (lambda: _mlp(2, 40), (10, 1)),
    "MLP of 20 x 16": (lambda: _mlp(20, 16), (10, 1)),
    "MLP of 2 x 1000": (lambda: _mlp(2, 1000), (10, 1)),
}


def work(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make().to(dtype), torch.randn(shape).to(dtype)


def loss_of(output: Tensor) -> Tensor:
    return (output - 0.5).square().mean()


def ours(name: str, dtype: torch.dtype) -> Gradient:
    module, x = work(name, dtype)
    model = functionalize(module)
    optimizer = optim.adam(RATE, b1=BETAS[0], b2=BETAS[1], eps=EPS)
    start = {key: value.detach().clone().requires_grad_() for key, value in model.params.items()}

    def run() -> list[Tensor]:
        adapted = adapt(
            lambda params, buffers, x: loss_of(model(params, buffers, x)[0]), start, model.buffers, x,
            optimizer=optimizer, num_inner_steps=STEPS,
        )  # fmt: skip
        return list(torch.autograd.grad(loss_of(model(adapted.params, adapted.buffers, x)[0]), list(start.values())))

    return run


Adam = Callable[[Tensors], tuple[Any, Callable[[Tensors, Any, Tensors], tuple[Tensors, Any]]]]
"""Parameters -> the optimizer's state, and from gradients, state and parameters to the next parameters and state."""


def plain_loop(adam: Adam) -> Callable[[str, torch.dtype], Gradient]:
    """A loop of `torch.autograd.grad` and an optimizer's own pure functions."""

    def made(name: str, dtype: torch.dtype) -> Gradient:
        module, x = work(name, dtype)
        start = dict(module.named_parameters())

        def run() -> list[Tensor]:
            params = start
            state, update = adam(params)
            for _ in range(STEPS):
                loss = loss_of(functional_call(module, params, (x,)))
                grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
                params, state = update(dict(zip(params, grads, strict=True)), state, params)
            return list(torch.autograd.grad(loss_of(functional_call(module, params, (x,))), list(start.values())))

        return run

    return made


def by_hand(params: Tensors) -> tuple[Any, Callable[[Tensors, Any, Tensors], tuple[Tensors, Any]]]:
    """A tensor at a time."""

    def update(grads: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Any]:
        count, mean, square = state
        moved, count = {}, count + 1
        for key, grad in grads.items():
            mean[key] = BETAS[0] * mean[key] + (1 - BETAS[0]) * grad
            square[key] = BETAS[1] * square[key] + (1 - BETAS[1]) * grad * grad
            root = (square[key] / (1 - BETAS[1] ** count)).sqrt()
            moved[key] = params[key] - RATE / (1 - BETAS[0] ** count) * mean[key] / (root + EPS)
        return moved, (count, mean, square)

    return (0, dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)), update


def our_steps(params: Tensors) -> tuple[Any, Callable[[Tensors, Any, Tensors], tuple[Tensors, Any]]]:
    optimizer = optim.adam(RATE, b1=BETAS[0], b2=BETAS[1], eps=EPS)

    def update(grads: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Any]:
        params, _, state = optimizer.step(grads, state, params)
        return params, state

    return optimizer.init(params), update


def torchopt_steps(params: Tensors) -> tuple[Any, Callable[[Tensors, Any, Tensors], tuple[Tensors, Any]]]:
    import torchopt

    optimizer = torchopt.adam(RATE, betas=BETAS, eps=EPS, moment_requires_grad=True)

    def update(grads: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Any]:
        updates, state = optimizer.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    return optimizer.init(params), update


def torchopt_meta(name: str, dtype: torch.dtype) -> Gradient:
    import torchopt

    module, x = work(name, dtype)
    start = list(module.parameters())

    def run() -> list[Tensor]:
        optimizer = torchopt.MetaAdam(module, lr=RATE, betas=BETAS, eps=EPS)
        before = torchopt.extract_state_dict(module, by="reference")
        for _ in range(STEPS):
            optimizer.step(loss_of(module(x)))
        grads = torch.autograd.grad(loss_of(module(x)), start)
        torchopt.recover_state_dict(module, before)
        return list(grads)

    return run


def higher(name: str, dtype: torch.dtype) -> Gradient:
    # Its Adam adds eps to the root before the bias correction: the same work, and other numbers the larger eps is.
    import higher as library

    module, x = work(name, dtype)

    def run() -> list[Tensor]:
        optimizer = torch.optim.Adam(module.parameters(), lr=RATE, betas=BETAS, eps=EPS)
        with library.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (fast, differentiable):
            for _ in range(STEPS):
                differentiable.step(loss_of(fast(x)))
            return list(torch.autograd.grad(loss_of(fast(x)), list(module.parameters())))

    return run


WAYS: dict[str, Callable[[str, torch.dtype], Gradient]] = {
    "metalearn": ours, "metalearn.optim alone": plain_loop(our_steps), "by hand": plain_loop(by_hand),
}  # fmt: skip
PEERS: dict[str, Callable[[str, torch.dtype], Gradient]] = {
    "TorchOpt, MetaAdam": torchopt_meta,
    "TorchOpt, functional": plain_loop(torchopt_steps),
    "higher": higher,
}


def error(make: Callable[[str, torch.dtype], Gradient], name: str) -> float:
    """The distance to the gradient by hand in float64, relative to its norm."""
    return distance(make(name, torch.float64)(), plain_loop(by_hand)(name, torch.float64)())
