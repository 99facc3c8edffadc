"""What the inner loop adapts and what is learned: against plain PyTorch, finite differences, every way of running."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalearn
import metalearn.train
from metalearn import Problem, UsageError, algorithms, functionalize, losses, optim, tree
from metalearn.algorithms.base import loss_of
from metalearn.execution import Loop, Vmap
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.state import NORMS, Kind, excluding
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems

THREE = ["features.0.weight", "features.2.bias", "head.bias"]
ROLES = {
    "head only (ANIL)": {"adapted": "head.*"},
    "features only (BOIL)": {"adapted": "features.*"},
    "three tensors learned": {"learned": THREE},
    "three learned, the head adapted": {"adapted": "head.*", "learned": THREE},
    "apart": {"adapted": "head.*", "learned": "features.*"},
    "norms frozen": {"learned": excluding(NORMS), "adapted": excluding(NORMS)},
    "biases adapted": {"adapted": ["*.bias", "!features.0.*"]},
    "predicate": {"adapted": lambda name, value: value.dim() > 1},
}


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 4, 3), norm, nn.Tanh())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def model_with(norm: nn.Module | None = None):
    torch.manual_seed(4)
    return functionalize(Net(norm or nn.GroupNorm(2, 4)).double())


def maml_of(roles: dict, **given) -> algorithms.MAML:
    return algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.3, **{"num_inner_steps": 2, **roles, **given})


def _by_hand(module: nn.Module, episodes, *, adapted: set[str], learned: set[str], first_order: bool) -> dict:
    """The mean query loss after 2 gradient steps on some parameters, differentiated by torch.autograd alone."""
    start = {name: value.detach().clone().requires_grad_(name in learned) for name, value in module.named_parameters()}
    total = 0.0
    for (x, y), (xq, yq) in zip(zip(*episodes.support, strict=True), zip(*episodes.query, strict=True), strict=True):
        fast = {name: value.clone().requires_grad_() for name, value in start.items() if name in adapted}
        for _ in range(2):
            loss = F.cross_entropy(torch.func.functional_call(module, {**start, **fast}, (x,)), y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
            fast = {name: value - 0.3 * grad for (name, value), grad in zip(fast.items(), grads, strict=True)}
        total = total + F.cross_entropy(torch.func.functional_call(module, {**start, **fast}, (xq,)), yq)
    own = {name: value for name, value in start.items() if name in learned}
    grads = torch.autograd.grad(total / len(episodes.support[0]), list(own.values()), materialize_grads=True)
    return dict(zip(own, grads, strict=True))


@pytest.mark.parametrize("way", [Loop(), Vmap()], ids=["loop", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    ("roles", "adapted", "learned"),
    [
        ({"adapted": "head.*"}, "head", ""),
        ({"adapted": "features.*"}, "features", ""),
        ({"adapted": "head.*", "learned": "features.*"}, "head", "features"),
        ({"learned": "features.*"}, "", "features"),
    ],
)
def test_equals_plain_pytorch(roles, adapted: str, learned: str, first_order: bool, way) -> None:
    model, episodes = model_with(), problems.images(3)
    maml, strategy = maml_of(roles), FirstOrder() if first_order else Unrolled()
    grads = way.value_and_grad(strategy, maml.problem(model))(maml.init(model), episodes).grads
    names = [{name for name in model.params if name.startswith(part)} for part in (adapted, learned)]
    expected = _by_hand(model.module, episodes, adapted=names[0], learned=names[1], first_order=first_order)
    assert set(grads) == {f"init.{name}" for name in names[1]}
    assert_close(grads, {f"init.{name}": expected[name] for name in model.params if name in expected}, tolerance=1e-12)


@pytest.mark.parametrize("roles", ROLES)
def test_the_gradient_is_that_of_finite_differences(roles: str) -> None:
    model, maml = model_with(), maml_of(ROLES[roles])
    check_meta_gradient(maml.problem(model), maml.init(model), problems.one(problems.images()))


@pytest.mark.parametrize("way", [Vmap(), Vmap(chunk_size=2)], ids=["vmap", "chunks"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.Dropout(0.3)], ids=["batch norm", "dropout"])
@pytest.mark.parametrize("roles", [name for name in ROLES if "norms" not in name])
def test_every_way_of_running_equals_the_loop(roles: str, norm: nn.Module, way) -> None:
    model, maml, episodes = model_with(norm), maml_of(ROLES[roles], inner_optimizer=optim.adam), problems.images(3)
    expected, got = (each.value_and_grad(Unrolled(), maml.problem(model))(maml.init(model), episodes)
                     for each in (Loop(), way))  # fmt: skip
    assert_close((got.value, got.grads, got.aux), (expected.value, expected.grads, expected.aux), tolerance=1e-10)


@pytest.mark.parametrize("way", [Loop(), Vmap()], ids=["loop", "vmap"])
def test_by_default_the_numbers_are_bit_for_bit_those_without_roles(way) -> None:
    episodes, maml = problems.images(3), maml_of({})

    def run(problem_of):
        model = model_with(nn.BatchNorm2d(4))  # of its own: the first call of a model copies more than later ones
        return way.value_and_grad(Unrolled(), problem_of(model))(maml.init(model), episodes)

    def without_roles(model) -> Problem:
        return Problem(
            init=lambda meta, episode: (tree.select(meta, "init."), model.buffers),
            inner_loss=lambda meta, params, buffers, batch, step: loss_of(maml.loss, model, params, buffers, batch),
            optimizer=lambda meta: optim.sgd(0.3),
            outer_loss=lambda meta, params, buffers, tasks, step: loss_of(
                maml.loss, model, params, buffers, tasks.query
            ),
            num_inner_steps=2,
        )

    expected, got = run(without_roles), run(maml.problem)
    assert torch.equal(got.value, expected.value)
    assert list(got.grads) == list(expected.grads) == [f"init.{name}" for name in model_with().params]
    assert all(torch.equal(got.grads[name], value) for name, value in expected.grads.items())


@pytest.mark.parametrize("roles", ROLES)
def test_adapt_and_predict_are_what_the_problem_does(roles: str) -> None:
    model, maml, episode = model_with(), maml_of(ROLES[roles]), problems.one(problems.images(2))
    meta = tree.map_tensors(lambda leaf: leaf + 0.1, maml.init(model))  # trained: no longer the model's own
    adapted = maml.adapt(model, meta, model.buffers, episode.support)
    logits = maml.predict(model, meta, adapted, episode.query[0])
    value = Unrolled().value_and_grad(maml.problem(model))(meta, episode).value
    assert_close(F.cross_entropy(logits, episode.query[1]), value, tolerance=1e-13)
    whole = {**model.params, **tree.select(meta, "init."), **adapted.params}
    assert torch.equal(model(whole, adapted.buffers, episode.query[0])[0], logits)


def test_only_what_is_chosen_is_adapted_and_learned() -> None:
    model, episode = model_with(), problems.one(problems.images())
    maml = maml_of({"adapted": "head.*", "learned": THREE})
    assert list(maml.init(model)) == [f"init.{name}" for name in model.params if name in THREE]
    adapted = maml.adapt(model, maml.init(model), model.buffers, episode.support)
    assert set(adapted.params) == {"head.weight", "head.bias"}
    assert not any(torch.equal(adapted.params[name], model.params[name]) for name in adapted.params)


MISTAKES = {
    "adapted": ({"adapted": "haed.*"}, r"adapted: 'haed\.\*' fits none of the 8 names\. Did you mean 'head\.\*'\?"),
    "learned": ({"learned": ["head.bias", "head.wieght"]}, r"learned: 'head.wieght' fits none.*'head.weight'"),
    "class": ({"adapted": nn.LSTM}, "adapted: nothing is left for 'LSTM'"),
    "kind": ({"adapted": Kind.BATCH_STATISTIC}, "adapted: nothing is left for 'batch_statistic'"),
    "no filter": ({"learned": 3}, "learned: 3 is no filter"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_with_the_name_of_the_field(mistake: str) -> None:
    roles, text = MISTAKES[mistake]
    for call in (maml_of(roles).init, maml_of(roles).problem):
        with pytest.raises(UsageError, match=text):
            call(model_with())


SMALL = (
    *("task=sinusoid", "model.hidden=[8]", "meta.num_steps=4", "meta.batch_size=3", "meta.lr=0.05"),
    *("eval.num_episodes=8", "eval.val_episodes=0", "eval.baseline=false", "device=cpu", "logger=none"),
)


def test_a_run_that_adapts_the_head_does_so_when_it_is_used(tmp_path: Path) -> None:
    chosen = ("algorithm.adapted=head.*", 'algorithm.learned=["*","!head.bias"]')
    assert metalearn.train.main([*SMALL, *chosen, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    card = json.loads((tmp_path / "run/results.json").read_text())["protocol"]
    assert (card["adapted_parameters"], card["num_adapted_parameters"]) == ("head.*", 9)
    assert (card["learned_parameters"], card["num_meta_parameters"]) == (["*", "!head.bias"], 24)
    learner = metalearn.load(tmp_path / "run")
    assert set(learner.meta) == {"init.features.0.weight", "init.features.0.bias", "init.head.weight"}
    adapted = learner.adapt([[0.0], [1.0], [2.0]], [0.0, 0.8, 0.9])
    assert set(adapted.state.params) == {"head.weight", "head.bias"}
    # The prediction is that of the learned features under the adapted head.
    x = torch.tensor([[1.5]])
    hidden = torch.relu(F.linear(x, learner.meta["init.features.0.weight"], learner.meta["init.features.0.bias"]))
    expected = F.linear(hidden, adapted.state.params["head.weight"], adapted.state.params["head.bias"])
    assert_close(adapted.outputs(x), expected, tolerance=1e-6)


def test_a_misspelt_pattern_on_the_command_line_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metalearn.train.main([*SMALL, "algorithm.adapted=haed.*", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "adapted: 'haed.*' fits none of the 4 names. Did you mean 'head.*'?" in capsys.readouterr().err
