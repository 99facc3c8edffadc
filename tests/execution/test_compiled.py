"""Compiled execution gives the eager gradient: traced and cut for every row, and by torch's compiler for some."""

import os
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from metalearn import Problem, UsageError, functionalize, losses, optim, tree
from metalearn.algorithms import MAML, MAMLPlusPlus
from metalearn.compilation import convolutions, programs
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import FirstOrder, ForwardMode, Stepwise, Truncated, Unrolled
from metalearn.optim.learned import LSLR, MetaSGD
from metalearn.testing import assert_close
from metalearn.types import Aux
from tests import problems
from tests.metagrad.test_agreement import MODELS
from tests.metagrad.test_agreement import _problem as problem_of_model

# Torch's compiler uses, as it is imported, what torch warns of.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
D = torch.float64
WAYS = {
    "loop, pieces": Loop(compiled="pieces"),
    "vmap, pieces": Vmap(compiled="pieces"),
    "chunks of 2, pieces": Vmap(compiled="pieces", chunk_size=2),
    "loop, whole": Loop(compiled="whole"),
    "vmap, whole": Vmap(compiled="whole"),
}
STRATEGIES = {
    "unrolled": Unrolled(), "stepwise": Stepwise(), "stepwise, every 2": Stepwise(2), "first order": FirstOrder(),
}  # fmt: skip


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run operation by operation: what is traced, cut and folded is the same, and takes no compiler.

    `METALEARN_THROUGH_COMPILER=1` gives every row to torch's compiler, which takes an hour.
    """
    if not os.environ.get("METALEARN_THROUGH_COMPILER"):
        monkeypatch.setattr(programs, "by_inductor", programs.as_it_is)


interpreted = pytest.mark.usefixtures("_interpreted")


def _agree(got: Any, expected: Any, *, tolerance: float = 1e-10) -> None:
    assert got.grads.keys() == expected.grads.keys()
    assert_close(got.grads, expected.grads, tolerance=tolerance)
    assert_close(got.value, expected.value, tolerance=tolerance)
    torch.testing.assert_close(got.aux, expected.aux, rtol=tolerance, atol=tolerance * 1e-2)


def _check(execution: Any, strategy: Any, problem: Problem, meta: dict[str, Tensor], episodes: Any) -> Any:
    """Compares with the loop as it is, at two points: nothing of the first may be left in the code."""
    expected = Loop().value_and_grad(strategy, problem)
    compiled = execution.value_and_grad(strategy, problem)
    _agree(compiled(meta, episodes), expected(meta, episodes))
    moved = {name: value * 1.1 if value.dim() else value for name, value in meta.items()}
    later = tree.map_tensors(lambda leaf: leaf.flip(0).clone(), episodes)
    _agree(compiled(moved, later), expected(moved, later))
    return compiled


@interpreted
@pytest.mark.parametrize("model", MODELS)
def test_every_model(model: str) -> None:
    problem, meta = problem_of_model(model, "sgd, momentum learned")
    _check(Vmap(compiled="pieces"), Unrolled(), problem, meta, problems.values())


@interpreted
@pytest.mark.parametrize(
    ("model", "way"),
    [
        *product(["batch norm, running statistics", "accumulator"], ["loop, pieces", "loop, whole", "vmap, whole"]),
        ("accumulator", "chunks of 2, pieces"),
    ],
)
def test_other_ways(model: str, way: str) -> None:
    problem, meta = problem_of_model(model, "sgd, momentum learned")
    _check(WAYS[way], Stepwise(2) if "pieces" in way else Unrolled(), problem, meta, problems.values())


@interpreted
@pytest.mark.parametrize("layer", [layer for layer in problems.LAYERS if layer != "attention"])  # a model, above
def test_every_layer(layer: str) -> None:
    problem, meta = problems.problem_of(problems.model_of(layer), "sgd", num_inner_steps=3)
    _check(Vmap(compiled="pieces"), Unrolled(), problem, meta, problems.images())


@interpreted
@pytest.mark.parametrize("layer", ["relu and max-pool", "batch norm, running statistics", "weight norm"])
def test_convolutions_as_products(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "FEWEST", 1)
    problem, meta = problems.problem_of(problems.model_of(layer), "sgd", num_inner_steps=2)
    way = Vmap(compiled="pieces", convolutions="products")
    _check(way, Stepwise(2) if layer == "weight norm" else Unrolled(), problem, meta, problems.images())


@interpreted
@pytest.mark.parametrize("optimizer", problems.OPTIMIZERS)
def test_every_optimizer(optimizer: str) -> None:
    problem, meta = problem_of_model("plain", optimizer)
    _check(
        Vmap(compiled="pieces"), Stepwise(2) if "rate" in optimizer else Unrolled(), problem, meta, problems.values()
    )


@interpreted
@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_number_of_steps(strategy: str, num_steps: int) -> None:
    problem, meta = problem_of_model("accumulator", "adam")
    problem = replace(problem, num_inner_steps=num_steps)
    way = Vmap(compiled="pieces") if strategy != "stepwise" else Loop(compiled="pieces")
    _check(way, STRATEGIES[strategy], problem, meta, problems.values())


@interpreted
@pytest.mark.parametrize("way", ["loop, pieces", "vmap, pieces", "vmap, whole"])
def test_a_loss_after_every_step(way: str) -> None:
    problem, meta = problem_of_model("accumulator, learned start", "adam, everything learned")
    problem = replace(problem, outer_weights=(0.2, 0.3, torch.tensor(0.5, dtype=D)))
    for strategy in (Unrolled(), Stepwise(2)):
        _check(WAYS[way], strategy, problem, meta, problems.values())


@interpreted
@pytest.mark.parametrize("way", ["loop, pieces", "vmap, pieces", "vmap, whole"])
def test_what_differs_from_step_to_step(way: str) -> None:
    """A batch by its number, a loss that looks at the number, and both."""
    problem, meta = problem_of_model("plain", "sgd")

    def batch(episode: Any, step: int) -> Any:
        x, y = episode.support
        return x[step : step + 3], y[step : step + 3]

    def inner_loss(meta: Any, params: Any, buffers: Any, batch: Any, step: int) -> Any:
        loss, aux = problem.inner_loss(meta, params, buffers, batch, step)
        return loss * (1.0 + [0.0, 0.5, -0.25][step]), aux

    for changed, strategy in (
        ({"batch": batch}, Stepwise(2)), ({"inner_loss": inner_loss}, Stepwise(2)),
        ({"batch": batch, "inner_loss": inner_loss}, Unrolled()),
    ):  # fmt: skip
        _check(WAYS[way], strategy, replace(problem, **changed), meta, problems.values())


@interpreted
@pytest.mark.parametrize("way", ["loop, pieces", "vmap, pieces", "vmap, whole"])
@pytest.mark.parametrize("learned", [MetaSGD(0.1), LSLR(0.1, num_steps=3)], ids=["Meta-SGD", "LSLR"])
def test_learned_rates(learned: Any, way: str) -> None:
    model = functionalize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    maml = MAML(loss=losses.mean_squared_error, num_inner_steps=3, inner_optimizer=learned, adapted="2.*")
    _check(WAYS[way], Unrolled(), maml.problem(model), maml.init(model), problems.values())


@interpreted
@pytest.mark.parametrize("way", ["loop, pieces", "vmap, pieces"])
@pytest.mark.parametrize("policy", ["set", "task", "step"])
def test_every_normalisation(policy: str, way: str) -> None:
    torch.manual_seed(0)
    model = functionalize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double())
    maml = MAML(loss=losses.mean_squared_error, num_inner_steps=3, normalisation=policy)
    _check(WAYS[way], Unrolled(), maml.problem(model), maml.init(model), problems.values())


@interpreted
@pytest.mark.parametrize("way", WAYS)
def test_buffers_that_change_between_meta_steps_need_no_new_code(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = functionalize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double())
    maml = MAML(loss=losses.mean_squared_error, num_inner_steps=3, normalisation="task")
    meta, episodes = maml.init(model), problems.values()
    compiled = WAYS[way].value_and_grad(Unrolled(), maml.problem(model))
    compiled(meta, episodes, held=model.buffers)
    monkeypatch.setattr(programs.Program, "__init__", None)  # to make another one is an error from here on
    other = {name: value * 2 if value.is_floating_point() else value for name, value in model.buffers.items()}
    expected = Loop().value_and_grad(Unrolled(), maml.problem(model.with_buffers(other)))(meta, episodes)
    _agree(compiled(meta, episodes, held=other), expected)
    assert float(tree.norm(expected.grads)) > 1e-2


@interpreted
def test_the_number_of_pieces_does_not_grow_with_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    original = programs.Program.__init__

    def counted(self: Any, graph: Any) -> None:
        counts[-1] += 1
        original(self, graph)

    monkeypatch.setattr(programs.Program, "__init__", counted)
    for num_steps in (4, 40):
        counts.append(0)
        problem, meta = problem_of_model("plain", "adam")
        Vmap(compiled="pieces").value_and_grad(Unrolled(), replace(problem, num_inner_steps=num_steps))(
            meta, problems.values()
        )
    assert counts[0] == counts[1]


@interpreted
def test_tasks_skipped_and_clipped() -> None:
    problem, meta = problem_of_model("plain", "sgd")
    episodes = problems.values()
    episodes.query[1][1] = torch.nan
    for compiled in ("pieces", "whole"):
        for way in (Loop, Vmap):
            settings = {"nonfinite": "skip", "task_clip": 0.05}
            got = way(compiled=compiled, **settings).value_and_grad(Unrolled(), problem)(meta, episodes)
            expected = way(**settings).value_and_grad(Unrolled(), problem)(meta, episodes)
            _agree(got, expected)
            assert float(got.aux.metrics["skipped_tasks"][0]) == 1


@interpreted
def test_a_strategy_that_is_no_walk_as_one_graph() -> None:
    problem, meta = problems.ridge_problem(3)
    _check(Vmap(compiled="whole"), Truncated(2), problem, meta, problems.values())
    with pytest.raises(UsageError, match=r"Truncated\w* does not: compile it as one graph"):
        Vmap(compiled="pieces").value_and_grad(Truncated(2), problem)


@interpreted
def test_what_torch_can_not_trace_is_told() -> None:
    problem, meta = problems.ridge_problem(3)
    with pytest.raises(UsageError, match=r"torch can not trace this code.*execution\.compile=false"):
        Vmap(compiled="whole").value_and_grad(ForwardMode(), problem)(meta, problems.values())


class _Counted(NamedTuple):
    number: int


def _numbered(meta: Any) -> Any:
    def update(grads: Any, state: Any, params: Any) -> Any:
        return {name: -0.1 / (state.number + 1) * grad for name, grad in grads.items()}, _Counted(state.number + 1)

    return optim.GradientTransformation(lambda params: _Counted(0), update)


@interpreted
def test_mistakes() -> None:
    problem, meta = problem_of_model("plain", "sgd")
    episodes = problems.values()
    with pytest.raises(UsageError, match=r"compiled='hole'\. Did you mean 'whole'"):
        Vmap(compiled="hole")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="changes something in its state that is no tensor"):
        Vmap(compiled="pieces").value_and_grad(Unrolled(), replace(problem, optimizer=_numbered))(meta, episodes)
    with pytest.raises(UsageError, match="held: this problem"):
        Vmap(compiled="pieces").value_and_grad(Unrolled(), problem)(meta, episodes, held={})

    def deciding(meta: Any, params: Any, buffers: Any, batch: Any, step: int) -> Any:
        loss, aux = problem.inner_loss(meta, params, buffers, batch, step)
        return (loss if loss.detach() > 0 else -loss), aux

    reading = replace(problem, inner_loss=deciding)
    for compiled in ("pieces", "whole"):
        with pytest.raises(UsageError, match=r"test_compiled\.py:\d+.*\n?.*execution\.compile=false"):
            Loop(compiled=compiled).value_and_grad(Unrolled(), reading)(meta, episodes)

    kept = torch.ones((), requires_grad=True, dtype=D)

    def capturing(meta: Any, params: Any, buffers: Any, episode: Any, step: int) -> Any:
        loss, aux = problem.outer_loss(meta, params, buffers, episode, step)
        return loss * kept, aux

    for compiled in ("pieces", "whole"):
        with pytest.raises(UsageError, match="requires grad but was not passed"):
            Vmap(compiled=compiled).value_and_grad(Unrolled(), replace(problem, outer_loss=capturing))(meta, episodes)


@cache
def _matrix_problem() -> tuple[Problem, dict[str, Tensor]]:
    """An SGD step on a matrix, whose factor torch's compiler loses."""

    def loss_on(batch: Any, params: dict[str, Tensor]) -> Tensor:
        return (batch[0] @ params["w"] - batch[1]).square().mean()

    problem = Problem(
        init=lambda meta, episode: ({"w": meta["w"]}, {}),
        inner_loss=lambda meta, params, buffers, batch, step: (loss_on(batch, params), Aux(buffers, {})),
        optimizer=lambda meta: optim.sgd(0.1, momentum=0.9),
        outer_loss=lambda meta, params, buffers, episode, step: (loss_on(episode.query, params), Aux(buffers, {})),
        num_inner_steps=2,
    )
    return problem, {"w": torch.linspace(-1, 1, 3, dtype=D)[:, None].contiguous()}


