"""Masks, partitions, freezing and steps left out: equal to torch.optim on the same parameters, and differentiable."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim, state, tree
from metalearn.optim import schedules
from metalearn.testing import assert_close, check_transformation

D = torch.float64
NUM_STEPS = 100


def start(dtype: torch.dtype = D) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"body.weight": (3, 2), "body.bias": (3,), "head.weight": (2, 3), "head.scale": ()}
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def gradients(step: int, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a loss in which every parameter meets every other, with a changing slope."""

    def loss(params: dict[str, Tensor]) -> Tensor:
        flat = tree.to_vector(params)
        slopes = torch.linspace(-1, 1, len(flat), dtype=flat.dtype) * (1 + step % 5)
        return torch.log1p((flat.square() - 1).square().sum()) + 0.1 * (slopes * flat).sum()

    return torch.func.grad(loss)(params)


OPTIMIZERS: dict[str, tuple[Callable, Callable]] = {
    "adam": (lambda: optim.adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "adamw": (lambda: optim.adamw(0.05), lambda p: torch.optim.AdamW(p, 0.05)),
    "sgd": (
        lambda: optim.sgd(0.05, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    ),
    "sgd, dampened": (
        lambda: optim.sgd(0.05, momentum=0.9, dampening=0.5),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.5),
    ),
}


def run_beside_torch(
    ours: optim.GradientTransformation, theirs: Callable[[dict[str, Tensor]], Callable[[int], None]]
) -> dict[str, Tensor]:
    """100 steps of both from one start, equal to 1e-12 after each; returns where they end.

    Args:
        ours: the transformation.
        theirs: from leaves by name to a step, given its number, at gradients that are set already.
    """
    params, leaves = start(), {name: value.clone().requires_grad_() for name, value in start().items()}
    their_step, opt_state = theirs(leaves), ours.init(params)
    for step in range(NUM_STEPS):
        for name, gradient in gradients(step, {name: leaf.detach() for name, leaf in leaves.items()}).items():
            leaves[name].grad = gradient
        their_step(step)
        params, _, opt_state = ours.step(gradients(step, params), opt_state, params)
        for name, value in params.items():
            torch.testing.assert_close(value, leaves[name].detach(), rtol=1e-12, atol=1e-12)
    return params


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_parameter_that_is_skipped_is_as_in_torch_where_its_grad_is_none(optimizer: str) -> None:
    make, of_torch = OPTIMIZERS[optimizer]

    def acts(num_steps: Tensor) -> Tensor:
        return (num_steps % 3 != 1) & (num_steps >= 2)  # so that the first steps are left out too

    def theirs(leaves: dict[str, Tensor]) -> Callable[[int], None]:
        reference = of_torch(list(leaves.values()))

        def step(number: int) -> None:
            if not acts(torch.tensor(number)):
                for name, leaf in leaves.items():
                    leaf.grad = None if name.startswith("head") else leaf.grad
            reference.step()

        return step

    ended = run_beside_torch(optim.partition({"head.*": optim.only_if(make(), acts), "*": make()}), theirs)
    assert (ended["head.weight"] - start()["head.weight"]).abs().max() > 0.05


def test_a_partition_is_as_one_torch_optimizer_a_group() -> None:
    def theirs(leaves: dict[str, Tensor]) -> Callable[[int], None]:
        several = [
            torch.optim.SGD([leaves["head.scale"]], 0.01),
            torch.optim.Adam([leaves["head.weight"]], 0.03),
            torch.optim.RMSprop([leaves["body.weight"], leaves["body.bias"]], 0.02),
        ]
        return lambda number: [each.step() for each in several] and None

    groups = {"head.*": optim.adam(0.03), "head.scale": optim.sgd(0.01), "*": optim.rmsprop(0.02)}
    run_beside_torch(optim.partition(groups), theirs)


def test_a_schedule_of_a_group_goes_by_its_own_steps() -> None:
    rate = optim.per_step([1.0, 10.0, 100.0])
    optimizer = optim.partition({"a": optim.only_if(optim.sgd(rate), lambda t: t % 2 == 1), "b": optim.sgd(rate)})
    params = {"a": torch.zeros(()), "b": torch.zeros(())}
    opt_state, moves = optimizer.init(params), []
    for _ in range(4):
        updates, opt_state = optimizer.update({name: torch.ones(()) for name in params}, opt_state, params)
        moves.append((-updates["a"].item(), -updates["b"].item()))
    assert moves == [(0.0, 1.0), (1.0, 10.0), (0.0, 100.0), (10.0, 100.0)]
    counted = state.named(opt_state)
    assert int(counted["opt_state.groups.a.num_steps"]) == 4
    assert int(counted["opt_state.groups.a.inner.num_steps"]) == 2
    assert int(counted["opt_state.groups.b.num_steps"]) == 4


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_partition_of_all_has_the_bits_of_what_is_in_it(optimizer: str, dtype: torch.dtype) -> None:
    alone = OPTIMIZERS[optimizer][0]()
    for wrapped in (
        optim.partition({"*": alone}),
        optim.masked(alone, "*"),
        optim.only_if(alone, lambda num_steps: num_steps >= 0),
        optim.partition({"body.*": alone, "head.*": alone}),
        optim.chain(optim.chain(optim.masked(alone, lambda name: True))),
    ):
        params = expected = start(dtype)
        opt_state, expected_state = wrapped.init(params), alone.init(params)
        for step in range(20):
            grads = gradients(step, params)
            updates, _ = wrapped.update(grads, opt_state, params)
            expected_updates, _ = alone.update(grads, expected_state, expected)
            params, again, opt_state = wrapped.step(grads, opt_state, params)
            expected, _, expected_state = alone.step(grads, expected_state, expected)
            assert list(params) == list(expected) == list(updates)
            for name, value in expected.items():
                assert torch.equal(params[name], value)
                assert torch.equal(updates[name], expected_updates[name])
                assert torch.equal(again[name], expected_updates[name])


def test_a_mask_leaves_the_others_updates_as_they_are() -> None:
    params, grads = start(), gradients(0, start())
    for which in ("head.*", ["*", "!body.*"], lambda name: name.startswith("head"), (n for n in ("head.*",))):
        part = optim.masked(optim.add_decayed_weights(0.5), which)
        opt_state = part.init(params)
        for _ in range(2):
            updates, opt_state = part.update(grads, opt_state, params)
        for name, value in updates.items():
            expected = grads[name] + 0.5 * params[name] if name.startswith("head") else grads[name]
            assert torch.equal(value, expected)


def test_no_bias_decays_as_with_parameter_groups_of_torch() -> None:
    def theirs(leaves: dict[str, Tensor]) -> Callable[[int], None]:
        weights = [leaf for name, leaf in leaves.items() if name.endswith("weight")]
        others = [leaf for name, leaf in leaves.items() if not name.endswith("weight")]
        groups = [{"params": weights, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
        reference = torch.optim.Adam(groups, 0.03)
        return lambda number: reference.step()

    decay = optim.masked(optim.add_decayed_weights(0.2), "*weight")
    run_beside_torch(optim.chain(decay, optim.adam(0.03)), theirs)


@pytest.mark.parametrize(
    "frozen",
    [
        optim.chain(optim.adamw(0.1), optim.freeze("head.*")),
        optim.partition({"head.*": optim.freeze(), "*": optim.adamw(0.1)}),
        optim.chain(optim.freeze(lambda name: name.startswith("head")), optim.sgd(0.1)),
    ],
)
def test_what_is_frozen_stays_bit_by_bit(frozen: optim.GradientTransformation) -> None:
    params, opt_state = start(), frozen.init(start())
    for step in range(3):
        params, updates, opt_state = frozen.step(gradients(step, params), opt_state, params)
    for name, value in start().items():
        assert torch.equal(params[name], value) == name.startswith("head")
        assert bool((updates[name] == 0).all()) == name.startswith("head")


def test_a_frozen_gradient_that_is_not_finite_moves_nothing() -> None:
    params = {"w": torch.ones(2), "v": torch.ones(2)}
    part = optim.freeze("w")
    updates, _ = part.update({"w": torch.full((2,), float("nan")), "v": torch.ones(2)}, part.init(params), params)
    assert torch.equal(updates["w"], torch.zeros(2))


# One of each, with hyper-parameters on both sides of it.
CERTIFIED: dict[str, tuple[Callable, dict[str, float], bool]] = {
    "masked": (
        lambda h: optim.masked(optim.scale_by_adam(h["b1"], 0.9, 1e-2), ["*", "!bias"]),
        {"b1": 0.7},
        False,
    ),
    "masked decay before adam": (
        lambda h: optim.chain(
            optim.masked(optim.add_decayed_weights(h["decay"]), "weight"), optim.adam(h["lr"], eps=1e-2)
        ),
        {"decay": 0.3, "lr": 0.1},
        True,
    ),
    "freeze": (
        lambda h: optim.chain(optim.adam(h["lr"], eps=1e-2), optim.freeze("scale")),
        {"lr": 0.1},
        True,
    ),
    "partition": (
        lambda h: optim.partition(
            {
                "weight": optim.adam(h["lr"], b2=h["b2"], eps=1e-2),
                "s*": optim.freeze(),
                "*": optim.sgd(h["rate"], momentum=h["momentum"]),
            }
        ),
        {"lr": 0.1, "b2": 0.9, "rate": 0.3, "momentum": 0.8},
        True,
    ),
    "only_if": (
        lambda h: optim.only_if(optim.adam(h["lr"], b1=h["b1"], eps=1e-2), lambda num_steps: num_steps % 3 != 1),
        {"lr": 0.1, "b1": 0.7},
        True,
    ),
    "partition with only_if": (
        lambda h: optim.partition(
            {
                "weight": optim.only_if(optim.sgd(h["rate"], momentum=h["momentum"]), lambda t: t % 2 == 0),
                "*": optim.adam(schedules.cosine(h["lr"], 10, end=0.01), eps=1e-2),
            }
        ),
        {"rate": 0.3, "momentum": 0.8, "lr": 0.1},
        True,
    ),
}


@pytest.mark.parametrize("row", CERTIFIED)
def test_every_derivative_is_certified(row: str) -> None:
    make, hypers, is_whole = CERTIFIED[row]
    report = check_transformation(make, hypers=hypers, is_whole=is_whole)
    assert all(report.row(name, steps).gradient_norm > 1e-5 for name in hypers for steps in (5, 20))


def test_a_step_left_out_computes_nothing_where_that_can_be_known() -> None:
    calls: list[int] = []

    def counted(updates: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return {name: -value for name, value in updates.items()}

    part, params = optim.only_if(optim.stateless(counted), lambda num_steps: num_steps == 2), {"w": torch.ones(2)}
    opt_state = part.init(params)
    for _ in range(5):
        _, opt_state = part.update(params, opt_state, params)
    assert len(calls) == 1


def test_tasks_of_a_batch_may_be_at_different_steps() -> None:
    optimizer = optim.only_if(optim.adam(0.1), lambda num_steps: num_steps % 2 == 1)
    params = {"w": torch.linspace(1, 2, 3, dtype=D)}
    states = []
    for age in range(4):
        opt_state = optimizer.init(params)
        for _ in range(age):
            _, opt_state = optimizer.update(params, opt_state, params)
        states.append(opt_state)
    batched = torch.vmap(lambda one: optimizer.step(params, one, params))(tree.joined(states, torch.stack))
    for age, opt_state in enumerate(states):
        assert_close(tree.entry(batched, age), optimizer.step(params, opt_state, params), tolerance=1e-14)
    assert (batched[1]["w"] == 0).all(dim=1).tolist() == [True, False, True, False]


def test_an_inner_transformation_may_return_its_dicts_in_another_order() -> None:
    def init(params: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(params)

    def update(updates, state, params):
        return (
            {name: -updates[name] for name in sorted(updates, reverse=True)},
            {name: state[name] + 1 for name in sorted(updates, reverse=True)},
        )

    params = {"a": torch.ones(2), "b": torch.full((2,), 5.0)}
    turned = optim.GradientTransformation(init, update)
    for optimizer in (optim.only_if(turned, lambda count: count == 1), optim.accumulate(turned, 2)):
        opt_state = optimizer.init(params)
        ages = torch.arange(2)
        batched = torch.vmap(
            lambda age, own=opt_state, its=optimizer: its.step(params, own._replace(num_steps=age), params)
        )
        moved, _, after = batched(ages)
        for index, age in enumerate(ages):
            expected, _, one = optimizer.step(params, opt_state._replace(num_steps=age), params)
            for name in params:
                assert torch.equal(moved[name][index], expected[name])
                assert torch.equal(after.inner[name][index], one.inner[name])


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.partition({"body.*": optim.adam(0.1), "*scale": optim.freeze(), "*": optim.sgd({"head*": 0.1})}),
        optim.chain(optim.masked(optim.add_decayed_weights(0.1), ["*", "!*bias"]), optim.sgd(0.1)),
        optim.only_if(optim.adam(0.1), lambda num_steps: num_steps % 2 == 0),
        optim.accumulate(optim.chain(optim.add_noise(0.1, 0), optim.adam(0.1)), 2),
    ],
    ids=["partition", "masked", "only_if", "accumulate"],
)
def test_a_compiled_step_is_the_step(optimizer: optim.GradientTransformation) -> None:
    params, opt_state = start(), optimizer.init(start())
    compiled = torch.compile(
        lambda state, params: optimizer.step(params, state, params), fullgraph=True, backend="eager"
    )
    for _ in range(3):
        expected = optimizer.step(params, opt_state, params)
        assert_close(compiled(opt_state, params), expected, tolerance=1e-14)
        params, _, opt_state = expected


def test_the_state_of_a_group_without_parameters_goes_with_the_rest() -> None:
    optimizer = optim.partition({"head.*": optim.adam(0.1), "body.*": optim.adam(0.1), "*": optim.adam(0.1)})
    params = start()
    opt_state = optimizer.init(params)
    _, again, opt_state = optimizer.step(gradients(0, params), opt_state, params)
    saved = state.from_named(state.named(opt_state), like=optimizer.init(params))
    assert_close(saved, opt_state, tolerance=0.0)
    assert again.keys() == params.keys()


PARAMS = {"features.weight": torch.ones(2), "features.bias": torch.ones(2), "head.weight": torch.ones(2)}
SGD = optim.sgd(0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optim.masked(SGD, "haed.*").init(PARAMS), ["'haed.*'", "fits none", "'head.*'"]),
        (lambda: optim.masked(SGD, ["head.*", 3]).init(PARAMS), ["3", "pattern"]),
        (lambda: optim.masked(SGD, lambda name: False).init(PARAMS), ["true for none of the 3", "'head.weight'"]),
        (lambda: optim.freeze("feature.*").init(PARAMS), ["'feature.*'", "'features.*'"]),
        (lambda: optim.partition({}), ["dict", "'*'"]),
        (lambda: optim.partition(SGD), ["dict"]),
        (lambda: optim.partition({"*": 0.1}), ["float", "'*'", "sgd(0.1)"]),
        (lambda: optim.partition({"head.*": SGD}).init(PARAMS), ["'features.weight'", "no group", "'*'"]),
        (lambda: optim.partition({"haed.*": SGD, "*": SGD}).init(PARAMS), ["'haed.*'", "none of the 3", "head."]),
        (lambda: optim.partition({"*": SGD, "head.*": SGD}).init(PARAMS), ["'head.*'", "gets nothing", "'*'", "front"]),
        (lambda: optim.partition({"!head.*": SGD, "*": SGD}).init(PARAMS), ["'!head.*'", "'*'"]),
        (
            lambda: (part := optim.only_if(SGD, lambda count: count)).update(PARAMS, part.init(PARAMS), PARAMS),
            ["int64[]", "bool scalar"],
        ),
        (
            lambda: (part := optim.only_if(SGD, lambda num_steps: None)).update(PARAMS, part.init(PARAMS), PARAMS),
            ["None", "bool scalar"],
        ),
        (
            lambda: (part := optim.partition({"*": SGD})).update({"v": torch.ones(1)}, part.init(PARAMS), PARAMS),
            ["'v'", "no parameter"],
        ),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
