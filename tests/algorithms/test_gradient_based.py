"""Every gradient-based algorithm: certified, equal to its equations written out, the same in every way of running."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import UsageError, algorithms, functionalize, losses, metagrad, optim, tree
from metalearn.algorithms import MAML
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Implicit, Stepwise, Unrolled
from metalearn.models import MLP, Conv4, ResNet12, TorchvisionModel
from metalearn.models.norms import NORMS
from metalearn.problem import Problem
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems
from tests.algorithms.nets import EPISODE, EPISODES, model

COMMON: dict[str, Any] = {"loss": losses.cross_entropy, "inner_lr": 0.2, "num_inner_steps": 2}

FAMILY: dict[str, MAML] = {
    "ANIL": algorithms.ANIL(**COMMON),
    "ANIL, Adam inside": algorithms.ANIL(**COMMON, inner_optimizer=optim.adam),
    "BOIL": algorithms.BOIL(**COMMON),
    "Meta-SGD": algorithms.MetaSGD(**COMMON),
    "Meta-SGD, proximal": algorithms.MetaSGD(**COMMON, proximal=0.5),
    "Meta-SGD of the head": algorithms.MetaSGD(**COMMON, adapted="head.*", inner_optimizer=optim.adam),
    "Meta-Curvature": algorithms.MetaCurvature(**COMMON),
    "CAVIA": algorithms.CAVIA(**COMMON, num_context=3),
    "CAVIA, in the head": algorithms.CAVIA(**COMMON, layer="head"),
    "ProtoMAML": algorithms.ProtoMAML(**COMMON),
    "MAML++, multi-step loss": algorithms.MAMLPlusPlus(
        **COMMON, multi_step_until=10, learned_rates=False, per_step_norms=False
    ),
    "MAML++, learned rates": algorithms.MAMLPlusPlus(**COMMON, per_step_norms=False),
    "MAML++, norms a step": algorithms.MAMLPlusPlus(**COMMON, learned_rates=False),
    "MAML++": algorithms.MAMLPlusPlus(**COMMON, multi_step_until=10),
}


def moved(meta: dict[str, Tensor]) -> dict[str, Tensor]:
    """Away from where many entries are equal, so that none can stand for another."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in meta.items()
    }


@pytest.mark.parametrize("name", FAMILY)
def test_the_meta_gradient_is_that_of_finite_differences(name: str) -> None:
    algorithm = FAMILY[name]
    meta = moved(algorithm.init(model()))
    report = check_meta_gradient(algorithm.problem(model()), meta, EPISODE, num_directions=2)
    assert report.error <= 1e-6
    assert report.gradient_norm > 1e-2


@pytest.mark.parametrize("name", FAMILY)
def test_strategies_and_ways_of_running_tasks_agree(name: str) -> None:
    algorithm = FAMILY[name]
    problem, meta = algorithm.problem(model()), moved(algorithm.init(model()))
    expected = Loop().value_and_grad(Unrolled(), problem)(meta, EPISODES)
    for way, strategy in ((Vmap(), Unrolled()), (Loop(), Stepwise()), (Vmap(), Stepwise())):
        got = way.value_and_grad(strategy, problem)(meta, EPISODES)
        assert_close((got.value, got.grads), (expected.value, expected.grads), tolerance=1e-10)
    unseen = {entry for entry, grad in expected.grads.items() if not grad.any()}
    assert not unseen, f"learned, and without a gradient: {unseen}"


@pytest.mark.parametrize("name", FAMILY)
def test_adapt_and_predict_are_what_the_problem_does(name: str) -> None:
    algorithm = replace(FAMILY[name], **({"multi_step_until": 0} if name.startswith("MAML++") else {}))
    meta = moved(algorithm.init(model()))
    adapted = algorithm.adapt(model(), meta, model().buffers, EPISODE.support)
    logits = algorithm.predict(model(), meta, adapted, EPISODE.query[0])
    value = Unrolled().value_and_grad(algorithm.problem(model()))(meta, EPISODE).value
    assert_close(F.cross_entropy(logits, EPISODE.query[1]), value, tolerance=1e-12)


# By hand: the equations of each, in plain torch. A function of the leaves and an episode -> the query loss.


