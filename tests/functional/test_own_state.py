"""Modules that change their own state in forward: they run as written, and differentiate through their history."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from metalearn import UsageError, functionalize
from metalearn.sequence import unroll
from metalearn.testing import assert_close
from tests.stateful import StatefulCounter

D = torch.float64


class StatefulAccumulator(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.state = self.state * 0.5 + x
        return self.state


class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.count = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.tensor([1.0]))

    def forward(self, x):
        self.mean = self.mean + (x - self.mean) / self.count
        self.count = self.count + 1
        return self.mean


class _Fading(nn.Module):
    """A trainable weight, and state that is written in the way under test."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.weight = way, nn.Parameter(torch.tensor([0.7]))
        if "parameter" in way:
            self.state = nn.Parameter(torch.zeros(1))
        else:
            self.register_buffer("state", torch.zeros(1))

    def forward(self, x):
        # A product keeps its factors for its gradient: one that is overwritten later has to be a copy.
        old = self.state if "assigned" in self.way else self.state.clone()
        new = torch.tanh(self.weight * old + x)
        if "assigned" in self.way:
            self.state = new
        elif "copy_" in self.way:
            self.state.copy_(new)
        elif "item" in self.way:
            self.state[0] = new[0]
        else:
            self.state.view(-1)[:] = new
        return new * self.weight


WRITTEN_BY = {
    "StatefulCounter": (
        StatefulCounter,
        lambda xs, count: torch.stack([x * (count + k + 1) for k, x in enumerate(xs)]),
    ),
    "StatefulAccumulator": (
        StatefulAccumulator,
        lambda xs, state: torch.stack(
            [0.5 ** (k + 1) * state + sum(0.5 ** (k - j) * xs[j] for j in range(k + 1)) for k in range(len(xs))]
        ),
    ),
}


@pytest.mark.parametrize("name", WRITTEN_BY)
def test_values_and_gradients_are_those_of_the_formula(name: str) -> None:
    make, formula = WRITTEN_BY[name]
    model = functionalize(make().double())
    start = {key: torch.tensor([0.3], dtype=D) for key in model.params}
    xs = torch.linspace(-1, 2, 5, dtype=D)[:, None]

    def ours(xs: Tensor, start: dict[str, Tensor]) -> Tensor:
        return unroll(model, start, model.buffers, xs)[0].sin().sum()

    def theirs(xs: Tensor, start: dict[str, Tensor]) -> Tensor:
        return formula(xs, *start.values()).sin().sum()

    assert_close(ours(xs, start), theirs(xs, start), tolerance=1e-14)
    assert_close(grad(ours, (0, 1))(xs, start), grad(theirs, (0, 1))(xs, start), tolerance=1e-13)


def test_a_running_mean_weighs_its_inputs_as_calculus_says() -> None:
    # m_k = m_{k-1} + (x_k - m_{k-1}) / k from count 1 on: the plain mean of what came so far, whatever the start.
    model = functionalize(RunningMean().double())
    xs = torch.tensor([[3.0], [1.0], [5.0]], dtype=D)
    outputs, state = unroll(model, model.params, model.buffers, xs)
    assert_close(outputs, torch.tensor([[3.0], [2.0], [3.0]], dtype=D), tolerance=1e-15)
    assert state["count"].item() == 4.0

    def last(xs: Tensor, params: dict[str, Tensor]) -> Tensor:
        return unroll(model, params, model.buffers, xs)[0][-1, 0]

    by_inputs, by_start = grad(last, (0, 1))(xs, model.params)
    assert_close(by_inputs, torch.full((3, 1), 1 / 3, dtype=D), tolerance=1e-15)
    assert by_start["mean"].item() == 0.0
    # d/dc of m_3 at c = 1, with m_1 = x_1 / c, m_2 = m_1 + (x_2 - m_1)/(c + 1), m_3 = m_2 + (x_3 - m_2)/(c + 2).
    c = torch.tensor(1.0, dtype=D)

    def by_hand(c: Tensor) -> Tensor:
        first = 3 / c
        second = first + (1 - first) / (c + 1)
        return second + (5 - second) / (c + 2)

    assert_close(by_start["count"][0], grad(by_hand)(c), tolerance=1e-14)


