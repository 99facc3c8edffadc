"""The rooms of the package, read from its imports: an arrow never points up."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "metalearn"
LEAVES = {"errors", "types", "random", "tree", "losses", "files", "patterns", "torchvision_import"}
# What a room may import of ours beside the leaves and itself: the rooms below it.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "random": set(),
    "tree": set(),
    "losses": set(),
    "files": set(),
    "patterns": set(),
    "torchvision_import": set(),
    "models": set(),
    "tasks": set(),
    "optim": set(),
    "captured": set(),
    "diagnosis": set(),
    "functional": {"diagnosis"},
    "compilation": {"diagnosis", "functional"},
    "sequence": {"functional"},
    "state": {"functional"},
    "normalisation": {"functional"},
    "problem": {"optim"},
    "inner": {"optim", "problem", "captured", "diagnosis"},
    "stepping": {"inner", "optim", "diagnosis"},
    "metagrad": {"inner", "problem", "optim", "captured", "diagnosis"},
    "execution": {"metagrad", "inner", "problem", "functional", "captured", "compilation", "diagnosis"},
    "ensembles": {"execution", "functional", "inner", "state", "stepping"},
    "algorithms": {"metagrad", "inner", "problem", "optim", "functional", "normalisation", "state"},
    "training": {
        "execution", "algorithms", "tasks", "metagrad", "problem", "inner", "functional", "state", "normalisation",
        "compilation",
    },
    "sweeps": {"training"},
    "config": {"sweeps", "training", "execution", "algorithms", "tasks", "models", "metagrad", "optim"},
    "use": {"config", "training", "functional", "normalisation", "tasks"},
    "adapt": {"config", "use", "inner"},
    "train": {"config", "sweeps", "training"},
    "compile_ahead": {"config", "training"},
    "evaluate": {"config", "training"},
    "compare": {"config", "training"},
    "testing": {
        "metagrad", "inner", "problem", "optim", "functional", "execution", "algorithms", "tasks", "models", "state",
    },
}  # fmt: skip
# The rooms in the room of tasks, and what each may import of the others; the files beside them are for all.
TASKS_BELOW: dict[str, set[str]] = {
    "images": set(),
    "functions": set(),
    "tables": set(),
    "cifar_fs": {"images"},
    "glyphs": {"images"},
    "mini_imagenet": {"images"},
    "omniglot": {"images"},
    "interop": {"images"},
    "classification": {"images"},  # a file, and only to augment
}
# Of the leaves, these see no other one but those named.
LEAF_BELOW = {"errors": set(), "types": set(), "random": {"types", "errors"}, "tree": {"types", "errors"}}
FRONT = "__init__"


def imports_of(tree: ast.AST, *, module: str) -> set[str]:
    """The full names of the modules that a file imports; `module` is its own, for relative imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def room_of(name: str) -> str | None:
    """`metalearn.tasks.base` -> `tasks`; `None` for what is not ours."""
    parts = name.split(".")
    return parts[1] if parts[0] == "metalearn" and len(parts) > 1 else None


def violations(room: str, imported: set[str]) -> set[str]:
    rooms = {each for each in map(room_of, imported) if each in BELOW and each != room}
    allowed = BELOW[room] | (LEAF_BELOW.get(room, LEAVES) if room in LEAVES else LEAVES)
    return rooms - allowed


def rooms_of_tasks(imported: set[str]) -> set[str]:
    """The rooms in the room of tasks that these names are of."""
    parts = [name.split(".") for name in imported if name.startswith("metalearn.tasks.")]
    return {each[2] for each in parts if (PACKAGE / "tasks" / each[2]).is_dir()}


FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_import_points_up(path: Path) -> None:
    module = module_name(path)
    room = module.split(".")[1]
    if room == FRONT:
        return  # the package's front door shows what lies in the rooms
    assert room in BELOW, f"{module} is in no room: give {room!r} its place in BELOW"
    assert violations(room, imports_of(ast.parse(path.read_text(encoding="utf-8")), module=module)) == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "tasks").rglob("*.py")), ids=module_name)
def test_no_import_points_up_among_the_rooms_of_tasks(path: Path) -> None:
    module = module_name(path)
    room = module.split(".")[2]
    if room == FRONT:
        return
    imported = imports_of(ast.parse(path.read_text(encoding="utf-8")), module=module)
    assert rooms_of_tasks(imported) - {room} <= TASKS_BELOW.get(room, set())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_hydra_and_omegaconf_stay_in_config(path: Path) -> None:
    module = module_name(path)
    imported = imports_of(ast.parse(path.read_text(encoding="utf-8")), module=module)
    foreign = {name for name in imported if name.split(".")[0] in {"hydra", "omegaconf"}}
    assert module.startswith("metalearn.config") or foreign == set()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_loggers_packages_are_imported_only_when_asked_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = imports_of(ast.Module(body=list(at_import), type_ignores=[]), module=module_name(path))
    assert not {name for name in imported if name.split(".")[0] in {"wandb", "tensorboard"} or "tensorboard" in name}


@pytest.mark.parametrize(
    ("room", "code", "expected"),
    [
        ("optim", "from metalearn.training import train", {"training"}),
        ("metagrad", "import metalearn.algorithms.maml", {"algorithms"}),
        ("tasks", "def f():\n    from metalearn import models", {"models"}),
        ("random", "from metalearn import losses", {"losses"}),
        ("training", "from metalearn.execution import Loop", set()),
        ("inner", "from metalearn import random, tree", set()),
    ],
)
def test_an_upward_arrow_is_found(room: str, code: str, expected: set[str]) -> None:
    assert violations(room, imports_of(ast.parse(code), module=f"metalearn.{room}")) == expected


def test_a_relative_import_is_followed() -> None:
    assert "metalearn.training" in imports_of(ast.parse("from ..training import train"), module="metalearn.optim.sgd")
