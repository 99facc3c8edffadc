"""A task that is no number: it ends training, or is left out and counted; a task's gradient that is too large."""

import pytest
import torch

from metalearn import Episodes, optim, tree
from metalearn.errors import UsageError
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import Unrolled
from metalearn.problem import Problem
from metalearn.types import Aux

D = torch.float64
WAYS = {"loop": Loop, "vmap": Vmap, "chunks": lambda **settings: Vmap(chunk_size=2, **settings)}


def problem() -> Problem:
    def loss(params, target):
        return 0.5 * (params["w"] - target).square().sum()

    def outer(meta, params, buffers, episode, step):
        value = loss(params, episode.query)
        return value, Aux(
            {"seen": buffers["seen"] + episode.query.sum(), "count": buffers["count"] + 1}, {"half": value / 2}
        )

    return Problem(
        init=lambda meta, episode: (
            {"w": meta["w"]},
            {"seen": torch.zeros((), dtype=D), "count": torch.zeros((), dtype=torch.int64)},
        ),
        inner_loss=lambda meta, params, buffers, batch, step: (loss(params, batch), Aux(buffers, {})),
        optimizer=lambda meta: optim.sgd(0.5),
        outer_loss=outer,
        num_inner_steps=2,
    )


def episodes(*, spoilt: dict[int, float]) -> Episodes:
    support = torch.arange(15.0, dtype=D).reshape(5, 3)
    query = support.flip(0) / 7
    for task, value in spoilt.items():
        query[task, 1] = value
    return Episodes(support, query)


META = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=D)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_left_out_and_counted(way: str, value: float) -> None:
    run = WAYS[way](nonfinite="skip").value_and_grad(Unrolled(), problem())
    got = run(META, episodes(spoilt={0: value, 3: value}))
    whole = episodes(spoilt={})
    expected = Loop().value_and_grad(Unrolled(), problem())(META, tree.map_tensors(lambda leaf: leaf[[1, 2, 4]], whole))
    torch.testing.assert_close(got.grads, expected.grads, rtol=1e-14, atol=0)
    torch.testing.assert_close(got.value, expected.value, rtol=1e-14, atol=0)
    torch.testing.assert_close(got.aux.buffers["seen"], expected.aux.buffers["seen"], rtol=1e-14, atol=0)
    assert got.aux.buffers["count"] == 1
    torch.testing.assert_close(got.aux.metrics["half"].mean(), expected.aux.metrics["half"].mean())
    assert got.aux.metrics["skipped_tasks"].mean() == 2


@pytest.mark.parametrize("way", WAYS)
def test_nothing_to_leave_out_changes_nothing(way: str) -> None:
    plain, skipping = (
        WAYS[way](**settings).value_and_grad(Unrolled(), problem())(META, episodes(spoilt={}))
        for settings in ({}, {"nonfinite": "skip"})
    )
    assert torch.equal(plain.grads["w"], skipping.grads["w"])
    assert torch.equal(plain.value, skipping.value)
    assert skipping.aux.metrics["skipped_tasks"].mean() == 0


@pytest.mark.parametrize("way", WAYS)
def test_by_default_it_spoils_the_mean(way: str) -> None:
    got = WAYS[way]().value_and_grad(Unrolled(), problem())(META, episodes(spoilt={2: float("nan")}))
    assert got.value.isnan()
    assert got.grads["w"].isnan().any()


def test_nothing_left_is_no_number() -> None:
    spoilt = episodes(spoilt={task: float("nan") for task in range(5)})
    got = Vmap(nonfinite="skip").value_and_grad(Unrolled(), problem())(META, spoilt)
    assert got.value.isnan()


@pytest.mark.parametrize("way", WAYS)
def test_each_tasks_gradient_is_clipped(way: str) -> None:
    one = Unrolled().value_and_grad(problem())
    batch = episodes(spoilt={4: 1e200})  # its square is too large even for float64
    each = [one(META, tree.map_tensors(lambda leaf, i=task: leaf[i], batch)).grads["w"] for task in range(5)]
    limit = float(each[1].norm()) * 0.9
    expected = (
        sum(grad * min(1.0, limit / float((grad / grad.abs().max()).norm() * grad.abs().max())) for grad in each) / 5
    )
    got = WAYS[way](task_clip=limit).value_and_grad(Unrolled(), problem())(META, batch)
    torch.testing.assert_close(got.grads["w"], expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"), [({"nonfinite": "skipp"}, "Did you mean 'skip'"), ({"task_clip": 0.0}, "above 0")]
)
def test_settings_that_are_refused(settings, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Loop(**settings)
