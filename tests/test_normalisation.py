"""Normalisation policies: what each pass normalises by, certified, and what returns to the model."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import UsageError, algorithms, functionalize, losses
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.normalisation import POLICIES, Normalisation, policy_of
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems

D = torch.float64
WAYS = {"loop": Loop(), "vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}
EPS, MOMENTUM = 1e-5, 0.1

# By hand, written down anew: (support in training, query in training, support at test, query at test).
USES = {
    "module": ("tracked", "tracked", "running", "running"),  # of a batch norm that tracks
    "set": ("set", "set", "set", "set"),
    "task": ("tracked", "running", "tracked", "running"),
    "step": ("tracked", "tracked", "running", "running"),
    "shared": ("tracked", "tracked", "running", "running"),
    "frozen": ("running", "running", "running", "running"),
}


class Doubled(nn.BatchNorm2d):
    """A user's own norm, on top of torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Written(nn.Module):
    """A user's own norm, in functions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, training=self.training)


def _images(norm: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(1, 4, 3, stride=2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)]


NORMS = {
    "1d": lambda: [nn.Flatten(), nn.Linear(81, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)],
    "2d": lambda: _images(nn.BatchNorm2d(4)),
    "3d": lambda: [
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 3, (1, 3, 3), stride=(1, 3, 3)), nn.BatchNorm3d(3), nn.Tanh(),
        nn.Flatten(), nn.Linear(27, 3),
    ],
    "cumulative": lambda: _images(nn.BatchNorm2d(4, momentum=None)),
    "instance": lambda: _images(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "synchronised": lambda: _images(nn.SyncBatchNorm(4)),
    "subclass": lambda: _images(Doubled(4)),
    "cumulative subclass": lambda: _images(Doubled(4, momentum=None)),
    "functions": lambda: _images(Written()),
}  # fmt: skip


def _model(*parts: nn.Module):
    """With running statistics that are none of a fresh module, so that it shows where they are read."""
    torch.manual_seed(3)
    for part in parts:
        for parameter in part.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, 0.5, 0.3)
        if getattr(part, "running_mean", None) is not None:
            nn.init.normal_(part.running_mean, 0.3, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return functionalize(nn.Sequential(*parts).double())


def _maml(policy, **changes):
    given = {"loss": losses.cross_entropy, "inner_lr": 0.3, "num_inner_steps": 2, "normalisation": policy}
    return algorithms.MAML(**given | changes)


def _in_phase(model, phase: str):
    return model.train() if phase == "training" else model.eval()


# What is used in each pass, against the formulas.


def _normed(x: Tensor, statistics: str, row: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """One pass through batch norm; `row` is updated where the statistics are tracked."""
    mean, variance = row["mean"], row["var"]
    if statistics != "running":
        mean, variance = x.mean(0), x.var(0, correction=0)
    if statistics == "tracked":
        row["count"] = row["count"] + 1
        row["mean"] = (1 - MOMENTUM) * row["mean"] + MOMENTUM * x.mean(0).detach()
        row["var"] = (1 - MOMENTUM) * row["var"] + MOMENTUM * x.var(0, correction=1).detach()
    return (x - mean) / (variance + EPS).sqrt() * weight + bias


def _by_hand(policy: str, phase: str, params, rows, episode, *, steps: int, rate: float):
    """The query loss of one episode; `rows` (one an inner step, or the same one every time) are updated."""
    support, query = USES[policy][:2] if phase == "training" else USES[policy][2:]

    def loss(params, examples, statistics: str, step: int) -> Tensor:
        x, y = examples
        hidden = x @ params["0.weight"].T + params["0.bias"]
        hidden = _normed(hidden, statistics, rows[step], params["1.weight"], params["1.bias"])
        return F.mse_loss(hidden.tanh() @ params["3.weight"].T + params["3.bias"], y)

    for step in range(steps):
        grads = torch.autograd.grad(
            loss(params, episode.support, support, step), [*params.values()], create_graph=True
        )  # fmt: skip
        params = {name: value - rate * grad for (name, value), grad in zip(params.items(), grads, strict=True)}
    return loss(params, episode.query, query, steps)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", ["training", "test"])
@pytest.mark.parametrize("policy", POLICIES)
def test_equals_the_formulas(policy: str, phase: str, way: str) -> None:
    steps, rate, episodes = 3, 0.2, problems.values(3)
    model = _in_phase(_model(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)), phase)
    maml = _maml(policy, loss=losses.mean_squared_error, inner_lr=rate, num_inner_steps=steps)
    got = WAYS[way].value_and_grad(Unrolled(), maml.problem(model))(maml.init(model), episodes)

    params = {name: value.clone().requires_grad_() for name, value in model.params.items()}
    initial = {
        "mean": model.buffers["1.running_mean"], "var": model.buffers["1.running_var"], "count": torch.zeros(()).long()
    }  # fmt: skip
    total, ends = 0.0, []
    for index in range(3):
        rows = [dict(initial) for _ in range(steps + 1)] if policy == "step" else [dict(initial)] * (steps + 1)
        episode = problems.one(episodes, index)
        total = total + _by_hand(policy, phase, params, rows, episode, steps=steps, rate=rate)
        stacked = {name: torch.stack([row[name] for row in rows]) for name in initial}
        ends.append(stacked if policy == "step" else rows[0])
    assert_close(got.value, total / 3, tolerance=1e-13)
    expected = torch.autograd.grad(total / 3, [*params.values()])
    assert_close([got.grads[f"init.{name}"] for name in params], list(expected), tolerance=1e-11)
    if policy in ("set", "frozen"):
        assert got.aux.buffers == {}
        return
    for name, buffer in (("mean", "running_mean"), ("var", "running_var")):
        assert_close(got.aux.buffers[f"1.{buffer}"], sum(end[name] for end in ends) / 3, tolerance=1e-13)
    assert torch.equal(got.aux.buffers["1.num_batches_tracked"], ends[0]["count"])
    changed = not torch.equal(ends[0]["mean"].reshape(-1, 4)[-1], initial["mean"])
    assert changed == (phase == "training" or policy == "task")


# Certification.


TRAINED_AND_TESTED = [
    *((norm, "training") for norm in NORMS),
    *((norm, "test") for norm in ("2d", "cumulative", "instance", "functions")),
]


@pytest.mark.parametrize(("norm", "phase"), TRAINED_AND_TESTED)
@pytest.mark.parametrize("policy", POLICIES)
def test_all_ways_agree(policy: str, norm: str, phase: str) -> None:
    model, episodes = _in_phase(_model(*NORMS[norm]()), phase), problems.images(3)
    maml = _maml(policy)
    outcomes = [
        way.value_and_grad(strategy, maml.problem(model))(maml.init(model), episodes)
        for way in WAYS.values()
        for strategy in (Unrolled(), FirstOrder())
    ]
    for index, got in enumerate(outcomes):
        expected = outcomes[index % 2]
        assert_close((got.value, got.grads), (expected.value, expected.grads))
        assert got.aux.buffers.keys() == expected.aux.buffers.keys()
        for name, value in expected.aux.buffers.items():
            assert_close(got.aux.buffers[name], value)
    tables = [way.evaluate(maml.problem(model), maml.init(model), episodes, num_inner_steps=4) for way in WAYS.values()]
    for table in tables[1:]:
        assert_close(table, tables[0])


@pytest.mark.parametrize(
    ("norm", "phase"),
    [
        *((norm, "training") for norm in ("1d", "2d", "3d", "cumulative", "instance")),
        ("2d", "test"),
        ("instance", "test"),
    ],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_against_finite_differences(policy: str, norm: str, phase: str) -> None:
    model, maml = _in_phase(_model(*NORMS[norm]()), phase), _maml(policy)
    report = check_meta_gradient(
        maml.problem(model), maml.init(model), problems.one(problems.images(1)), num_directions=2, replay_constants=True
    )
    assert report.gradient_norm > 1e-3


def test_running_statistics_are_constants_as_in_torch() -> None:
    # The query set is normalised by what the support set left behind, through which no gradient flows.
    model, maml = _model(*NORMS["2d"]()), _maml("task")
    with pytest.raises(AssertionError, match="against finite differences"):
        check_meta_gradient(maml.problem(model), maml.init(model), problems.one(problems.images(1)), num_directions=2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", ["2d", "cumulative", "instance"])
@pytest.mark.parametrize("policy", POLICIES)
def test_padded_episodes_equal_those_alone(policy: str, norm: str, way: str) -> None:
    model, parts = _model(*NORMS[norm]()), problems.of_several_sizes()
    problem, meta = _maml(policy).problem(model), _maml(policy).init(model)
    got = WAYS[way].value_and_grad(Unrolled(), problem)(meta, problems.padded(parts))
    alone = [
        Unrolled().value_and_grad(_maml(policy, loss=_of_classes(problems.num_ways(part, 3))).problem(model))(
            meta, part
        )
        for part in parts
    ]
    assert_close(got.value, sum(each.value for each in alone) / len(parts), tolerance=1e-12)
    assert_close(got.grads, {name: sum(each.grads[name] for each in alone) / len(parts) for name in meta})
    for name, value in got.aux.buffers.items():
        if value.is_floating_point():
            assert_close(value, sum(each.aux.buffers[name] for each in alone) / len(parts), tolerance=1e-12)


def _of_classes(ways: int):
    return lambda outputs, targets: losses.cross_entropy(outputs[:, :ways], targets)


@pytest.mark.parametrize("phase", ["training", "test"])
@pytest.mark.parametrize("policy", POLICIES)
def test_adapt_and_predict_are_what_the_problem_does(policy: str, phase: str) -> None:
    model, maml = _in_phase(_model(*NORMS["2d"]()), phase), _maml(policy)
    meta, episode = maml.init(model), problems.one(problems.images(1))
    adapted = maml.adapt(model, meta, model.buffers, episode.support)
    logits = maml.predict(model, meta, adapted, episode.query[0])
    value = Unrolled().value_and_grad(maml.problem(model))(meta, episode).value
    assert_close(F.cross_entropy(logits, episode.query[1]), value, tolerance=1e-13)
    one_by_one = torch.cat([maml.predict(model, meta, adapted, x[None]) for x in episode.query[0]])
    alike = torch.allclose(one_by_one, logits, atol=1e-12)
    assert alike == (USES[policy][1 if phase == "training" else 3] == "running")
    assert policy_of(policy).transductive(model.norms) == (USES[policy][3] != "running")


# Per-step statistics.


def test_per_step_statistics_have_a_row_a_step_and_the_last_one_beyond() -> None:
    model, maml, episodes = _model(*NORMS["2d"]()).eval(), _maml("step"), problems.images(1)
    buffers = policy_of("step").initial_buffers(model, 2)
    assert {name: list(value.shape) for name, value in buffers.items()} == {
        "1.running_mean": [3, 4], "1.running_var": [3, 4], "1.num_batches_tracked": [3], "rng": []
    }  # fmt: skip
    buffers |= {name: torch.rand(3, 4, dtype=D) + 0.5 for name in ("1.running_mean", "1.running_var")}
    table = Loop().evaluate(
        maml.problem(model.with_buffers(buffers)), maml.init(model), episodes, num_inner_steps=4
    )["loss"][0]  # fmt: skip
    # The same, with frozen statistics that are exchanged by hand before every pass.
    row = [{name: value[min(k, 2)] for name, value in buffers.items() if name != "rng"} for k in range(5)]
    params, frozen, expected = model.params, model.normalising("running"), []
    support, query = problems.one(episodes).support, problems.one(episodes).query
    for k in range(5):
        state = {**row[k], "rng": buffers["rng"]}
        expected.append(F.cross_entropy(frozen(params, state, query[0])[0], query[1]))
        grads = torch.func.grad(lambda p, s=state: F.cross_entropy(frozen(p, s, support[0])[0], support[1]))(params)
        params = {name: value - 0.3 * grads[name] for name, value in params.items()}
    assert_close(table, torch.stack(expected), tolerance=1e-13)


def test_returned_per_step_statistics_go_into_the_next_meta_step() -> None:
    model, maml, episodes = _model(*NORMS["2d"]()), _maml("step"), problems.images(3)
    meta = maml.init(model)
    first = Vmap().value_and_grad(Unrolled(), maml.problem(model))(meta, episodes).aux.buffers
    again = model.with_buffers({**model.buffers, **first})
    second = Vmap().value_and_grad(Unrolled(), maml.problem(again))(meta, episodes).aux.buffers
    assert first["1.num_batches_tracked"].tolist() == [1, 1, 1]
    assert second["1.num_batches_tracked"].tolist() == [2, 2, 2]
    # The parameters are the same ones, so every row moves on towards the same statistics.
    moved, further = (
        first["1.running_mean"] - model.buffers["1.running_mean"], second["1.running_mean"] - first["1.running_mean"]
    )  # fmt: skip
    assert_close(further, 0.9 * moved, tolerance=1e-12)
    assert not torch.allclose(moved[0], moved[1], atol=1e-4)


# Mistakes.


def _untracked():
    return _model(*_images(nn.BatchNorm2d(4, track_running_stats=False)))


@pytest.mark.parametrize("policy", ["task", "step", "shared", "frozen"])
def test_a_policy_of_running_statistics_needs_some(policy: str) -> None:
    for refused in (_maml(policy).init, _maml(policy).problem):
        with pytest.raises(UsageError, match=r"batch norm '1' of Sequential keeps none.*track_running_stats=True"):
            refused(_untracked())


def test_a_policy_on_a_model_without_batch_norm_is_refused() -> None:
    model = problems.model_of("layer norm")
    assert _maml("module").problem(model).must_return == ()
    with pytest.raises(UsageError, match=r"'set' is about batch norm, and Sequential has none. Leave it at 'module'"):
        _maml("set").problem(model)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'frozen'"):
        _maml("frozn")


@pytest.mark.parametrize("policy", POLICIES)
def test_what_must_return_is_not_kept_back(policy: str) -> None:
    model = _model(*NORMS["2d"]())
    problem = _maml(policy).problem(model)
    if policy in ("step", "shared"):
        with pytest.raises(UsageError, match=r"buffers=keep returns nothing.*'1.running_mean'"):
            Loop(buffers="keep").value_and_grad(Unrolled(), problem)
    else:
        kept = Loop(buffers="keep").value_and_grad(Unrolled(), problem)(_maml(policy).init(model), problems.images(2))
        assert kept.aux.buffers == {}


def test_a_policy_of_ones_own() -> None:
    # Statistics of the support set, unseen by training: inductive, and nothing is shared.
    own = Normalisation(name="support only", support=("tracked",) * 2, query=("running",) * 2, returns=False)
    model, episodes = _model(*NORMS["2d"]()), problems.images(2)
    got, task = (
        Vmap().value_and_grad(Unrolled(), _maml(policy).problem(model))(_maml(policy).init(model), episodes)
        for policy in (own, "task")
    )
    assert torch.equal(got.value, task.value)
    assert got.aux.buffers == {}


@pytest.mark.parametrize("choice", [("tracked",), "set", ("sett", "set"), ["set", "set"], (["set"], "set"), None])
def test_a_choice_that_there_is_not_is_refused_at_once(choice) -> None:
    good = ("set", "set")
    with pytest.raises(UsageError, match=r"^support=.* expected a pair .*: each 'set', 'tracked', 'running' or None"):
        Normalisation(name="own", support=choice, query=good)
    with pytest.raises(UsageError, match=r"^query="):
        Normalisation(name="own", support=good, query=choice)


def test_only_norms_change_their_mode() -> None:
    model = functionalize(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).double()).eval()
    x = torch.randn(5, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    output, _ = model.normalising("set")(model.params, model.buffers, x)
    assert_close(output, (x - x.mean(0)) / (x.var(0, correction=0) + EPS).sqrt(), tolerance=1e-14)
    trained, _ = model.train().normalising("running")(model.params, model.buffers, x)
    assert ((trained == 0) | torch.isclose(trained, 2 * x / (1 + EPS) ** 0.5)).all()
    assert (trained == 0).any()


def test_evaluation_judges_the_model_that_training_left() -> None:
    # Shared statistics: what training collected is what the test reads, and two policies differ in nothing else.
    model, episodes = _model(*NORMS["2d"]()), problems.images(3)
    maml = _maml("shared")
    meta = maml.init(model)
    returned = Vmap().value_and_grad(Unrolled(), maml.problem(model))(meta, episodes).aux.buffers
    at_test = model.eval().with_buffers({**model.buffers, **returned})
    frozen = replace(maml, normalisation="frozen")
    tables = [Vmap().evaluate(each.problem(at_test), meta, episodes, num_inner_steps=2) for each in (maml, frozen)]
    assert_close(*tables, tolerance=1e-15)
    untouched = Vmap().evaluate(maml.problem(model.eval()), meta, episodes, num_inner_steps=2)
    assert not torch.allclose(untouched["loss"], tables[0]["loss"], atol=1e-3)
