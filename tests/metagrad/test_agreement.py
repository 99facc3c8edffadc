"""The table of agreement: all exact strategies give one gradient.

{strategies} x {optimizers} x {models with state} is covered in full, under vmap against a plain unrolled loop; all ways
of running tasks with all strategies and models, and a loss after every step; finite differences with strategies and
models, and with strategies and optimizers, in pairs; and every row of the table of modules, both modes of `Stepwise`.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from metalearn import Problem, UsageError, functionalize, losses, tree
from metalearn.execution import Loop, Vmap
from metalearn.inner import outer_value
from metalearn.metagrad import ForwardMode, Stepwise, Truncated, Unrolled
from metalearn.metagrad.forward import pushforward
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems
from tests.zoo.rows import case_of
from tests.zoo.table import ROWS

NUM_STEPS = 3
STRATEGIES = {
    "truncated, nothing cut": Truncated(NUM_STEPS),
    "stepwise": Stepwise(),
    "stepwise, every 2": Stepwise(2),
    "stepwise, sqrt": Stepwise("sqrt"),
    "stepwise, forward": Stepwise(mode="forward"),
}
WAYS = {"loop": Loop(), "vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}


class Last(nn.Module):
    """The last state of a recurrent network over the entries of a row, as a sequence."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells, self.head = kind(1, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[..., None])[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(1, 4), nn.Linear(4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding(x[..., None]).tanh()
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class Accumulating(nn.Module):
    """State of its own with a history: gradients flow through it from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.register_buffer("state", torch.full((4,), 0.3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).tanh()
        self.state = self.state * 0.5 + features.mean(0)
        self.calls += 1
        return self.head(features * self.state + self.state)


class FromNowOn(nn.Module):
    """Its buffer's history begins with the first step: before, it is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.register_buffer("before", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        output = self.head(self.body(x).tanh() + self.before.sum())
        self.before = output.square().mean()[None]
        return output


def _dense(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 1))


MODELS = {
    "plain": lambda: _dense(),
    "batch norm, running statistics": lambda: _dense(nn.BatchNorm1d(4)),
    "batch norm, current statistics": lambda: _dense(nn.BatchNorm1d(4, track_running_stats=False)),
    "batch norm, evaluation mode": lambda: _dense(nn.BatchNorm1d(4)).eval(),
    "dropout": lambda: _dense(nn.Dropout(0.3)),
    "LSTM": lambda: Last(nn.LSTM),
    "GRU": lambda: Last(nn.GRU),
    "attention": Attending,
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)
    ),
    "accumulator": Accumulating,
    "accumulator, learned start": Accumulating,
    "history from the first step": FromNowOn,
}
REPLAYED = ("batch norm, running statistics", "spectral norm")
"""What torch holds constant in these has to be held in finite differences too."""


@cache
def _model(name: str):
    torch.manual_seed(4)
    module = MODELS[name]()
    training = module.training
    return functionalize(module.double().train(training))


def _problem(name: str, optimizer: str) -> tuple[Problem, dict[str, Tensor]]:
    model = _model(name)
    problem, meta = problems.problem_of(model, optimizer, num_inner_steps=NUM_STEPS, loss=losses.mean_squared_error)
    if "learned start" not in name:
        return problem, meta

    def init(meta, episode):
        params, buffers = problem.init(meta, episode)
        return params, {**buffers, "state": meta["state"]}

    return replace(problem, init=init), {**meta, "state": model.buffers["state"]}


def _few(problem: Problem, meta: dict[str, Tensor]) -> tuple[Problem, dict[str, Tensor]]:
    """The problem of the few meta-parameters that forward mode is for, the learned start held fixed."""
    held = {name: value for name, value in meta.items() if name.startswith(("init.", "lr."))}
    return problems.given(problem, held), {name: value for name, value in meta.items() if name not in held}


def _agree(got, expected) -> None:
    assert_close(got.grads, expected.grads, tolerance=1e-10)
    for name, grad in expected.grads.items():
        torch.testing.assert_close(got.grads[name], grad, rtol=1e-8, atol=1e-11)
    assert_close(got.value, expected.value, tolerance=1e-10)
    torch.testing.assert_close(got.aux, expected.aux, rtol=1e-10, atol=1e-12)
    assert got.carry is None


