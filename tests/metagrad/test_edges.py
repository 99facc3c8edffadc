"""Exact strategies where problems are odd: no steps, no parameters, other dtypes, state that comes and goes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metalearn import Aux, Problem, UsageError, metagrad, optim, tree
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import ForwardMode, Stepwise, Truncated, Unrolled
from metalearn.testing import assert_close
from tests import problems

D = torch.float64
C = torch.complex128
REVERSE = {
    "truncated, nothing cut": Truncated(9),
    "stepwise": Stepwise(),
    "stepwise, every 2": Stepwise(2),
    "stepwise, forward": Stepwise(mode="forward"),
}
EXACT = {**REVERSE, "forward mode": ForwardMode(chunk_size=2)}
START = torch.linspace(-1, 1, 3, dtype=D)[:, None]
META = {"w": START, "lr": torch.tensor(0.1, dtype=D)}


def _squares(weights: Tensor, examples: tuple[Tensor, Tensor]) -> Tensor:
    x, y = examples
    return 0.5 * (x.to(weights.dtype) @ weights - y).abs().square().mean()


def _plain(meta: Any, params: Any, buffers: Any, batch: Any, step: int) -> tuple[Tensor, Aux]:
    return _squares(params["w"], batch) + 0.1 * params["w"].pow(4).sum(), Aux(buffers, {})


def _at_query(meta: Any, params: Any, buffers: Any, episode: Any, step: int) -> tuple[Tensor, Aux]:
    return _squares(params["w"], episode.query), Aux(buffers, {"norm": params["w"].detach().norm()})


@dataclass(frozen=True)
class Odd:
    """A problem as it differs from a plain one, and its meta-parameters."""

    changes: dict[str, Any]
    meta: dict[str, Tensor] | None = None
    num_inner_steps: int = 3

    def problem(self) -> Problem:
        plain = Problem(
            init=lambda meta, episode: ({"w": meta["w"]}, {}),
            inner_loss=_plain,
            optimizer=lambda meta: optim.sgd(meta["lr"]),
            outer_loss=_at_query,
            num_inner_steps=self.num_inner_steps,
        )
        return replace(plain, **self.changes)


class Momentum(NamedTuple):
    """An optimizer's state with other things than tensors in it."""

    name: str
    nothing: None
    count: int
    trace: dict[str, Tensor]


def _momentum(meta: dict[str, Tensor]) -> optim.GradientTransformation:
    def update(updates, state, params):
        trace = {name: 0.5 * state.trace[name] + value for name, value in updates.items()}
        moves = {name: -meta["lr"] * value / (1 + state.count) for name, value in trace.items()}
        return moves, state._replace(count=state.count + 1, trace=trace)

    return optim.GradientTransformation(
        lambda params: Momentum("momentum", None, 0, tree.map_tensors(torch.zeros_like, params)), update
    )


def _with_buffers(change: Callable[..., dict[str, Tensor]], begin: Callable[..., dict[str, Tensor]]) -> dict[str, Any]:
    """Changes for a problem whose losses multiply the weights with the sum of the buffers."""

    def factor(buffers: dict[str, Tensor]) -> Tensor:
        return 1 + sum((value.abs().sum() for value in buffers.values()), torch.zeros((), dtype=D))

    def inner_loss(meta, params, buffers, batch, step):
        return _squares(params["w"] * factor(buffers), batch), Aux(change(meta, params, buffers, step), {})

    def outer_loss(meta, params, buffers, episode, step):
        return _squares(params["w"] * factor(buffers), episode.query), Aux(buffers, {})

    return {
        "init": lambda meta, episode: ({"w": meta["w"]}, begin(meta)),
        "inner_loss": inner_loss,
        "outer_loss": outer_loss,
    }


def _complex_loss(meta, params, buffers, batch, step):
    return _squares(params["w"], batch) + 0.05 * (params["w"] ** 3).real.sum(), Aux(buffers, {})