def _outputs(state: dict[str, Tensor], x: Tensor, modulate: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
    h = F.conv2d(x, state["features.0.weight"], state["features.0.bias"], stride=2)
    h = F.batch_norm(h, None, None, state["features.1.weight"], state["features.1.bias"], training=True)
    h = F.conv2d(modulate(h).tanh(), state["features.3.weight"], state["features.3.bias"], stride=2).tanh().flatten(1)
    return h if "head.weight" not in state else F.linear(h, state["head.weight"], state["head.bias"])


def _descended(state: dict[str, Tensor], names: list[str], move: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    x, y = EPISODE.support
    state = {
        name: value.clone() for name, value in state.items()
    }  # a head made of the features is no function of these
    loss = F.cross_entropy(_outputs(state, x), y)
    grads = torch.autograd.grad(loss, [state[name] for name in names], create_graph=True)
    return {**state, **{name: state[name] - move(name, grad) for name, grad in zip(names, grads, strict=True)}}


def _query_loss(state: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(_outputs(state, EPISODE.query[0]), EPISODE.query[1])


def _start(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return tree.select(leaves, "init.")


def _partly(adapted: Callable[[str], bool]) -> Callable[[dict[str, Tensor]], Tensor]:
    def by_hand(leaves: dict[str, Tensor]) -> Tensor:
        state = _start(leaves)
        for _ in range(2):
            state = _descended(state, [name for name in state if adapted(name)], lambda name, grad: 0.2 * grad)
        return _query_loss(state)

    return by_hand


def _meta_sgd(leaves: dict[str, Tensor]) -> Tensor:
    state = _start(leaves)
    for _ in range(2):
        state = _descended(state, [*state], lambda name, grad: leaves[f"optimizer.lr.{name}"] * grad)
    return _query_loss(state)


def _meta_curvature(leaves: dict[str, Tensor]) -> Tensor:
    def move(name: str, grad: Tensor) -> Tensor:
        form = grad.shape
        if grad.dim() == 4:
            own = [leaves[f"optimizer.{axis}.{name}"] for axis in ("out", "in", "filter")]
            return 0.2 * torch.einsum("ao,bi,cf,oif->abc", *own, grad.flatten(2)).reshape(form)
        if grad.dim() == 2:
            own = [leaves[f"optimizer.{axis}.{name}"] for axis in ("out", "in")]
            return 0.2 * torch.einsum("ao,bi,oi->ab", *own, grad)
        return 0.2 * leaves[f"optimizer.out.{name}"] @ grad

    state = _start(leaves)
    for _ in range(2):
        state = _descended(state, [*state], move)
    return _query_loss(state)


def _cavia(leaves: dict[str, Tensor]) -> Tensor:
    start = _start(leaves)
    scale, shift = start["features.1.context_to_scale"], start["features.1.context_to_shift"]

    def loss_of(context: Tensor, x: Tensor, y: Tensor) -> Tensor:
        def modulate(h: Tensor) -> Tensor:
            return h * (1 + scale @ context)[:, None, None] + (shift @ context)[:, None, None]

        return F.cross_entropy(_outputs(start, x, modulate), y)

    context = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        (grad,) = torch.autograd.grad(loss_of(context, *EPISODE.support), context, create_graph=True)
        context = context - 0.2 * grad
    return loss_of(context, *EPISODE.query)


def _proto_maml(leaves: dict[str, Tensor]) -> Tensor:
    state = _start(leaves)
    x, y = EPISODE.support
    features = _outputs(state, x)
    means = torch.stack([features[y == label].mean(0) for label in range(3)])
    state = {**state, "head.weight": 2 * means, "head.bias": -means.pow(2).sum(1)}
    for _ in range(2):
        state = _descended(state, [*state], lambda name, grad: 0.2 * grad)
    return _query_loss(state)


def _maml_plus_plus(leaves: dict[str, Tensor]) -> Tensor:
    norms = ("features.1.weight", "features.1.bias")
    start, total = _start(leaves), torch.zeros((), dtype=torch.float64)
    state, adapted = dict(start), [name for name in start if name not in norms]
    for step, weight in enumerate((0.5, 0.5)):  # at meta step 0: 1 / K
        state |= {name: start[name][step] for name in norms}
        state = _descended(state, adapted, lambda name, grad, at=step: leaves[f"optimizer.lr.{name}"][at] * grad)
        state |= {name: start[name][step + 1] for name in norms}
        total = total + weight * _query_loss(state)
    return total


BY_HAND: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "ANIL": _partly(lambda name: name.startswith("head.")),
    "BOIL": _partly(lambda name: not name.startswith("head.")),
    "Meta-SGD": _meta_sgd,
    "Meta-Curvature": _meta_curvature,
    "CAVIA": _cavia,
    "ProtoMAML": _proto_maml,
    "MAML++": _maml_plus_plus,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_equals_its_equations_written_out(name: str) -> None:
    algorithm = FAMILY[name]
    meta = moved(algorithm.init(model()))
    got = Unrolled().value_and_grad(algorithm.problem(model()))(meta, EPISODE)
    leaves = {entry: value.clone().requires_grad_() for entry, value in meta.items()}
    value = BY_HAND[name](leaves)
    expected = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    assert_close(got.value, value, tolerance=1e-12)
    assert_close(got.grads, expected, tolerance=1e-11)


def test_imaml_is_the_papers_formula_at_the_minimum() -> None:
    imaml = algorithms.IMAML(**{**COMMON, "num_inner_steps": 400}, proximal=2.0, adapted="head.*")
    meta = imaml.init(model())
    got = Implicit(solver="direct").value_and_grad(imaml.problem(model()))(meta, EPISODE).grads
    start = {name: value.requires_grad_() for name, value in copy.deepcopy(_start(meta)).items()}
    names = ["head.weight", "head.bias"]
    adapted = dict(
        zip(names, imaml.adapt(model(), meta, model().buffers, EPISODE.support).params.values(), strict=True)
    )
    flat = torch.cat([adapted[name].detach().flatten() for name in names])

    def support_loss(vector: Tensor) -> Tensor:
        state = {**start, "head.weight": vector[:36].reshape(3, 12), "head.bias": vector[36:]}
        return F.cross_entropy(_outputs(state, EPISODE.support[0]), EPISODE.support[1])

    def query_loss(vector: Tensor) -> Tensor:
        return _query_loss({**start, "head.weight": vector[:36].reshape(3, 12), "head.bias": vector[36:]})

    hessian = torch.autograd.functional.hessian(support_loss, flat)
    right = torch.func.grad(query_loss)(flat)
    expected = torch.linalg.solve(torch.eye(39, dtype=torch.float64) + hessian / 2.0, right).detach()
    found = torch.cat([got["init.head.weight"].flatten(), got["init.head.bias"]])
    assert_close(found, expected, tolerance=1e-6)


def test_multi_step_weights_are_annealed_as_tensors_that_the_problem_holds() -> None:
    algorithm = replace(FAMILY["MAML++, multi-step loss"], num_inner_steps=4)
    assert algorithm.held(0)["outer_weights"].tolist() == [0.25] * 4
    torch.testing.assert_close(algorithm.held(5)["outer_weights"], torch.tensor([0.125] * 3 + [0.625]).double())
    last = algorithm.held(9)["outer_weights"]
    torch.testing.assert_close(last, torch.tensor([0.025] * 3 + [0.925]).double())
    assert replace(algorithm, multi_step_until=1000).held(999)["outer_weights"][0].item() == pytest.approx(0.03 / 4)
    assert algorithm.at(9) is algorithm
    assert algorithm.at(10).problem(model()).outer_weights is None
    assert algorithm.at(10).held(10) == {}

    meta = algorithm.init(model())
    problem = algorithm.problem(model())
    for step in (3, 7):
        held = {**model().buffers, **algorithm.held(step)}
        assert problem.holding is not None
        eager = Loop().value_and_grad(Unrolled(), problem)(meta, EPISODES, held=held).grads
        own = replace(problem, outer_weights=algorithm.held(step)["outer_weights"].tolist(), holding=None)
        assert_close(eager, Loop().value_and_grad(Unrolled(), own)(meta, EPISODES).grads, tolerance=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "strategy", "told"),
    [
        (algorithms.MetaSGD(**COMMON, proximal=1.0), Implicit(), "Implicit can not learn the inner optimizer"),
        (algorithms.MetaCurvature(**COMMON), metagrad.Reptile(), "Reptile can not learn the inner optimizer"),
        (algorithms.Reptile(**COMMON), Unrolled(), "has no gradient, but metagrad is Unrolled"),
        (algorithms.CAVIA(**COMMON), metagrad.Reptile(), "CAVIA learns more than that"),
        (algorithms.ANIL(**COMMON), metagrad.Reptile(), "the rest would stay as it is"),
        (algorithms.ProtoMAML(**COMMON), Implicit(), "starts at another point in every task"),
        (algorithms.MAMLPlusPlus(**COMMON, multi_step_until=5), Implicit(), "algorithm.multi_step_until=0"),
        (algorithms.MAMLPlusPlus(**COMMON, multi_step_until=5), metagrad.Truncated(1, windows=True), "one state"),
        (algorithms.MAMLPlusPlus(**COMMON), metagrad.Truncated(1), "the first 1 steps: they would stay"),
        (algorithms.MAMLPlusPlus(**COMMON, learned_rates=False), metagrad.Reptile(), "norms of every step are not"),
    ],
)
def test_combinations_without_sense_are_refused_with_the_reason(algorithm, strategy, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        algorithm.check_strategy(strategy)


def _value(algorithm: MAML) -> Tensor:
    return Unrolled().value_and_grad(algorithm.problem(model()))(algorithm.init(model()), EPISODE).value


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: algorithms.IMAML(**COMMON, proximal=0.0), "the implicit gradient is 0"),
        (lambda: algorithms.ProtoMAML(**COMMON, proximal=1.0), "no one start to hold on to"),
        (lambda: _value(algorithms.ProtoMAML(**COMMON, head="fc")), "none called 'fc'"),
        (lambda: _value(algorithms.ProtoMAML(**COMMON, adapted="features.*")), "leaves 'head' out"),
        (lambda: _value(algorithms.ProtoMAML(**COMMON, head="fc")), "Its linear layers: 'head'"),
        (lambda: algorithms.MAMLPlusPlus(**COMMON).init(functionalize(torch.nn.Linear(2, 3))), "no norm whose weights"),
        (lambda: algorithms.CAVIA(**COMMON, num_context=0), "at least 1"),
        (lambda: algorithms.CAVIA(**COMMON, layer="features.2").init(model()), "is a Tanh"),
        (lambda: algorithms.CAVIA(**COMMON, layer="features.0").init(model()), r"layer='features\.1'"),
        (lambda: algorithms.CAVIA(**COMMON, layer="features.9").init(model()), "no submodule 'features.9'"),
        (lambda: algorithms.Reptile(**COMMON, trains_on="queries"), "Reptile.trains_on=.queries"),
        (lambda: algorithms.Reptile(**COMMON, batch_size=0), "at least 1"),
        (lambda: algorithms.MAMLPlusPlus(**COMMON, multi_step_until=-1), "at least 0"),
        (lambda: algorithms.MetaSGD(**{**COMMON, "inner_lr": torch.ones(1)}).init(model()), "start at a number"),
    ],
)
def test_mistakes_are_told(make: Callable[[], object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_what_has_a_value_for_every_step_serves_any_number_of_steps(num_steps: int) -> None:
    algorithm = algorithms.MAMLPlusPlus(**COMMON)
    meta = moved(algorithm.init(model()))
    longer = replace(algorithm, num_inner_steps=num_steps)
    adapted = longer.adapt(model(), meta, model().buffers, EPISODE.support)
    logits = longer.predict(model(), meta, adapted, EPISODE.query[0])
    # As a run is tested: the problem of training, after another number of steps.
    measured = Loop().evaluate(algorithm.problem(model()), meta, EPISODES, num_inner_steps=num_steps)
    assert_close(F.cross_entropy(logits, EPISODE.query[1]), measured["loss"][0, num_steps], tolerance=1e-12)


def _reptile_problem(**options: Any) -> Problem:
    return algorithms.Reptile(**{**COMMON, "num_inner_steps": 3}, **options).problem(model())


def test_reptile_moves_the_start_to_where_training_on_the_whole_episode_ends() -> None:
    reptile = algorithms.Reptile(**COMMON)
    meta = reptile.init(model())
    found = metagrad.Reptile().value_and_grad(reptile.problem(model()))(meta, EPISODE).grads
    both = [torch.cat(pair) for pair in zip(EPISODE.support, EPISODE.query, strict=True)]
    maml = algorithms.MAML(**COMMON)
    adapted = maml.adapt(model(), meta, model().buffers, tuple(both)).params
    assert_close(found, {f"init.{name}": model().params[name] - value for name, value in adapted.items()})
    at_test = reptile.test_problem(model())
    assert at_test.batch(EPISODE, 0)[0].shape == EPISODE.support[0].shape


def test_reptiles_minibatches_are_other_ones_at_every_step_and_in_every_task() -> None:
    problem = _reptile_problem(batch_size=5)
    drawn = torch.vmap(lambda episode: problem.batch(episode, 0)[0])(EPISODES)
    assert drawn.shape == (3, 5, 1, 9, 9)
    rows = [_rows_of(problem.batch(EPISODE, step)[0]) for step in range(3)]
    assert len({tuple(each) for each in rows}) == 3
    assert all(len(set(each)) == 5 for each in rows)  # without replacement
    torch.testing.assert_close(drawn[0], problem.batch(EPISODE, 0)[0])
    supports = _reptile_problem(batch_size=4, trains_on="support")
    assert set(_rows_of(supports.batch(EPISODE, 0)[0])) <= set(range(6))


def _rows_of(images: Tensor) -> list[int]:
    whole = torch.cat([EPISODE.support[0], EPISODE.query[0]])
    return [int((whole == image).flatten(1).all(1).nonzero()) for image in images]


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    **{norm: partial(Conv4, input_shape=(1, 16, 16), num_outputs=3, filters=8, norm=norm) for norm in NORMS},
    "residual": partial(ResNet12, input_shape=(1, 16, 16), num_outputs=3, filters=[4, 6, 8, 10]),
    "torchvision": partial(TorchvisionModel, norm="batch", input_shape=(1, 16, 16), num_outputs=3),
    "MLP": lambda: MLP(input_shape=(1, 16, 16), num_outputs=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_context_has_a_say(name: str) -> None:
    """Before a norm it would have none: its gradient would be that of the norm's `eps`, below 1e-4."""
    torch.manual_seed(0)
    net = functionalize(NETWORKS[name]().double())
    cavia = algorithms.CAVIA(loss=losses.cross_entropy, inner_lr=1.0)
    images = torch.rand(9, 1, 16, 16, dtype=torch.float64)
    adapted = cavia.adapt(net, cavia.init(net), net.buffers, (images, torch.arange(9) % 3))
    ((entry, context),) = adapted.params.items()
    assert entry.endswith(".context")
    assert context.norm() > 1e-3


@pytest.mark.parametrize("name", ["ProtoMAML", "CAVIA", "MAML++", "Reptile"])
def test_padded_episodes_equal_those_alone(name: str) -> None:
    algorithm = FAMILY.get(name) or algorithms.Reptile(**COMMON)
    strategy = metagrad.Reptile() if name == "Reptile" else Unrolled()
    parts, meta = problems.of_several_sizes(), moved(algorithm.init(model()))
    got = Vmap().value_and_grad(strategy, algorithm.problem(model()))(meta, problems.padded(parts))
    alone = []
    for part in parts:
        ways = problems.num_ways(part, 3)

        def loss(outputs: Tensor, targets: Tensor, ways: int = ways) -> Any:
            return losses.cross_entropy(outputs[:, :ways], targets)

        alone.append(strategy.value_and_grad(replace(algorithm, loss=loss).problem(model()))(meta, part))
    assert_close(got.value, sum(each.value for each in alone) / len(parts), tolerance=1e-12)
    mean = {entry: sum(each.grads[entry] for each in alone) / len(parts) for entry in meta}
    assert_close(got.grads, mean, tolerance=1e-10)
    torch.testing.assert_close(got.grads, mean, rtol=1e-8, atol=1e-12)


def test_reptiles_minibatches_are_of_real_rows() -> None:
    batch = problems.padded(problems.of_several_sizes())
    problem = _reptile_problem(batch_size=2, trains_on="support")
    for index in range(4):
        for step in range(3):
            assert problem.batch(tree.entry(batch, index), step)[2].examples.all()
