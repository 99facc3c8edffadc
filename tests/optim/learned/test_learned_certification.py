"""Every learned optimizer: gradients against finite differences and each other, safe at zero, mistakes told."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from metalearn import UsageError, algorithms, functionalize, losses, optim, random, tree
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import ForwardMode, Stepwise, Truncated, Unrolled
from metalearn.optim.learned import (
    LSLR,
    CoordinateLSTM,
    CoordinateMLP,
    Kronecker,
    LearnedOptimizer,
    LearnedRates,
    MetaCurvature,
    MetaSGD,
)
from metalearn.testing import assert_close, check_agreement, check_meta_gradient, check_transformation
from tests import problems

D = torch.float64
ADAM = partial(optim.adam, eps=1e-3)

LEARNED: dict[str, LearnedOptimizer] = {
    "Meta-SGD": MetaSGD(0.2),
    "Meta-SGD, a rate a step": MetaSGD(0.2, num_steps=3),
    "LSLR": LSLR(0.2, 3),
    "LSLR, modules": LSLR(0.2, 3, per="module"),
    "one rate of Adam": LearnedRates(0.03, "all", base=ADAM),
    "rates of momentum": LearnedRates(0.05, "parameter", base=partial(optim.sgd, momentum=0.8)),
    "meta-curvature": MetaCurvature(lr=0.2),
    "meta-curvature, Meta-SGD": MetaCurvature(MetaSGD(0.2)),
    "Kronecker": Kronecker(lr=0.2),
    "Kronecker, LSLR of Adam": Kronecker(LSLR(0.03, 3, base=ADAM)),
    "LSTM": CoordinateLSTM(3, preprocessing=2.0, output_scale=0.2),
    "MLP": CoordinateMLP(0.03, 4, square_decay=0.9, eps=1e-3),
}


def model():
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 2, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)
    return functionalize(nn.Sequential(*layers).double())


def problem_of(name: str, num_inner_steps: int):
    """MAML's problem with the optimizer, and a meta that is not just where it starts."""
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_optimizer=LEARNED[name], num_inner_steps=num_inner_steps)
    return maml.problem(model()), moved(maml.init(model()))


def moved(meta: dict[str, Tensor], size: float = 0.05) -> dict[str, Tensor]:
    return {
        name: value + size * random.normal(random.key(index), value.shape, dtype=D)
        for index, (name, value) in enumerate(meta.items())
    }


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_in_maml_is_that_of_finite_differences(name: str) -> None:
    problem, meta = problem_of(name, 5)
    episode, steps = problems.one(problems.images()), (1e-3, 1e-4, 3e-5, 1e-5, 3e-6)
    check_meta_gradient(problem, meta, episode, num_directions=2, step_sizes=steps)
    # The optimizer's alone, so that a wrong derivative can not hide behind the larger gradient of the start.
    own = {key: value for key, value in meta.items() if key.startswith("optimizer.")}
    start = {key: value for key, value in meta.items() if key not in own}
    report = check_meta_gradient(
        problems.given(problem, start), own, episode, num_directions=2, step_sizes=steps, seed=1
    )
    assert report.gradient_norm > 1e-3


@pytest.mark.parametrize("name", LEARNED)
def test_it_passes_the_tests_of_every_transformation(name: str) -> None:
    # A learned optimizer is what they ask for: a function from named tensors to a transformation. It is checked as a
    # part, because an LSTM's first step may go uphill.
    params = {"a.w": torch.tensor([[0.5, -0.3], [0.8, 0.1]], dtype=D), "a.b": torch.tensor([0.2, -0.4], dtype=D)}
    learned = LEARNED[name]
    report = check_transformation(learned, hypers=moved(learned.init(params)), params=params, is_whole=False)
    assert report.strategies_error < 1e-10