RATES = {"w": START, "rates": torch.tensor([0.1, 0.2, 0.3], dtype=D)}
ODD = {
    "no steps": Odd({}, num_inner_steps=0),
    "no steps, no weights": Odd({"outer_weights": ()}, num_inner_steps=0),
    "one step": Odd({}, num_inner_steps=1),
    "a meta-parameter that nobody uses": Odd({}, {**META, "unused": torch.ones(2, dtype=D)}),
    "no parameters": Odd(
        {
            "init": lambda meta, episode: ({}, {}),
            "inner_loss": lambda meta, params, buffers, batch, step: (meta["lr"] * batch[0].sum(), Aux(buffers, {})),
            "outer_loss": lambda meta, params, buffers, episode, step: (
                _squares(meta["w"], episode.query), Aux({}, {}),
            ),
        }
    ),
    "an optimizer that keeps other things than tensors": Odd({"optimizer": _momentum}),
    "a minibatch and a rate a step": Odd(
        {
            "batch": lambda episode, step: tuple(each[step : step + 2] for each in episode.support),
            "optimizer": lambda meta: optim.sgd(lambda count: meta["rates"][count]),
        },
        RATES,
    ),
    "a start that is made of the episode": Odd(
        {
            "init": lambda meta, episode: (
                {"w": meta["w"] * episode.support[1].mean() + episode.support[0].mean(0)[:, None]}, {},
            )
        }
    ),
    "a parameter that the inner loss ignores": Odd(
        {"init": lambda meta, episode: ({"w": meta["w"], "v": meta["w"]}, {})}
    ),
    "an inner loss without a second derivative": Odd(
        {"inner_loss": lambda meta, params, buffers, batch, step: (meta["lr"] * params["w"].sum(), Aux(buffers, {}))}
    ),
    "an inner loss that is constant": Odd(
        {"inner_loss": lambda meta, params, buffers, batch, step: (batch[0].sum(), Aux(buffers, {}))}
    ),
    "an outer loss of meta alone": Odd(
        {"outer_loss": lambda meta, params, buffers, episode, step: (meta["lr"] ** 2, Aux(buffers, {}))}
    ),
    "an outer loss that knows the step": Odd(
        {
            "outer_loss": lambda meta, params, buffers, episode, step: (
                meta["lr"] ** step * _squares(params["w"], episode.query), Aux(buffers, {}),
            ),
            "outer_weights": (0.5, 0.0, 2.0),
        }
    ),
    "a detached factor": Odd(
        {
            "inner_loss": lambda meta, params, buffers, batch, step: (
                _squares(params["w"] * (meta["lr"] * params["w"]).detach() + params["w"] * meta["lr"], batch),
                Aux(buffers, {}),
            )
        }
    ),
    "an optimizer that stops gradients": Odd(
        {"optimizer": lambda meta: optim.chain(optim.stop_gradient(), optim.sgd(meta["lr"]))}
    ),
    "buffers with a history, and integers": Odd(
        _with_buffers(
            lambda meta, params, buffers, step: {
                "sum": buffers["sum"] * 0.5 + params["w"].sum() * meta["lr"], "count": buffers["count"] + 1,
            },
            lambda meta: {"sum": meta["w"].sum(), "count": torch.zeros((), dtype=torch.int64)},
        )
    ),
    "a buffer that comes with the first step": Odd(
        _with_buffers(lambda meta, params, buffers, step: {"late": params["w"].sum() * meta["lr"]}, lambda meta: {})
    ),
    "buffers that change places, are cut, and go": Odd(
        _with_buffers(
            lambda meta, params, buffers, step: (
                {"b": buffers["b"] * 2, "a": buffers["a"].detach()} if step == 0 else {"b": buffers["b"] * 1.5}
            ),
            lambda meta: {"a": meta["w"] * 0.2, "b": meta["w"] * 0.3},
        )
    ),
    "a complex buffer with a history": Odd(
        _with_buffers(
            lambda meta, params, buffers, step: {"z": buffers["z"] * (0.5 + 0.3j) + 0.1j * params["w"] ** 2},
            lambda meta: {"z": torch.complex(meta["w"], meta["w"] ** 2)},
        )
    ),
    "complex parameters": Odd(
        {
            "init": lambda meta, episode: ({"w": torch.complex(meta["w"], meta["w"] ** 2)}, {}),
            "inner_loss": _complex_loss,
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("strategy", EXACT)
@pytest.mark.parametrize("name", ODD)
def test_exact_strategies_agree(name: str, strategy: str) -> None:
    problem, meta = ODD[name].problem(), ODD[name].meta or META
    expected = Unrolled().value_and_grad(problem)(meta, problems.one(problems.values()))
    assert tree.norm(expected.grads) > 1e-3
    got = EXACT[strategy].value_and_grad(problem)(meta, problems.one(problems.values()))
    assert_close(got.grads, expected.grads, tolerance=1e-12)
    torch.testing.assert_close((got.value, got.aux), (expected.value, expected.aux), rtol=1e-12, atol=1e-13)
    batched = Vmap().value_and_grad(EXACT[strategy], problem)(meta, problems.values())
    looped = Loop().value_and_grad(Unrolled(), problem)(meta, problems.values())
    assert_close(batched.grads, looped.grads, tolerance=1e-10)


@pytest.mark.parametrize("strategy", REVERSE)
def test_complex_meta_parameters(strategy: str) -> None:
    problem = Odd({"inner_loss": _complex_loss}).problem()
    meta = {"w": torch.complex(START, START.flip(0) + 0.3), "lr": META["lr"]}
    episode = problems.one(problems.values())
    got = REVERSE[strategy].value_and_grad(problem)(meta, episode).grads
    assert got["w"].dtype == C
    expected = Unrolled().value_and_grad(problem)(meta, episode).grads
    assert (got["w"] - expected["w"]).abs().max() < 1e-14
    assert expected["w"].imag.abs().max() > 1e-3


@pytest.mark.parametrize(
    "strategy", [ForwardMode(), metagrad.EvolutionStrategies(), metagrad.PersistentEvolutionStrategies(1)]
)
def test_directions_of_complex_meta_parameters_are_refused(strategy) -> None:
    meta = {"w": torch.complex(START, START), "lr": META["lr"]}
    with pytest.raises(UsageError, match=r"complex meta\['w'\].*view_as_real"):
        strategy.value_and_grad(Odd({}).problem())(meta, problems.one(problems.values()))


ALL = [
    *EXACT.values(), Unrolled(), metagrad.FirstOrder(), Truncated(1), Truncated(1, windows=True), metagrad.Reptile(),
    metagrad.Implicit(), metagrad.EvolutionStrategies(), metagrad.PersistentEvolutionStrategies(1),
]  # fmt: skip


@pytest.mark.parametrize("strategy", ALL, ids=str)
def test_meta_without_derivatives_is_refused(strategy) -> None:
    run, episode = strategy.value_and_grad(Odd({}).problem()), problems.one(problems.values())
    with pytest.raises(UsageError, match=r"meta\['count'\] is torch.int64, which has no derivatives"):
        run({**META, "count": torch.ones(2, dtype=torch.int64)}, episode)
    with pytest.raises(UsageError, match="meta is empty"):
        run({}, episode)


@pytest.mark.parametrize("strategy", EXACT)
def test_mixed_dtypes_keep_their_own(strategy: str) -> None:
    episode = problems.one(problems.values())
    for meta in ({"w": START, "lr": torch.tensor(0.1)}, {"lr": torch.tensor(0.1), "w": START}):
        got = EXACT[strategy].value_and_grad(Odd({}).problem())(meta, episode)
        expected = Unrolled().value_and_grad(Odd({}).problem())(meta, episode)
        assert {name: grad.dtype for name, grad in got.grads.items()} == {"w": D, "lr": torch.float32}
        assert_close(got.grads, expected.grads, tolerance=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", EXACT)
def test_lower_precision_agrees_to_it(strategy: str, dtype: torch.dtype) -> None:
    episode = problems.one(problems.values())
    got = EXACT[strategy].value_and_grad(Odd({}).problem())(tree.cast(META, dtype), tree.cast(episode, dtype))
    expected = Unrolled().value_and_grad(Odd({}).problem())(META, episode)
    assert all(grad.dtype == dtype for grad in got.grads.values())
    assert got.value.dtype == dtype
    assert_close(got.grads, expected.grads, tolerance=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("strategy", EXACT)
def test_a_callers_grad_mode_does_not_matter(strategy: str) -> None:
    problem, episode = Odd({}).problem(), problems.one(problems.values())
    expected = Unrolled().value_and_grad(problem)(META, episode)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            got = EXACT[strategy].value_and_grad(problem)(META, episode)
            assert_close(got.grads, expected.grads, tolerance=1e-14)


@pytest.mark.parametrize("strategy", EXACT)
def test_nothing_that_comes_back_has_a_history_and_nothing_given_is_changed(strategy: str) -> None:
    problem, episode = ODD["buffers with a history, and integers"].problem(), problems.one(problems.values())
    meta = {name: value.clone().requires_grad_() for name, value in META.items()}
    given = tree.map_tensors(Tensor.clone, (META, episode))
    outcome = EXACT[strategy].value_and_grad(problem)(meta, episode)
    assert not any(leaf.requires_grad for leaf in tree.tensors(outcome))
    torch.testing.assert_close((tree.detach(meta), episode), given, rtol=0, atol=0)
    assert all(value.grad is None for value in meta.values())