MODULES = {
    "counter": StatefulCounter,
    "accumulator": StatefulAccumulator,
    "running mean": RunningMean,
    **{
        f"{kind}, {way}": lambda way=way, kind=kind: _Fading(f"{kind}, {way}")
        for kind in ("buffer", "parameter")
        for way in ("assigned", "copy_", "item", "view")
    },
}


@pytest.mark.parametrize("name", MODULES)
def test_every_way_to_write_state(name: str) -> None:
    # First calls matter, so each way of running begins with a model of its own.
    xs = torch.linspace(-0.9, 0.8, 4, dtype=D)[:, None]
    tasks = torch.stack([xs, xs.flip(0), xs * 0.5])

    def fresh():
        torch.manual_seed(0)
        return functionalize(MODULES[name]().double())

    def objective(model, xs, params):
        return unroll(model, params, model.buffers, xs)[0].cos().sum()

    def leaves(model):
        return tuple(value.clone().requires_grad_() for value in model.params.values())

    model = fresh()
    arguments = (xs.clone().requires_grad_(), *leaves(model))

    def flat(xs, *params):
        return objective(model, xs, dict(zip(model.params, params, strict=True)))

    before = {key: value.clone() for key, value in {**model.params, **model.buffers}.items()}
    assert torch.autograd.gradcheck(flat, arguments)
    assert torch.autograd.gradgradcheck(flat, arguments)
    for key, value in {**model.params, **model.buffers}.items():
        assert torch.equal(value, before[key]), key

    gradients = [grad(lambda x, p: objective(model, x, p), (0, 1))(x, model.params) for x in tasks]
    for batched in (fresh(), model):
        got = vmap(grad(lambda x, p, batched=batched: objective(batched, x, p), (0, 1)), (0, None))(tasks, model.params)
        for index, expected in enumerate(gradients):
            assert_close((got[0][index], {k: v[index] for k, v in got[1].items()}), expected, tolerance=1e-12)


def test_state_may_change_its_shape() -> None:
    class Cache(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(0, 2))

        def forward(self, x):
            self.seen = torch.cat([self.seen, x[None]])
            return self.seen.sum(0)

    model, xs = functionalize(Cache()), torch.arange(6.0).reshape(3, 2)
    outputs, state = unroll(model, model.params, model.buffers, xs)
    assert torch.equal(outputs, xs.cumsum(0))
    assert state["seen"].shape == (3, 2)
    # In another process only the grown state is known: it is what the model then begins with.
    later = functionalize(Cache()).with_buffers(state)
    assert torch.equal(later({}, later.buffers, xs[0])[0], xs.sum(0) + xs[0])
    with pytest.raises(UsageError, match="'seen' has shape"):
        functionalize(Cache())({}, state, xs[0])


def test_state_that_one_call_leaves_alone_is_not_lost() -> None:
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.state = nn.Parameter(torch.zeros(1))

        def forward(self, x, write: bool):
            if write:
                self.state = self.state + x
            return self.state * 1

    model = functionalize(Sometimes())
    _, state = model(model.params, model.buffers, torch.ones(1), True)
    _, state = model(model.params, state, torch.ones(1), False)
    assert model(model.params, state, torch.ones(1), False)[0].item() == 1.0


class _WritesOnlyIf(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x, write: bool):
        if write:
            with torch.no_grad():
                self.w.mul_(2)
        return x * self.w


def test_a_write_that_the_first_call_did_not_make_is_told_once() -> None:
    model, x = functionalize(_WritesOnlyIf()), torch.ones(2)
    params = {"w": torch.ones(2)}
    model(params, model.buffers, x, False)
    with pytest.raises(UsageError, match="'w' in place"):
        model(params, model.buffers, x, True)
    params = {"w": torch.ones(2)}
    assert torch.equal(model(params, model.buffers, x, True)[0], torch.full((2,), 2.0))
    assert torch.equal(params["w"], torch.ones(2))