@pytest.mark.parametrize("optimizer", problems.OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_all_strategies_agree(model: str, optimizer: str) -> None:
    problem, meta = _problem(model, optimizer)
    expected = Loop().value_and_grad(Unrolled(), problem)(meta, problems.values())
    assert tree.norm(expected.grads) > 1e-2
    for strategy in STRATEGIES.values():
        _agree(Vmap().value_and_grad(strategy, problem)(meta, problems.values()), expected)
    few_problem, few = _few(problem, meta)
    got = Vmap().value_and_grad(ForwardMode(), few_problem)(few, problems.values())
    _agree(got, expected._replace(grads={name: expected.grads[name] for name in few}))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_in_every_way_of_running_tasks_with_a_loss_after_every_step(model: str, way: str) -> None:
    problem, meta = _problem(model, "sgd, momentum learned")
    problem = replace(problem, outer_weights=(0.2, 0.3, torch.tensor(0.5, dtype=torch.float64)))
    expected = Loop().value_and_grad(Unrolled(), problem)(meta, problems.values())
    for strategy in STRATEGIES.values():
        _agree(WAYS[way].value_and_grad(strategy, problem)(meta, problems.values()), expected)
    few_problem, few = _few(problem, meta)
    got = WAYS[way].value_and_grad(ForwardMode(chunk_size=4), few_problem)(few, problems.values())
    _agree(got, expected._replace(grads={name: expected.grads[name] for name in few}))


CERTIFIED = {
    "stepwise, every 2": Stepwise(2),
    "stepwise, forward": Stepwise(mode="forward"),
    "forward mode": ForwardMode(chunk_size=3),
}


def _certify(strategy: str, model: str, optimizer: str) -> None:
    problem, meta = _problem(model, optimizer)
    if isinstance(CERTIFIED[strategy], ForwardMode):
        problem, meta = _few(problem, meta)
    report = check_meta_gradient(
        problem, meta, problems.one(problems.values()), strategy=CERTIFIED[strategy], num_directions=1,
        step_sizes=(1e-2, 3e-3, 1e-3, 3e-4), replay_constants=model in REPLAYED,
    )  # fmt: skip
    assert report.gradient_norm > 1e-3


@pytest.mark.parametrize("strategy", CERTIFIED)
@pytest.mark.parametrize("model", MODELS)
def test_finite_differences_of_every_model(model: str, strategy: str) -> None:
    _certify(strategy, model, "sgd, nesterov and decay")


@pytest.mark.parametrize("strategy", CERTIFIED)
@pytest.mark.parametrize("optimizer", problems.OPTIMIZERS)
def test_finite_differences_of_every_optimizer(optimizer: str, strategy: str) -> None:
    _certify(strategy, "accumulator, learned start", optimizer)


NO_FORWARD_DERIVATIVE = {"a custom autograd function"}
"""Rows with an autograd.Function that has no jvp."""


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.slow])
def test_every_row_of_the_table_of_modules(name: str) -> None:
    made = case_of(ROWS[name])
    expected = Unrolled().value_and_grad(made.problem)(made.meta, made.episode)
    _agree(Stepwise().value_and_grad(made.problem)(made.meta, made.episode), expected)
    forward = Stepwise(mode="forward").value_and_grad(made.problem)
    if name in NO_FORWARD_DERIVATIVE:
        with pytest.raises(UsageError, match=r"autograd.Function without jvp"):
            forward(made.meta, made.episode)
        return
    _agree(forward(made.meta, made.episode), expected)
    generator = torch.Generator().manual_seed(0)
    direction = {
        key: torch.randn(value.shape, generator=generator, dtype=value.dtype) for key, value in made.meta.items()
    }
    slope = pushforward(lambda meta: outer_value(made.problem, meta, made.episode)[0], (made.meta,), (direction,))[1]
    along = sum((direction[key] * grad).sum() for key, grad in expected.grads.items())
    assert abs(slope - along) <= 1e-10 * tree.norm(expected.grads)
