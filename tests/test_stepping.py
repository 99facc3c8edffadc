"""The functional training loop: to the bit the loop that mutates, and nothing kept between steps."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metalearn
from metalearn import Aux, UsageError, functionalize, optim, stepping, tree
from metalearn.testing import assert_close

D = torch.float64


class Shared(nn.Module):
    """One layer used three times, so that its gradient is a sum whose order shows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.inner(x))
        return self.head(x)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((10 * x.abs()).long().clamp(max=9)).mean(1))


# Small ones: in large group and layer norms torch does not repeat itself, its last bits depend on where memory lies.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp with batch norm": (
        lambda: nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)
        ),
        (8, 3),
    ),
    "convolutions with batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.Flatten(),
            nn.Linear(36, 2),
        ),
        (8, 1, 10, 10),
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 2)),
        (8, 3),
    ),
    "shared": (Shared, (8, 3)),
    "embedding": (Embedded, (8, 3)),
}  # fmt: skip

OPTIMIZERS = {
    "sgd": (lambda: optim.sgd(0.03), lambda p: torch.optim.SGD(p, 0.03)),
    "sgd, momentum": (lambda: optim.sgd(0.03, momentum=0.9), lambda p: torch.optim.SGD(p, 0.03, momentum=0.9)),
    "sgd, nesterov": (
        lambda: optim.sgd(0.03, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.03, momentum=0.9, nesterov=True),
    ),
    "sgd, decay": (lambda: optim.sgd(0.03, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.03, weight_decay=0.1)),
    "sgd, everything": (
        lambda: optim.sgd(0.03, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.03, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (lambda: optim.adam(0.003), lambda p: torch.optim.Adam(p, 0.003)),
    "adam, everything": (
        lambda: optim.adam(0.003, b1=0.4, b2=0.97, eps=1e-4, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, 0.003, betas=(0.4, 0.97), eps=1e-4, weight_decay=0.01),
    ),
}


def _batches(shape: tuple[int, ...], number: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randn(size, generator=generator, dtype=dtype) for size in (shape, (8, 2))) for _ in range(number)
    ]


def _loss_of(model) -> stepping.FreeLossFunction:
    def loss_fn(params, buffers, batch):
        output, buffers = model(params, buffers, batch[0])
        return (output - batch[1]).square().mean(), buffers

    return loss_fn


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_bit_equal_to_the_loop_that_mutates(net: str, optimizer: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, shape = NETS[net]
    module = make().to(dtype)
    model, batches = functionalize(copy.deepcopy(module)), _batches(shape, 100, dtype)
    ours, theirs = OPTIMIZERS[optimizer][0](), OPTIMIZERS[optimizer][1](module.parameters())

    losses = []
    state = stepping.start(model.params, model.buffers, ours)
    for batch in batches:
        state, seen = stepping.step(_loss_of(model), ours, state, batch)
        losses.append(seen.loss)

    expected = []
    for x, y in batches:
        theirs.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        theirs.step()
        expected.append(loss.detach())

    assert torch.equal(torch.stack(losses), torch.stack(expected))
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        assert torch.equal({**state.params, **state.buffers}[name], value.detach()), name
    assert max((state.params[name] - value).abs().max() for name, value in model.params.items()) > 0.01


@pytest.mark.parametrize("net", NETS)
def test_the_gradient_is_bit_equal_to_backward(net: str) -> None:
    torch.manual_seed(0)
    make, shape = NETS[net]
    module = make()
    model, (batch,) = functionalize(module), _batches(shape, 1, torch.float32)
    (loss, buffers), grads = stepping.value_and_grad(_loss_of(model))(model.params, model.buffers, batch)
    expected = (module(batch[0]) - batch[1]).square().mean()
    expected.backward()
    assert torch.equal(loss, expected.detach())
    for name, value in module.named_parameters():
        assert torch.equal(grads[name], value.grad), name
    for name, value in module.named_buffers():
        assert torch.equal(buffers[name], value), name


def _simple(params, buffers, batch):
    return (params["w"] - batch).square().sum()


def test_no_step_remembers_the_one_before() -> None:
    start = {"w": torch.zeros(3, requires_grad=True)}
    rate = torch.tensor(0.1, requires_grad=True)
    optimizer = optim.adam(rate)
    state, counts = stepping.start(start, {}, optimizer), []
    for index in range(1200):
        state, seen = stepping.step(_simple, optimizer, state, torch.ones(3))
        assert not any(value.requires_grad for value in tree.tensors((state, seen.grads, seen.updates, seen.loss)))
        if index % 400 == 399:
            gc.collect()
            counts.append(sum(type(each) is Tensor for each in gc.get_objects()))
    assert counts[0] == counts[-1]
    assert start["w"].grad is None


class Remembering(nn.Module):
    """State with a history: what it saw flows on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = 0.5 * self.seen + self.weight * x
        return self.seen


def test_state_with_a_history_is_cut_off_between_steps() -> None:
    model = functionalize(Remembering())
    state = stepping.start(model.params, model.buffers, optim.sgd(0.1))

    def loss_fn(params, buffers, batch):
        output, buffers = model(params, buffers, batch)
        return output.square().sum(), buffers

    state, _ = stepping.step(loss_fn, optim.sgd(0.1), state, torch.ones(1))
    assert not any(value.requires_grad for value in state.buffers.values())
    # 2 (0.5 + w) with the second output's own w alone: through the first it would be half as much again.
    _, seen = stepping.step(loss_fn, optim.sgd(0.1), state, torch.ones(1))
    assert seen.grads["weight"].item() == pytest.approx(2 * (0.5 + state.params["weight"].item()))


def test_history_on_request_and_within_transforms() -> None:
    optimizer, target = optim.sgd(0.25), torch.ones(1, dtype=D)

    def after_two(w: Tensor, history: bool) -> Tensor:
        state = stepping.start({"w": w}, {}, optimizer)
        for _ in range(2):
            state, _ = stepping.step(_simple, optimizer, state, target, history=history)
        return state.params["w"].sum()

    w = torch.zeros(1, dtype=D, requires_grad=True)
    # w' = w - 0.5 (w - 1), twice: dw''/dw = 0.25.
    assert torch.autograd.grad(after_two(w, True), w)[0].item() == 0.25
    assert torch.func.grad(lambda w: after_two(w, False))(w.detach()).item() == 0.25
    assert (
        torch.vmap(torch.func.grad(lambda w: after_two(w, False)))(torch.zeros(3, 1, dtype=D)).tolist() == [[0.25]] * 3
    )
    assert not after_two(w, False).requires_grad
    second = torch.func.grad(
        lambda w: stepping.value_and_grad(lambda p, b, x: p["w"].sum() ** 3)({"w": w}, {}, None)[1]["w"].sum()
    )
    assert second(torch.full((1,), 2.0)).item() == 12.0
    grads = stepping.value_and_grad(_simple, history=True)({"w": w}, {}, target)[1]
    assert torch.autograd.grad(grads["w"].sum(), w)[0].item() == 2.0


def test_under_vmap_it_is_the_loop() -> None:
    torch.manual_seed(0)
    model = functionalize(NETS["mlp with batch norm"][0]().double())
    x, y = torch.randn(4, 8, 3, dtype=D), torch.randn(4, 8, 2, dtype=D)
    function = stepping.value_and_grad(_loss_of(model))
    (losses, _), grads = torch.vmap(function, in_dims=(None, None, 0))(model.params, model.buffers, (x, y))
    for index in range(4):
        (loss, _), expected = function(model.params, model.buffers, (x[index], y[index]))
        assert_close(
            (losses[index], {name: grad[index] for name, grad in grads.items()}), (loss, expected), tolerance=1e-13
        )


@pytest.mark.parametrize("history", [False, True])
def test_the_value_is_what_the_loss_returned(history: bool) -> None:
    params, target = {"w": torch.zeros(2), "unused": torch.ones(3)}, torch.ones(2)

    def returning(extra: Callable[[Tensor], tuple]):
        def loss_fn(params, buffers, batch):
            loss = _simple(params, buffers, batch)
            return (loss, *extra(loss)) if extra(loss) else loss

        return stepping.value_and_grad(loss_fn, history=history)(params, {"n": torch.tensor(0)}, target)

    loss, grads = returning(lambda loss: ())
    assert loss.item() == 2.0
    assert torch.equal(grads["w"], torch.tensor([-2.0, -2.0]))
    assert torch.equal(grads["unused"], torch.zeros(3))
    (loss, buffers), _ = returning(lambda loss: ({"n": torch.tensor(1)},))
    assert (loss.item(), buffers["n"].item()) == (2.0, 1)
    (loss, aux), _ = returning(lambda loss: (Aux({}, {"double": 2 * loss}),))
    assert aux.metrics["double"].item() == 4.0
    constant = stepping.value_and_grad(lambda params, buffers, batch: torch.tensor(3.0), history=history)
    loss, grads = constant(params, {}, None)
    assert loss.item() == 3.0
    assert torch.equal(grads["w"], torch.zeros(2))


def test_a_gradient_is_computed_also_where_gradients_are_off() -> None:
    with torch.no_grad():
        _, grads = stepping.value_and_grad(_simple)({"w": torch.zeros(2)}, {}, torch.ones(2))
    assert torch.equal(grads["w"], torch.tensor([-2.0, -2.0]))


def test_inputs_are_not_mutated() -> None:
    torch.manual_seed(0)
    make, shape = NETS["convolutions with batch norm"]
    model, (batch,) = functionalize(make()), _batches(shape, 1, torch.float32)
    optimizer = optim.adam(0.1, weight_decay=0.1)
    state = stepping.start(model.params, model.buffers, optimizer)
    before = copy.deepcopy((state, batch))
    stepping.step(_loss_of(model), optimizer, state, batch)
    for old, new in zip(tree.tensors(before), tree.tensors((state, batch)), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss_fn": lambda p, b, x: p["w"]}, ["shape [2]", "scalar"]),
        ({"loss_fn": lambda p, b, x: "high"}, ["str", "(loss, buffers)"]),
        ({"buffers": {"w": torch.ones(1)}}, ["'w'", "buffer comes first"]),
    ],
)
def test_mistakes_are_named(change, words: list[str], history: bool) -> None:
    given = {"loss_fn": _simple, "params": {"w": torch.ones(2)}, "buffers": {}, **change}
    state = stepping.start(given["params"], given["buffers"], optim.sgd(0.1))
    with pytest.raises(UsageError) as caught:
        stepping.step(given["loss_fn"], optim.sgd(0.1), state, torch.ones(2), history=history)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("loss", [lambda p, b, x: p["w"].sum().long(), lambda p, b, x: p["w"].sum() * 1j])
def test_a_loss_of_integers_or_complex_numbers_is_named(loss) -> None:
    with pytest.raises(UsageError, match=r"the loss is torch\.(int64|complex64), .* real floating-point"):
        stepping.value_and_grad(loss)({"w": torch.ones(2)}, {}, None)


def test_an_optimizer_of_torch_and_a_state_that_is_none_are_named() -> None:
    params = {"w": torch.ones(2)}
    of_torch = torch.optim.SGD(params.values(), 0.1)
    with pytest.raises(UsageError, match=r"optimizer is a SGD, expected a GradientTransformation such as metalearn"):
        stepping.start(params, {}, of_torch)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="optimizer is a function"):
        stepping.step(_simple, optim.sgd, stepping.start(params, {}, optim.sgd(0.1)), torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"state is a tuple, expected metalearn\.start\(params, buffers, optimizer\)"):
        stepping.step(_simple, optim.sgd(0.1), (params, {}, None), torch.ones(2))  # type: ignore[arg-type]


def test_a_loss_of_the_module_itself_is_named() -> None:
    module = nn.Linear(3, 1)
    model = functionalize(module)
    with pytest.raises(UsageError, match="not the module"):
        stepping.value_and_grad(lambda params, buffers, x: module(x).sum())(model.params, {}, torch.ones(2, 3))


def test_a_count_among_the_parameters_is_named() -> None:
    with pytest.raises(UsageError, match=r"params\['n'\] is torch.int64"):
        stepping.value_and_grad(_simple)({"n": torch.tensor(1)}, {}, None)


def test_the_package_shows_it_at_its_front() -> None:
    for name in ("start", "step", "value_and_grad"):
        assert getattr(metalearn, name) is getattr(stepping, name)
    assert metalearn.ensembles.__name__ == "metalearn.ensembles"