@pytest.mark.parametrize("how", ["copy_", "set"])
def test_writes_past_autograd_are_seen(how: str) -> None:
    class Centres(nn.Module):
        """As in vector quantisation: a code book that follows its inputs."""

        def __init__(self):
            super().__init__()
            self.centre = nn.Parameter(torch.zeros(2), requires_grad=False)

        def forward(self, x):
            new = 0.5 * self.centre + 0.5 * x.detach().mean(0)
            if how == "set":
                self.centre.data = new
            else:
                self.centre.data.copy_(new)
            return x - self.centre

    model, x = functionalize(Centres()), torch.ones(3, 2)
    for _ in range(2):
        output, buffers = model(model.params, model.buffers, x)
        assert torch.equal(output, torch.full((3, 2), 0.5))
        assert torch.equal(buffers["centre"], torch.full((2,), 0.5))
    assert torch.equal(model.params["centre"], torch.zeros(2))
    batched = vmap(lambda x: model(model.params, model.buffers, x)[1]["centre"])(torch.stack([x, 3 * x]))
    assert torch.equal(batched, torch.tensor([[0.5, 0.5], [1.5, 1.5]]))
    gradient = grad(lambda x: model(model.params, model.buffers, x)[0].sum())(x)
    assert torch.equal(gradient, torch.ones(3, 2))  # the centres are held constant


def test_a_module_may_write_into_its_input() -> None:
    class Writes(nn.Module):
        def forward(self, x, y):
            x.mul_(2)
            y["deep"] += x
            return x + y["deep"]

    model, x, y = functionalize(Writes()), torch.ones(2), {"deep": torch.ones(2)}
    for _ in range(2):
        assert torch.equal(model({}, model.buffers, x, y)[0], torch.full((2,), 5.0))
        assert torch.equal(x, torch.ones(2))
        assert torch.equal(y["deep"], torch.ones(2))
    assert torch.equal(grad(lambda x: model({}, model.buffers, x, y)[0].sum())(x), torch.full((2,), 4.0))


@pytest.mark.parametrize("make", [torch.zeros, torch.ones, torch.empty, lambda *size: torch.full(size, 2.0)])
def test_a_module_may_fill_a_tensor_that_it_makes(make) -> None:
    class Fills(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            out = make(2, 3)
            for row in range(2):
                out[row] = torch.tanh(self.layer(x[row]))
            out += 1
            return out

    torch.manual_seed(0)
    module, xs = Fills(), torch.randn(4, 2, 3)

    def objective(model, params, x):
        return model(params, model.buffers, x)[0].square().sum()

    model = functionalize(module)
    expected = [grad(lambda p, x=x: objective(model, p, x))(model.params) for x in xs]
    fresh = functionalize(module)
    got = vmap(lambda x: grad(lambda p: objective(fresh, p, x))(model.params))(xs)
    for index, each in enumerate(expected):
        assert_close({name: value[index] for name, value in got.items()}, each, tolerance=1e-6)


def test_state_that_forward_registers_is_refused() -> None:
    class Registers(nn.Module):
        def forward(self, x):
            if not hasattr(self, "scale"):
                self.register_buffer("scale", x.detach().std())
            return x / self.scale

    module, x = Registers(), torch.tensor([1.0, 3.0])
    model = functionalize(module)
    for _ in range(2):
        with pytest.raises(UsageError, match="adds or removes 'scale' of Registers"):
            model({}, model.buffers, x)
    module(x)
    model = functionalize(module)
    assert torch.equal(model({}, model.buffers, 2 * x)[0], 2 * x / x.std())


class _Thrice(nn.Module):
    """A weight used several times in a call: its gradient is a sum of several terms."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(7, 7)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return x


def test_a_first_call_has_the_gradient_of_a_later_one_to_the_last_bit() -> None:
    torch.manual_seed(0)
    module, x, y = _Thrice(), torch.randn(8, 7), torch.randn(8, 7)
    fresh, used = functionalize(module), functionalize(module)

    def objective(model, params):
        first, buffers = model(params, model.buffers, x)
        return (first - model(params, buffers, y)[0]).square().mean()

    objective(used, used.params)
    ours, theirs = (grad(lambda p, m=m: objective(m, p))(m.params) for m in (fresh, used))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
