"""Draws inside a forward: right in distribution, the same in a loop and under vmap, never from hidden state."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.distributions as dist
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import UsageError, functionalize, random
from tests.functional.interception.cases import Of


def call(function: Callable[..., Tensor], x: Tensor, key: Tensor | None = None) -> Tensor:
    output, _ = functionalize(Of(function))({}, {"rng": random.key(3) if key is None else key}, x)
    return output


X = torch.tensor([0.3, -0.7, 1.2])
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: torch.rand(2, 3),
    "rand, a size": lambda x: torch.rand(size=(4,)),
    "randn, out": lambda x: torch.randn(3, out=torch.empty(3)),
    "randint": lambda x: torch.randint(1000, (3,)),
    "randint, both ends": lambda x: torch.randint(low=-500, high=500, size=(3,), dtype=torch.float32),
    "randint_like": lambda x: torch.randint_like(x, 5, 900),
    "randperm": lambda x: torch.randperm(20),
    "normal, tensors": lambda x: torch.normal(x, x.abs()),
    "normal, a mean": lambda x: torch.normal(x),
    "normal, numbers": lambda x: torch.normal(1.0, 2.0, (3,)),
    "normal, a deviation": lambda x: torch.normal(1.0, std=x.abs()),
    "multinomial": lambda x: torch.multinomial(x.abs().repeat(10), 9),
    "multinomial with replacement": lambda x: x.abs().multinomial(12, replacement=True),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid().repeat(20)),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "normal_ into what forward makes": lambda x: torch.empty(3).normal_(),
    "uniform_": lambda x: x.new_zeros(3).uniform_(-1, 1),
    "uniform_, named": lambda x: torch.zeros(3).uniform_(to=5.0),
    "exponential_": lambda x: x.new(3).exponential_(2.0),
    "cauchy_": lambda x: torch.empty_like(x).cauchy_(),
    "log_normal_": lambda x: torch.empty_like(x).log_normal_(),
    "geometric_": lambda x: torch.empty(40).geometric_(0.1),
    "bernoulli_": lambda x: torch.zeros(60).bernoulli_(0.4),
    "random_": lambda x: torch.zeros(3, dtype=torch.int64).random_(),
    "random_, ends": lambda x: torch.zeros(9, dtype=torch.uint8).random_(3, 200),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, tau=0.5),
    "gumbel_softmax, hard": lambda x: F.gumbel_softmax(x.repeat(20, 1), hard=True),
    "rrelu": lambda x: F.rrelu(-x.abs(), training=True),
    "rrelu_": lambda x: F.rrelu_(-x.abs(), training=True),
    "dropout_": lambda x: torch.dropout_(x.repeat(20), 0.5, True),
    "feature_dropout": lambda x: torch.feature_dropout(x.repeat(20)[None, :, None], 0.5, True),
    "init.normal_": lambda x: nn.init.normal_(torch.empty(3, 4)),
    "init.uniform_": lambda x: nn.init.uniform_(torch.empty(3, 4)),
    "init.kaiming_uniform_": lambda x: nn.init.kaiming_uniform_(torch.empty(3, 4)),
    "init.kaiming_normal_": lambda x: nn.init.kaiming_normal_(torch.empty(3, 4)),
    "init.xavier_uniform_": lambda x: nn.init.xavier_uniform_(torch.empty(3, 4)),
    "init.orthogonal_": lambda x: nn.init.orthogonal_(torch.empty(3, 4)),
    "Normal": lambda x: dist.Normal(x, 1.0).rsample((2,)),
    "Categorical": lambda x: dist.Categorical(logits=x).sample((30,)),
    "Bernoulli": lambda x: dist.Bernoulli(logits=x).sample((30,)),
    "Uniform": lambda x: dist.Uniform(x, x + 1).rsample(),
    "Exponential": lambda x: dist.Exponential(x.abs()).rsample(),
    "Laplace": lambda x: dist.Laplace(x, 1.0).rsample(),
    "Gumbel": lambda x: dist.Gumbel(x, 1.0).rsample(),
    "RelaxedOneHotCategorical": lambda x: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=x).rsample(),
    "MultivariateNormal": lambda x: dist.MultivariateNormal(x, torch.eye(3), validate_args=False).rsample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_loop_and_vmap_draw_the_same_bits_from_the_key_alone(name: str) -> None:
    model, keys = functionalize(Of(DRAWS[name])), random.key(torch.arange(4))
    rows = X * torch.arange(1, 5)[:, None]
    state = torch.get_rng_state()
    for xs, dims in ((rows, (0, 0)), (X.expand(4, 3), (0, None))):
        looped = [model({}, {"rng": key}, x)[0] for key, x in zip(keys, xs, strict=True)]
        mapped = torch.vmap(lambda key, x: model({}, {"rng": key}, x)[0], dims)(keys, xs if dims[1] == 0 else X)
        assert torch.equal(mapped, torch.stack(looped))
        assert len({str(each) for each in looped}) > 1  # tasks have their own draws
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", DRAWS)
def test_shapes_and_types_are_torchs(name: str) -> None:
    got, expected = call(DRAWS[name], X), DRAWS[name](X)
    assert (got.shape, got.dtype, got.device) == (expected.shape, expected.dtype, expected.device)


COUNT = 40_000
MOMENTS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "randint": (lambda x: torch.randint(-3, 8, (COUNT,)), 2.0, math.sqrt((11**2 - 1) / 12)),
    "a wide randint": (lambda x: torch.randint(0, 1 << 40, (COUNT,)) / 2.0**40, 0.5, 12**-0.5),
    "normal": (lambda x: torch.normal(2.0, 3.0, (COUNT,)), 2.0, 3.0),
    "uniform_": (lambda x: torch.empty(COUNT).uniform_(-1, 3), 1.0, 4 / math.sqrt(12)),
    "normal_": (lambda x: torch.empty(COUNT).normal_(1, 2), 1.0, 2.0),
    "normal_ in bfloat16": (lambda x: torch.empty(COUNT, dtype=torch.bfloat16).normal_(1, 2), 1.0, 2.0),
    "exponential_": (lambda x: torch.empty(COUNT).exponential_(0.5), 2.0, 2.0),
    "log_normal_": (
        lambda x: torch.empty(COUNT).log_normal_(0.1, 0.5),
        math.exp(0.225),
        math.exp(0.225) * math.sqrt(math.exp(0.25) - 1),
    ),
    "geometric_": (lambda x: torch.empty(COUNT).geometric_(0.3), 1 / 0.3, math.sqrt(0.7) / 0.3),
    "bernoulli_": (lambda x: torch.empty(COUNT).bernoulli_(0.3), 0.3, math.sqrt(0.21)),
    "cauchy_, folded": (lambda x: torch.empty(COUNT).cauchy_(0, 2).atan2(torch.tensor(2.0)), 0.0, math.pi / 12**0.5),
    "random_": (lambda x: torch.empty(COUNT).random_(10), 4.5, math.sqrt(99 / 12)),
    "random_ of all": (lambda x: torch.zeros(COUNT, dtype=torch.int64).random_() / 2.0**63, 0.5, 12**-0.5),
    "rrelu": (lambda x: F.rrelu(-torch.ones(COUNT), 0.2, 0.6, training=True), -0.4, 0.4 / 12**0.5),
    "gumbel_softmax": (
        lambda x: F.gumbel_softmax(torch.tensor([0.0, math.log(3.0)]).expand(COUNT, 2), hard=True)[:, 1],
        0.75,
        math.sqrt(3 / 16),
    ),
    "kaiming_uniform_": (lambda x: nn.init.kaiming_uniform_(torch.empty(200, 200)).flatten(), 0.0, math.sqrt(2 / 200)),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments(name: str) -> None:
    function, mean, deviation = MOMENTS[name]
    drawn = call(function, X).double()
    assert abs(drawn.mean().item() - mean) < 4 * deviation / math.sqrt(COUNT)
    assert abs(drawn.std().item() / deviation - 1) < 0.03


def test_multinomial_draws_by_weight() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    drawn = call(lambda x: torch.multinomial(weights.expand(COUNT, 4), 2), X)
    firsts = torch.bincount(drawn[:, 0], minlength=4) / COUNT
    torch.testing.assert_close(firsts, weights / 8, rtol=0, atol=0.01)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    # Of the pairs that begin with the last one, the second is drawn by the weights that remain.
    seconds = torch.bincount(drawn[drawn[:, 0] == 3, 1], minlength=4)
    torch.testing.assert_close(seconds / seconds.sum(), torch.tensor([1 / 3, 0, 2 / 3, 0]), rtol=0, atol=0.015)
    replaced = call(lambda x: torch.multinomial(weights, COUNT, replacement=True), X)
    torch.testing.assert_close(torch.bincount(replaced, minlength=4) / COUNT, weights / 8, rtol=0, atol=0.01)


def test_multinomial_of_too_few_categories() -> None:
    with pytest.raises(UsageError, match="4 of 3 categories"):
        call(lambda x: torch.multinomial(x.abs(), 4), X)
    with pytest.raises(UsageError, match="positive probability"):
        call(lambda x: torch.multinomial(x.relu(), 3), X)
    drawn = torch.vmap(lambda x: call(lambda x: torch.multinomial(x.relu(), 3), x))(X[None])
    assert (drawn == -1).sum() == 1  # two are possible


def test_permutations_are_fair() -> None:
    model = functionalize(Of(lambda x: torch.randperm(4)))
    drawn = torch.vmap(lambda key: model({}, {"rng": key}, X)[0])(random.key(torch.arange(4800)))
    assert (drawn.sort(-1).values == torch.arange(4)).all()
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert (counts - 200).abs().max() < 5 * math.sqrt(200)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_types_never_reach_the_end_of_the_range(dtype: torch.dtype) -> None:
    drawn = call(lambda x: torch.rand(200_000, dtype=dtype), X)
    assert drawn.max() < 1
    assert abs(drawn.double().mean().item() - 0.5) < 0.005
    assert call(lambda x: torch.randn(200_000, dtype=dtype), X).isfinite().all()


def test_complex_draws_have_variance_one() -> None:
    drawn = call(lambda x: torch.randn(COUNT, dtype=torch.complex64), X)
    assert abs(drawn.abs().square().mean().item() - 1) < 0.03
    assert abs(drawn.real.var().item() - 0.5) < 0.02


def test_a_draw_gives_no_gradient_and_a_reparametrised_one_does() -> None:
    def location(function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.func.grad(lambda x: call(function, x).sum())(X)

    assert torch.equal(location(lambda x: torch.normal(x, 1.0)), torch.zeros(3))
    assert torch.equal(location(lambda x: (2 * x).normal_()), torch.zeros(3))
    assert torch.equal(location(lambda x: dist.Normal(x, 1.0).rsample()), torch.ones(3))


def test_in_place_dropout_writes() -> None:
    def both(x: Tensor) -> Tensor:
        h = 2 * x
        return torch.stack([F.dropout(h, 0.5, inplace=True), h])

    model = functionalize(Of(both))
    output, _ = model({}, model.buffers, torch.ones(50))
    assert torch.equal(output[0], output[1])
    # Tasks that share what is dropped can not be written into it: who reads it again must notice.
    mapped = torch.vmap(lambda key: model({}, {"rng": key}, torch.ones(50))[0])(random.key(torch.arange(3)))
    looped = torch.stack([model({}, {"rng": key}, torch.ones(50))[0] for key in random.key(torch.arange(3))])
    assert torch.equal(mapped[:, 0], looped[:, 0])
    assert mapped[:, 1].isnan().all()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.poisson(x.abs()), "torch.poisson.*rand_like"),
        (lambda x: dist.Gamma(x.abs(), 1.0).rsample(), "Gamma.*rand_like"),
        (lambda x: dist.Beta(x.abs(), 1.0).rsample(), "Beta.*rand_like"),
        (lambda x: torch.rand(3, generator=torch.Generator()), "torch.rand a torch.Generator.*Leave"),
        (lambda x: torch.empty(3).normal_(generator=torch.Generator()), "normal_ a torch.Generator.*Leave"),
        (lambda x: torch.randint(3, 3, (2,)), "low=3 and high=3"),
    ],
)
def test_refusals(function: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(function, X)


def test_a_shared_tensor_can_not_be_filled_with_tasks_own_draws() -> None:
    shared = torch.zeros(3)
    model = functionalize(Of(lambda x: shared.normal_()))
    with pytest.raises(UsageError, match=r"empty_like\(x\)\.normal_"):
        torch.vmap(lambda key: model({}, {"rng": key}, X)[0])(random.key(torch.arange(3)))