COMPILED = {
    "loop, whole, a matrix": (Loop(compiled="whole"), _matrix_problem),
    "vmap, pieces, a matrix": (Vmap(compiled="pieces"), _matrix_problem),
    "vmap, pieces, dropout and Adam": (Vmap(compiled="pieces"), lambda: problem_of_model("dropout", "adam")),
}


@pytest.mark.parametrize("row", COMPILED)
def test_by_the_compiler(row: str) -> None:
    execution, made = COMPILED[row]
    two_tasks = tree.map_tensors(lambda leaf: leaf[:2], problems.values())
    _check(execution, Unrolled(), *made(), two_tasks)


@interpreted
@pytest.mark.parametrize("way", ["vmap, pieces", "loop, whole"])
def test_weights_of_losses_that_change_between_meta_steps_need_no_new_code(way: str) -> None:
    model, episodes = problems.model_of("batch norm, running statistics"), problems.images()
    algorithm = MAMLPlusPlus(
        loss=losses.cross_entropy, inner_lr=0.2, num_inner_steps=3, multi_step_until=10, per_step_norms=False
    )
    problem, meta = algorithm.problem(model), algorithm.init(model)
    eager = Loop().value_and_grad(Unrolled(), problem)
    compiled = WAYS[way].value_and_grad(Unrolled(), problem)
    values = set()
    for step in (0, 4, 8):
        held = {**model.buffers, **algorithm.held(step)}
        got = compiled(meta, episodes, held=held)
        _agree(got, eager(meta, episodes, held=held))
        values.add(got.value.item())
    assert len(values) == 3
