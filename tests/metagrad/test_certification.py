"""The certification tables: every gradient against finite differences, and every way of running against the loop."""

from dataclasses import replace

import pytest
import torch

from metalearn import UsageError, adapt, optim
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems

STRATEGIES = {"unrolled": Unrolled(), "first order": FirstOrder()}
WAYS = {"vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2), "chunks of 1": Vmap(chunk_size=1)}


@pytest.mark.parametrize("layer", problems.LAYERS)
def test_every_layer(layer: str) -> None:
    problem, meta = problems.problem_of(problems.model_of(layer), "sgd")
    report = check_meta_gradient(problem, meta, problems.one(problems.images()))
    assert report.error <= 1e-6
    assert report.gradient_norm > 1e-2


@pytest.mark.parametrize("num_inner_steps", [0, 1, 5])
@pytest.mark.parametrize("optimizer", problems.OPTIMIZERS)
def test_every_optimizer_and_hyper_parameter(optimizer: str, num_inner_steps: int) -> None:
    problem, meta = problems.problem_of(problems.model_of("plain, tanh"), optimizer, num_inner_steps=num_inner_steps)
    check_meta_gradient(problem, meta, problems.one(problems.images()))


@pytest.mark.parametrize(
    ("optimizer", "learned"),
    [
        ("sgd", ["lr"]),
        ("sgd, momentum learned", ["lr", "momentum"]),
        ("sgd, nesterov and decay", ["lr", "decay"]),
        ("sgd, a rate a parameter", ["lr.0.weight", "lr.3.bias"]),
        ("sgd, a rate a step", ["rates"]),
        ("adam", ["lr"]),
        ("adam, everything learned", ["lr", "b1", "b2", "eps", "decay"]),
    ],
)
def test_every_hyper_parameter_alone(optimizer: str, learned: list[str]) -> None:
    # Alone, so that a wrong derivative can not hide behind the larger gradient of the parameters.
    problem, meta = problems.problem_of(problems.model_of("plain, tanh"), optimizer, num_inner_steps=3)
    episode = problems.one(problems.images())
    for name in learned:
        others = {key: value for key, value in meta.items() if key != name}
        report = check_meta_gradient(problems.given(problem, others), {name: meta[name]}, episode, num_directions=2)
        assert report.gradient_norm > 1e-6, name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layer", problems.LAYERS)
def test_every_way_of_running_tasks_equals_the_loop(layer: str, strategy: str, way: str) -> None:
    problem, meta = problems.problem_of(problems.model_of(layer), "sgd, momentum learned")
    expected = Loop().value_and_grad(STRATEGIES[strategy], problem)(meta, problems.images())
    got = WAYS[way].value_and_grad(STRATEGIES[strategy], problem)(meta, problems.images())
    assert_close(got.grads, expected.grads, tolerance=1e-10)
    assert_close((got.value, got.aux), (expected.value, expected.aux), tolerance=1e-10)
    for name, grad in expected.grads.items():
        torch.testing.assert_close(got.grads[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", problems.OPTIMIZERS)
def test_every_optimizer_under_vmap_equals_the_loop(optimizer: str) -> None:
    problem, meta = problems.problem_of(problems.model_of("plain, tanh"), optimizer, num_inner_steps=3)
    expected, got = (way.value_and_grad(Unrolled(), problem)(meta, problems.images()) for way in (Loop(), Vmap()))
    assert_close(got.grads, expected.grads, tolerance=1e-10)


def test_a_weighted_loss_after_every_step() -> None:
    problem, meta = problems.problem_of(problems.model_of("batch norm, running statistics"), "sgd", num_inner_steps=3)
    weighted = replace(problem, outer_weights=[0.2, 0.3, 0.5])
    episode = problems.one(problems.images())
    check_meta_gradient(weighted, meta, episode)
    parts = [
        Unrolled().value_and_grad(replace(problem, num_inner_steps=steps))(meta, episode).grads for steps in (1, 2, 3)
    ]
    expected = {
        name: sum(w * part[name] for w, part in zip((0.2, 0.3, 0.5), parts, strict=True))
        for name in meta
        if name != "rates"
    }
    got = Unrolled().value_and_grad(weighted)(meta, episode).grads
    assert_close({name: got[name] for name in expected}, expected, tolerance=1e-13)


def test_first_order_is_not_exact_and_drops_just_the_hessian() -> None:
    problem, meta = problems.ridge_problem(num_inner_steps=1)
    episode = problems.one(problems.values())
    with pytest.raises(AssertionError, match="FirstOrder is wrong"):
        check_meta_gradient(problem, meta, episode, strategy=FirstOrder())
    (x, y), (xq, yq) = episode.support, episode.query
    inner_gradient = x.T @ (x @ meta["init"] - y) + meta["penalty"] * meta["init"]
    adapted = meta["init"] - meta["lr"] * inner_gradient
    at_adapted = xq.T @ (xq @ adapted - yq)
    grads = FirstOrder().value_and_grad(problem)(meta, episode).grads
    assert_close(grads["init"], at_adapted, tolerance=1e-14)
    assert_close(grads["lr"], -(inner_gradient * at_adapted).sum(), tolerance=1e-14)
    assert torch.equal(grads["penalty"], torch.zeros((), dtype=torch.float64))


def test_a_long_unroll_reaches_the_closed_form_of_ridge_regression() -> None:
    problem, meta = problems.ridge_problem(num_inner_steps=600)
    episode = problems.one(problems.values())
    (x, y), (xq, yq) = episode.support, episode.query

    def closed_form(penalty: torch.Tensor) -> torch.Tensor:
        w = torch.linalg.solve(x.T @ x + penalty * torch.eye(3, dtype=torch.float64), x.T @ y)
        return 0.5 * (xq @ w - yq).square().sum()

    grads = Unrolled().value_and_grad(problem)(meta, episode).grads
    assert_close(grads["penalty"], torch.func.grad(closed_form)(meta["penalty"]), tolerance=1e-8)
    assert grads["init"].abs().max() < 1e-8


def test_one_step_of_maml_by_hand() -> None:
    # d/dw of 0.5 |Xq (w - lr (X'(Xw - y) + p w)) - yq|^2 is (I - lr (X'X + p I)) Xq'(Xq w' - yq).
    problem, meta = problems.ridge_problem(num_inner_steps=1)
    episode = problems.one(problems.values())
    (x, y), (xq, yq) = episode.support, episode.query
    hessian = x.T @ x + meta["penalty"] * torch.eye(3, dtype=torch.float64)
    adapted = meta["init"] - meta["lr"] * (hessian @ meta["init"] - x.T @ y)
    expected = (torch.eye(3, dtype=torch.float64) - meta["lr"] * hessian) @ xq.T @ (xq @ adapted - yq)
    assert_close(Unrolled().value_and_grad(problem)(meta, episode).grads["init"], expected, tolerance=1e-14)


def test_with_respect_to_data_and_optimizer_state() -> None:
    # `adapt` is differentiable in everything that goes in: here in the support set and in the momentum it starts with.
    model = problems.model_of("plain, tanh")
    x, y = problems.one(problems.images()).support
    optimizer = optim.sgd(0.3, momentum=0.8)

    def objective(x: torch.Tensor, trace: dict[str, torch.Tensor]) -> torch.Tensor:

        def loss_fn(params, buffers, batch):
            return torch.nn.functional.cross_entropy(model(params, buffers, batch)[0], y)

        state = optimizer.init(model.params)._replace(trace=trace)
        adapted = adapt(
            loss_fn, model.params, model.buffers, x, optimizer=optimizer, num_inner_steps=2, opt_state=state
        )
        return loss_fn(adapted.params, adapted.buffers, x)

    trace = {name: torch.zeros_like(value) for name, value in model.params.items()}
    assert torch.autograd.gradcheck(
        lambda x, *leaves: objective(x, dict(zip(trace, leaves, strict=True))),
        (x.requires_grad_(), *(value.requires_grad_() for value in trace.values())),
    )


@pytest.mark.parametrize("way", [Loop(), Vmap()])
def test_a_captured_tensor_that_requires_grad_is_refused(way) -> None:
    problem, meta = problems.problem_of(problems.model_of("plain, tanh"), "sgd")
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def outer_loss(*args):
        loss, aux = problem.outer_loss(*args)
        return loss * weight, aux

    captured = replace(problem, outer_loss=outer_loss)
    for call in (
        lambda: Unrolled().value_and_grad(captured)(meta, problems.one(problems.images())),
        lambda: way.value_and_grad(Unrolled(), captured)(meta, problems.images()),
    ):
        with pytest.raises(UsageError, match="not passed to it"):
            call()


@pytest.mark.parametrize("way", [Loop(), Vmap()])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tensor_captured_by_the_inner_loss_is_refused(strategy: str, way) -> None:
    problem, meta = problems.problem_of(problems.model_of("plain, tanh"), "sgd")
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def inner_loss(*args):
        loss, aux = problem.inner_loss(*args)
        return loss * weight, aux

    with pytest.raises(UsageError, match="not passed to it"):
        way.value_and_grad(STRATEGIES[strategy], replace(problem, inner_loss=inner_loss))(meta, problems.images())


@pytest.mark.parametrize("way", [Loop(), Vmap()])
def test_differentiating_through_the_runner_is_refused(way) -> None:
    problem, meta = problems.problem_of(problems.model_of("plain, tanh"), "sgd")
    run = way.value_and_grad(Unrolled(), problem)
    scaled = {name: value.clone().requires_grad_() * 1.0 for name, value in meta.items()}
    with pytest.raises(UsageError, match=r"metalearn\.adapt"):
        run(scaled, problems.images())
    with pytest.raises(UsageError, match=r"metalearn\.adapt"):
        torch.func.grad(lambda meta: run(meta, problems.images()).value)(meta)
    leaves = {name: value.clone().requires_grad_() for name, value in meta.items()}
    assert not run(leaves, problems.images()).value.requires_grad