@pytest.mark.parametrize("name", LEARNED)
def test_the_strategies_and_vmap_agree(name: str) -> None:
    problem, meta = problem_of(name, 5)
    strategies = {"stepwise": Stepwise(), "forward": ForwardMode(), "truncated": Truncated(5)}
    check_agreement(problem, meta, problems.one(problems.images()), strategies)
    expected, got = (way.value_and_grad(Unrolled(), problem)(meta, problems.images()) for way in (Loop(), Vmap()))
    assert_close(got.grads, expected.grads, tolerance=1e-10)


@pytest.mark.parametrize("name", LEARNED)
def test_zero_gradients_have_finite_derivatives_twice(name: str) -> None:
    learned, params = LEARNED[name], {"body.weight": torch.ones(2, 3, dtype=D), "body.bias": torch.zeros(2, dtype=D)}
    meta = moved(learned.init(params))
    dead = {"body.weight": torch.tensor([[0.0, 1e-9, -3.0], [0.0, 0.0, 0.0]], dtype=D), "body.bias": torch.zeros(2)}

    def first(meta: dict[str, Tensor], grads: dict[str, Tensor]) -> Tensor:
        optimizer = learned(meta)
        now, state = params, optimizer.init(params)
        for step in range(3):
            now, _, state = optimizer.step({key: grads[key].to(D) * now[key].cos() for key in now}, state, now)
            assert tree.norm([now, state]).isfinite(), step
        return torch.stack([value.sin().sum() for value in now.values()]).sum()

    def second(*args) -> Tensor:
        return sum(part.square().sum() for part in tree.tensors(torch.func.grad(first, argnums=(0, 1))(*args)))

    for function in (first, second):
        gradients = torch.func.grad(function, argnums=(0, 1))(meta, dead)
        assert all(part.isfinite().all() for part in tree.tensors(gradients))
        assert tree.norm(gradients[0]) > 0


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("name", LEARNED)
def test_the_state_keeps_its_form_and_nothing_is_written_into(name: str, dtype: torch.dtype) -> None:
    params = {"conv.weight": torch.ones(2, 1, 3, 3, dtype=dtype), "scale": torch.ones((), dtype=dtype)}
    grads, learned = {key: 0.5 * value for key, value in params.items()}, LEARNED[name]
    meta = learned.init(params)
    assert {value.dtype for value in meta.values()} == {dtype}
    optimizer = learned(meta)
    state = optimizer.init(params)
    before = [value.clone() for value in tree.tensors([params, grads, meta, state])]
    updates, after = optimizer.update(grads, state, params)
    assert all(map(torch.equal, before, tree.tensors([params, grads, meta, state])))
    assert tree.flatten(state)[1] == tree.flatten(after)[1]
    for old, new in zip(tree.tensors(state), tree.tensors(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert {key: (value.shape, value.dtype) for key, value in updates.items()} == {
        key: (value.shape, dtype) for key, value in params.items()
    }


@pytest.mark.parametrize("name", LEARNED)
def test_meta_parameters_of_other_parameters_are_refused(name: str) -> None:
    learned, params = LEARNED[name], {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
    meta = learned.init(params)
    first = next(iter(meta))
    kind = type(learned).__name__
    with pytest.raises(UsageError, match=rf"{kind} has no meta-parameter '{first}'"):
        learned({key: value for key, value in meta.items() if key != first}).init(params)
    with pytest.raises(UsageError, match=rf"{kind}'s meta-parameter '{first}' has shape"):
        learned({**meta, first: torch.ones(7, 7)}).init(params)
    with pytest.raises(UsageError, match=rf"{kind} has a meta-parameter 'more' that no parameter uses"):
        learned({**meta, "more": torch.ones(1)}).init(params)


def test_an_optimizer_says_what_it_is() -> None:
    assert str(MetaSGD(0.1)) == "LearnedRates(lr=0.1, per='entry', num_steps=None, base=sgd)"
    told = str(Kronecker(LSLR(0.1, 5, base=partial(optim.sgd, momentum=0.9))))
    assert told == (
        "Kronecker(base=LearnedRates(lr=0.1, per='parameter', num_steps=5, base=sgd(momentum=0.9)), lr=None)"
    )
