"""Every YAML composes, and what it names can be built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metalearn import optim
from metalearn.config import build_experiment, config_directory, read_config, write_config
from metalearn.config.build import (
    build_algorithm,
    build_inner_optimizer,
    build_logger,
    build_module,
    build_source,
    without_foreign_defaults,
)
from metalearn.config.choices import register_schemas
from metalearn.config.schema import InnerOptimizer, TrainConfig, check_bounds
from metalearn.config.stored import identity, plain
from metalearn.errors import UsageError
from metalearn.training import Experiment
from tests.tasks.pictures import tree_files, write_folder

CONFIGS = config_directory()
CHOICES = sorted(
    f"{path.parent.name}={path.stem}" for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in {"hydra"}
)
NEEDS_A_TARGET = {
    "task=custom": "task._target_=metalearn.tasks.Sinusoid",
    "model=custom": "model._target_=torch.nn.Identity",
}

OF_CIFAR = ("experiment=cifar_fs", "task=cifar_fs", "task=fc100")
# Built from data of their own below; task=learn2learn in tests/tasks/interop/test_learn2learn.py, where the package is.
NEEDS_DATA = (
    *("experiment=omniglot", "task=omniglot", *OF_CIFAR),
    *("task=mini_imagenet", "task=image_folder", "task=learn2learn", "task=arrays"),
)
OF_IMAGES = ("model=conv4", "model=resnet12", "model=torchvision")


def composed(*overrides: str) -> TrainConfig:
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("train", overrides=list(overrides)))
    assert isinstance(config, TrainConfig)
    check_bounds(config)
    return config


def test_there_is_a_choice_for_every_group() -> None:
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert groups == {choice.partition("=")[0] for choice in CHOICES}
    assert {"task", "model", "algorithm", "inner", "metagrad", "execution", "meta", "eval", "logger"} <= groups


BUILT = [choice for choice in CHOICES if choice not in NEEDS_A_TARGET and not choice.startswith(NEEDS_DATA)]


@pytest.mark.parametrize("choice", sorted({*CHOICES} - {*BUILT}))  # the others below
def test_every_choice_composes(choice: str) -> None:
    config = composed(choice, *([NEEDS_A_TARGET[choice]] if choice in NEEDS_A_TARGET else []))
    assert config.meta.num_steps > 0


def test_evaluate_composes() -> None:
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert compose("evaluate").split == "test"


@pytest.mark.parametrize("choice", BUILT)
def test_what_a_choice_names_is_built(choice: str) -> None:
    # The sinusoid and the small model make the other groups' choices cheap to build.
    task = [] if choice.startswith(("task=", "experiment=", *OF_IMAGES)) else ["task=sinusoid"]
    built = build_experiment(composed(*task, choice, "device=cpu"))
    assert isinstance(built, Experiment)
    assert sum(parameter.numel() for parameter in built.module.parameters()) > 0


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith(("experiment=omniglot", "task=omniglot"))])
def test_what_names_omniglot_is_built(choice: str, omniglot_root: Path) -> None:
    built = build_experiment(composed(choice, "device=cpu", f"task.root={omniglot_root}"))
    episodes = built.source.episodes("train", [0], seed=0)
    assert built.module(episodes.support[0][0]).shape[-1] == composed(choice).task["ways"]


@pytest.mark.slow
@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith(OF_CIFAR)])
def test_what_names_cifar_is_built(choice: str, cifar_root: Path, shared_cache: Path) -> None:
    places = (f"task.root={cifar_root}", f"task.cache_dir={shared_cache}")
    built = build_experiment(composed(choice, "device=cpu", *places))
    episodes = built.source.episodes("train", [0], seed=0)
    assert built.module(episodes.support[0][0]).shape[-1] == composed(choice).task["ways"]


def test_image_folder_is_built_from_its_root(tmp_path: Path) -> None:
    counts = {f"{split}/{split}{number}": 6 for split in ("train", "val", "test") for number in range(5)}
    write_folder(tmp_path / "mine", tree_files(counts, width=40, height=30))
    overrides = (f"task.root={tmp_path / 'mine'}", f"task.cache_dir={tmp_path / 'cache'}", "task.image_size=16")
    built = build_experiment(composed("task=image_folder", "device=cpu", *overrides))
    episodes = built.source.episodes("train", [0], seed=0)
    assert built.module(episodes.support[0][0]).shape == (5, 5)
    lists = "task.splits={train: [train/train0, val/val0], test: [train/train1, val/val1]}"
    built = build_experiment(composed("task=image_folder", "device=cpu", "task.ways=2", *overrides, lists))
    assert built.source.class_names["test"] == ("train/train1", "val/val1")
    with pytest.raises(UsageError, match=r"`root` is missing: set task\.root"):
        build_experiment(composed("task=image_folder", "device=cpu"))


@pytest.mark.parametrize(
    ("overrides", "kind", "num_outputs"),
    [
        (["task.label=kind"], "classification", 5),
        (["task.label=kind", "task.features=[u]", "task.ways=[2,4]", "task.shots=[1,3]"], "classification", 4),
        (["task.label=mark", "task.group=shop"], "classification", 2),
        (["task.label=u", "task.group=shop", "task.kind=regression", "inner=regression"], "regression", 1),
        (["task.label=kind", "task.splits={train: [0, 1], test: [2, 3]}", "task.ways=2"], "classification", 2),
    ],
)
def test_arrays_are_built_from_their_root(tmp_path: Path, overrides: list[str], kind: str, num_outputs: int) -> None:
    rows = [f"{row},{row % 7},{row % 30},{row % 2},{row // 60}" for row in range(900)]
    (tmp_path / "table.csv").write_text("\n".join(["u,v,kind,mark,shop", *rows]) + "\n")
    built = build_experiment(composed("task=arrays", f"task.root={tmp_path / 'table.csv'}", "device=cpu", *overrides))
    assert (built.source.kind, built.source.num_outputs) == (kind, num_outputs)
    episodes = built.source.episodes("train", [0], seed=0)
    assert built.module(episodes.support[0][0]).shape[-1] == num_outputs


def test_arrays_need_a_root() -> None:
    with pytest.raises(UsageError, match=r"`root` is missing: set task\.root"):
        build_experiment(composed("task=arrays", "device=cpu"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["task.family=gaussian_process", "task.kernel=matern52", "task.length_scale=[0.5,2]", "task.shots=[3,8]"],
        ["task.family=mixture", "task.families=[sinusoid, {family: gaussian_process, weight: 2, scale: 2.0}]"],
        ["task.family=sinusoid", "task.amplitude=2", "task.phase=[0,1]", "task.noise=0.1"],
    ],
)
def test_families_of_functions_are_built(overrides: list[str]) -> None:
    built = build_experiment(composed("task=regression", "device=cpu", *overrides))
    assert built.module(built.source.episodes("train", [0]).query[0][0]).shape == (10, 1)


@pytest.mark.parametrize(
    ("overrides", "model", "inner_lr", "batch_size"),
    [
        ([], "Conv4", 0.4, 16),
        (["task=omniglot"], "Conv4", 0.4, 16),
        (["task=cifar_fs"], "Conv4", 0.01, 16),
        (["task=image_folder"], "Conv4", 0.01, 16),
        (["task=sinusoid"], "MLP", 0.01, 25),
        (["task=regression"], "MLP", 0.01, 25),
        (["task=arrays"], "MLP", 0.4, 16),
        (["task=sinusoid", "model=conv4"], "Conv4", 0.01, 25),
        (["task=sinusoid", "inner=classification"], "MLP", 0.4, 25),
        (["experiment=sinusoid_10shot"], "MLP", 0.001, 25),
        (["experiment=sinusoid_10shot", "inner.lr=0.3", "meta.batch_size=2"], "MLP", 0.3, 2),
        (["experiment=omniglot_5way_1shot_paper"], "Conv4", 0.4, 32),
    ],
)
def test_groups_follow_the_task_unless_chosen(
    overrides: list[str], model: str, inner_lr: float, batch_size: int
) -> None:
    config = composed(*overrides)
    assert config.model["_target_"].endswith(model)
    assert config.inner.lr == inner_lr
    assert config.meta.batch_size == batch_size


PAPER = {"meta.num_steps": 60000, "task.split": "random", "task.query_shots": 1, "model.downsampling": "stride"}


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("sinusoid_10shot", {"meta.num_steps": 70000, "meta.batch_size": 25, "inner.num_steps": 1, "inner.lr": 0.001}),
        ("sinusoid_5shot", {"task.shots": 5, "eval.num_inner_steps": 10, "eval.num_episodes": 600}),
        ("omniglot_5way_1shot", {"task.split": "vinyals", "model.filters": 64, "inner.lr": 0.4, "task.query_shots": 5}),
        ("omniglot_5way_1shot_paper", PAPER | {"meta.batch_size": 32, "eval.num_inner_steps": 3, "inner.lr": 0.4}),
        ("omniglot_20way_1shot", PAPER | {"meta.batch_size": 16, "inner.num_steps": 5, "inner.lr": 0.1}),
    ],
)
def test_experiments_hold_their_protocols(experiment: str, expected: dict[str, Any]) -> None:
    config = plain(composed(f"experiment={experiment}"))
    for key, value in expected.items():
        group, name = key.split(".")
        assert config[group][name] == value, key


def test_fomaml_is_maml_with_the_first_order_strategy() -> None:
    built = build_experiment(composed("task=sinusoid", "algorithm=fomaml", "device=cpu"))
    assert type(built.algorithm).__name__ == "MAML"
    assert type(built.strategy).__name__ == "FirstOrder"


def test_the_seed_fixes_the_model_and_leaves_the_global_generator() -> None:
    config = composed("task=sinusoid", "seed=3")
    source = build_source(config)
    before = torch.get_rng_state()
    one, two = build_module(config, source), build_module(config, source)
    assert torch.equal(torch.get_rng_state(), before)
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right)
    other = build_module(composed("task=sinusoid", "seed=4"), source)
    assert any(not torch.equal(left, right) for left, right in zip(one.parameters(), other.parameters(), strict=True))


def test_the_inner_optimizer_is_any_of_the_family_with_its_options(tmp_path: Path) -> None:
    assert [each.value for each in InnerOptimizer] == list(optim.FAMILY)
    config = composed("task=sinusoid", "inner.optimizer=rmsprop", "inner.options={momentum: 0.9, centered: true}")
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    make, params = build_inner_optimizer(config.inner), {"w": torch.ones(2)}
    expected = optim.rmsprop(0.2, momentum=0.9, centered=True)
    got, wanted = (each.update(params, each.init(params), params)[0]["w"] for each in (make(0.2), expected))
    assert torch.equal(got, wanted)
    for name in optim.FAMILY:
        assert build_inner_optimizer(composed("task=sinusoid", f"inner.optimizer={name}").inner) is optim.FAMILY[name]


def test_a_stored_config_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = composed("task=sinusoid", "inner.optimizer=adam", "meta.clip=1.5", "meta.lr=1e-5", "logger=wandb")
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config


def test_a_stored_config_takes_changes_of_the_right_type(tmp_path: Path) -> None:
    write_config(composed("task=sinusoid"), tmp_path)
    assert read_config(tmp_path, [("meta.num_steps", 7)]).meta.num_steps == 7
    with pytest.raises(UsageError, match=r"meta\.num_steps=x: expected a whole number, got 'x'"):
        read_config(tmp_path, [("meta.num_steps", "x")])
    with pytest.raises(UsageError, match="Did you mean 'num_steps'"):
        read_config(tmp_path, [("meta.num_stepz", 7)])


@pytest.mark.parametrize(
    "content", ["- a list", "inner: {foo: 3}", "inner: [", "!!python/object/apply:os.system [false]"]
)
def test_a_foreign_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"config\.yaml"):
        read_config(tmp_path)


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "builtins.exec", "pathlib.Path"])
@pytest.mark.parametrize("group", ["task", "model", "algorithm", "metagrad"])
def test_a_stored_config_calls_nothing_but_what_a_group_is_about(tmp_path: Path, group: str, target: str) -> None:
    config = composed("task=sinusoid")
    getattr(config, group)["_target_"] = target
    write_config(config, tmp_path)
    with pytest.raises(UsageError, match=rf"{group}\._target_={target} is not"):
        build_experiment(read_config(tmp_path))


def test_what_may_change_on_resuming_is_not_part_of_the_identity() -> None:
    one = composed("task=sinusoid")
    free = composed("task=sinusoid", "meta.num_steps=7", "eval.num_episodes=3", "logger=none", "device=cpu")
    assert identity(one) == identity(free)
    assert identity(one) != identity(composed("task=sinusoid", "inner.lr=0.5"))
    assert identity(one) != identity(composed("task=sinusoid", "seed=1"))


def test_only_defaults_are_left_out_for_another_class() -> None:
    config = composed("task._target_=metalearn.tasks.Sinusoid")
    reduced, left_out = without_foreign_defaults(config, {"task._target_"})
    assert "task.ways" in left_out
    assert "task.shots" not in left_out
    assert set(reduced.task) == {"_target_", "shots", "query_shots"}
    kept, _ = without_foreign_defaults(config, {"task._target_", "task.ways"})
    with pytest.raises(UsageError, match=r"Sinusoid takes no task\.ways"):
        build_source(kept)


def test_an_algorithm_of_ones_own_need_not_know_our_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an_algorithm.py").write_text(
        "class Plain:\n"
        "    def __init__(self, *, loss, inner_lr, num_inner_steps, inner_optimizer): pass\n"
        "    def problem(self, model): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = composed("algorithm=fomaml", "algorithm._target_=an_algorithm.Plain", "algorithm.normalisation=set")
    reduced, left_out = without_foreign_defaults(config, {"algorithm._target_"})
    assert "algorithm.normalisation" in left_out
    assert set(reduced.algorithm) == {"_target_", "requires_metagrad"}
    kept, _ = without_foreign_defaults(config, {"algorithm._target_", "algorithm.normalisation"})
    with pytest.raises(UsageError, match=r"Plain takes no algorithm\.normalisation"):
        build_algorithm(kept, build_source(kept))


@pytest.mark.parametrize("name", ["none", "console", "wandb", "tensorboard"])
def test_loggers_are_built(name: str) -> None:
    logger, progress = build_logger(composed("task=sinusoid", f"logger={name}"))
    assert (logger is None) == (name in {"none", "console"})
    assert callable(progress.phase)
