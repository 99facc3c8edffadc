"""Many copies in one call: the numbers of a Python loop over them, dropout and batch norm included."""

import pytest
import torch
from torch import Tensor, nn

from metalearn import UsageError, adapt, ensembles, functionalize, optim, random, stepping, tree
from metalearn.testing import assert_close

D = torch.float64
COPIES = 5


class Counting(nn.Module):
    """State that forward changes, kept in a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.count = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.scale * self.count


NETS = {
    "state in a parameter": (Counting, (4, 3)),
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), (4, 3)),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.4), nn.ReLU(), nn.Linear(8, 2)), (4, 3)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)), (4, 3)),
    "batch norm, evaluation mode": (lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)).eval(), (4, 3)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)), (4, 3)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten()),
        (4, 1, 5, 5),
    ),
}


def _setting(net: str) -> tuple:
    torch.manual_seed(0)
    make, shape = NETS[net]
    model = functionalize(make().double(), seed=3)
    copies = ensembles.perturb(model.params, random.key(1), COPIES, scale=0.3)
    return model, copies, torch.randn(COPIES, *shape, dtype=D)


def _buffers(model, index: int) -> dict[str, Tensor]:
    return {**model.buffers, "rng": random.fold_in(model.buffers["rng"], index)}


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("per_copy", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_equals_a_loop_over_the_copies(net: str, per_copy: bool, chunk_size: int | None) -> None:
    model, copies, x = _setting(net)
    given = x if per_copy else x[0]
    outputs, buffers = ensembles.evaluate(model, copies, model.buffers, given, per_copy=per_copy, chunk_size=chunk_size)
    assert len(outputs) == COPIES
    for index, params in enumerate(ensembles.unstack(copies)):
        expected, after = model(params, _buffers(model, index), x[index] if per_copy else x[0])
        assert_close(outputs[index], expected, tolerance=1e-12)
        assert after.keys() == buffers.keys()
        for name, value in after.items():
            torch.testing.assert_close(buffers[name][index], value, rtol=1e-12, atol=1e-12)


def test_goes_on_with_the_buffers_of_every_copy() -> None:
    model, copies, x = _setting("convolution")
    _, once = ensembles.evaluate(model, copies, model.buffers, x[0])
    outputs, twice = ensembles.evaluate(model, copies, once, x[1])
    for index, params in enumerate(ensembles.unstack(copies)):
        _, first = model(params, _buffers(model, index), x[0])
        expected, second = model(params, first, x[1])
        assert_close(outputs[index], expected, tolerance=1e-12)
        assert torch.equal(twice["1.num_batches_tracked"][index], torch.tensor(2))
        assert torch.equal(twice["rng"][index], second["rng"])


def test_copies_draw_different_masks_and_a_copy_the_same_in_any_company() -> None:
    model, _, _ = _setting("dropout")
    same = ensembles.stack([model.params] * COPIES)
    x = torch.ones(4, 3, dtype=D)
    outputs, _ = ensembles.evaluate(model, same, model.buffers, x)
    assert all(not torch.equal(outputs[0], outputs[index]) for index in range(1, COPIES))
    fewer, _ = ensembles.evaluate(model, ensembles.stack([model.params] * 2), model.buffers, x)
    assert_close(fewer, outputs[:2], tolerance=1e-14)


def test_a_parameter_may_be_shared_by_all_copies() -> None:
    model, copies, x = _setting("mlp")
    shared = {**copies, "0.weight": model.params["0.weight"]}
    outputs, _ = ensembles.evaluate(model, shared, model.buffers, x[0])
    for index, params in enumerate(ensembles.unstack(copies)):
        expected, _ = model({**params, "0.weight": model.params["0.weight"]}, model.buffers, x[0])
        assert_close(outputs[index], expected, tolerance=1e-13)


def test_the_perturbation_has_its_scale_and_is_a_function_of_key_name_and_copy() -> None:
    params = {"w": torch.zeros(50, 40, dtype=D), "b": torch.full((7,), 2.0, dtype=D)}
    copies = ensembles.perturb(params, random.key(0), 20, scale={"w": 0.5})
    assert copies["w"].std().item() == pytest.approx(0.5, rel=0.02)
    assert copies["w"].mean().item() == pytest.approx(0.0, abs=0.02)
    assert torch.equal(copies["b"], params["b"].expand(20, 7))
    fewer = ensembles.perturb({"w": params["w"]}, random.key(0), 3, scale=0.5)
    assert torch.equal(fewer["w"], copies["w"][:3])
    assert not torch.equal(fewer["w"][0], fewer["w"][1])
    assert not torch.equal(fewer["w"], ensembles.perturb(params, random.key(1), 3, scale=0.5)["w"])


def test_stack_and_unstack_are_inverse() -> None:
    _, copies, _ = _setting("mlp")
    again = ensembles.stack(ensembles.unstack(copies))
    assert all(torch.equal(again[name], value) for name, value in copies.items())


@pytest.mark.parametrize("net", NETS)
def test_gradients_are_those_of_a_loop(net: str) -> None:
    model, copies, x = _setting(net)

    def loss_fn(params, buffers, batch):
        output, buffers = model(params, buffers, batch)
        return output.square().mean(), buffers

    buffers = ensembles.spread(model.buffers, COPIES)
    (losses, after), grads = ensembles.value_and_grad(loss_fn, chunk_size=3)(copies, buffers, x[0])
    for index, params in enumerate(ensembles.unstack(copies)):
        (loss, own), expected = stepping.value_and_grad(loss_fn)(params, _buffers(model, index), x[0])
        assert_close(losses[index], loss, tolerance=1e-12)
        assert_close({name: grad[index] for name, grad in grads.items()}, expected, tolerance=1e-12)
        assert torch.equal(after["rng"][index], own["rng"])
    assert not any(value.requires_grad for value in tree.tensors((losses, after, grads)))


def test_an_ensemble_trains_as_its_members_do_alone() -> None:
    # No batch norm: a bias before it has a gradient of rounding errors alone, which Adam makes steps of.
    model, copies, x = _setting("layer norm")
    optimizer = optim.adam(0.05)

    def loss_fn(params, buffers, batch):
        output, buffers = model(params, buffers, batch)
        return (output - 1.0).square().mean(), buffers

    params, buffers, opt_state = copies, ensembles.spread(model.buffers, COPIES), optimizer.init(copies)
    for _ in range(4):
        (_, buffers), grads = ensembles.value_and_grad(loss_fn, per_copy=True)(params, buffers, x)
        params, _, opt_state = optimizer.step(grads, opt_state, params)
    for index, start in enumerate(ensembles.unstack(copies)):
        alone = adapt(loss_fn, start, _buffers(model, index), x[index], optimizer=optimizer, num_inner_steps=4)
        assert_close({name: value[index] for name, value in params.items()}, alone.params, tolerance=1e-11)


def test_inputs_are_not_mutated_and_leaves_may_require_grad() -> None:
    model, copies, x = _setting("convolution")
    leaves = {name: value.clone().requires_grad_() for name, value in copies.items()}
    before = tree.map_tensors(lambda leaf: leaf.detach().clone(), (leaves, model.buffers, x))
    outputs, buffers = ensembles.evaluate(model, leaves, model.buffers, x[0])
    assert not any(value.requires_grad for value in tree.tensors((outputs, buffers)))
    for old, new in zip(tree.tensors(before), tree.tensors((leaves, model.buffers, x)), strict=True):
        assert torch.equal(old, new)


def test_differentiation_from_outside_is_refused() -> None:
    model, copies, x = _setting("batch norm")

    def total(copies: dict[str, Tensor]) -> Tensor:
        return ensembles.evaluate(model, copies, model.buffers, x[0])[0].sum()

    scaled = {name: value.clone().requires_grad_() * 1.0 for name, value in copies.items()}
    inputs = x[0].clone().requires_grad_() * 1.0
    loss_fn = lambda params, buffers, batch: params["0.weight"].sum()  # noqa: E731
    for call in (
        lambda: total(scaled),
        lambda: torch.func.grad(total)(copies),
        lambda: torch.vmap(torch.func.grad(total))(tree.map_tensors(lambda leaf: leaf[None], copies)),
        lambda: ensembles.evaluate(model, copies, model.buffers, inputs),
        lambda: ensembles.value_and_grad(loss_fn)(scaled, {}, None),
    ):
        with pytest.raises(UsageError, match=r"ensembles\.value_and_grad"):
            call()
    with torch.no_grad():
        assert ensembles.evaluate(model, copies, model.buffers, inputs)[0].shape == (COPIES, 4, 2)


def _mistakes() -> dict[str, tuple]:
    model, copies, x = _setting("batch norm")
    weight = {"0.weight": copies["0.weight"][:3]}
    loss_fn = lambda params, buffers, batch: params["0.weight"].sum()  # noqa: E731
    return {
        "one copy": (lambda: ensembles.evaluate(model, model.params, model.buffers, x[0]), ["one copy", "stack(["]),
        "two lengths": (
            lambda: ensembles.evaluate(model, {**copies, **weight}, model.buffers, x[0]), ["0.weight", "[3, 8, 3]"],
        ),
        "a wrong shape": (
            lambda: ensembles.evaluate(model, {**copies, "0.bias": torch.ones(9)}, model.buffers, x[0]),
            ["'0.bias'", "[9]", "[8]"],
        ),
        "a wrong name": (
            lambda: ensembles.evaluate(model, {**copies, "0.bia": torch.ones(9)}, model.buffers, x[0]),
            ["'0.bia'", "Did you mean"],
        ),
        "inputs of another number": (
            lambda: ensembles.evaluate(model, copies, model.buffers, x[:2], per_copy=True), ["input 0", "[2, 4, 3]"],
        ),
        "a chunk of none": (
            lambda: ensembles.evaluate(model, copies, model.buffers, x[0], chunk_size=0), ["chunk_size is 0"],
        ),
        "shared buffers": (
            lambda: ensembles.value_and_grad(loss_fn)(copies, model.buffers, x[0]), ["spread(buffers, num_copies)"],
        ),
        "nothing to stack": (lambda: ensembles.stack([]), ["at least one"]),
        "other shapes": (lambda: ensembles.stack([{"w": torch.ones(2)}, {"w": torch.ones(3)}]), ["'w'", "copy 1"]),
        "other names": (lambda: ensembles.stack([{"w": torch.ones(2)}, {"v": torch.ones(2)}]), ["'v'", "missing"]),
        "one dict to stack": (lambda: ensembles.stack(model.params), ["one dict", "perturb(params, key"]),
        "models to stack": (lambda: ensembles.stack([model, model]), ["got a FunctionalModel"]),
        "a module": (
            lambda: ensembles.evaluate(model.module, copies, model.buffers, x[0]), ["metalearn.functionalize(module)"],
        ),
        "noise on integers": (
            lambda: ensembles.perturb({"n": torch.tensor(3)}, random.key(0), 2), ["'n' is torch.int64", "no noise"],
        ),
        "a number for a key": (
            lambda: ensembles.perturb(model.params, 0, 2), ["key is a int", "metalearn.random.key(0)"],
        ),
        "half a copy": (lambda: ensembles.perturb(model.params, random.key(0), 2.5), ["num_copies is 2.5"]),
        "no copies": (lambda: ensembles.perturb(model.params, random.key(0), 0), ["num_copies is 0"]),
        "a scale of nothing": (
            lambda: ensembles.perturb(model.params, random.key(0), 2, scale={"0.weigh": 1.0}), ["mean '0.weight'"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("mistake", _mistakes())
def test_mistakes_are_named(mistake: str) -> None:
    call, words = _mistakes()[mistake]
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
