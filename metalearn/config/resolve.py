"""Tasks named elsewhere than by `task=…`: `test_task` and the sources of a mixture. Here they become full nodes.

A run's config.yaml holds the full nodes, so that it can be read where a group file is no longer what it was.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metalearn.config.choices import group_choice
from metalearn.config.schema import TrainConfig
from metalearn.errors import UsageError

MIXTURE = "metalearn.tasks.Mixture"


def resolved(config: TrainConfig, *, config_dir: str | None = None) -> TrainConfig:
    """`config` with every named task replaced by its group file's node; one that is resolved stays as it is.

    Args:
        config: as it was composed.
        config_dir: the folder of `--config-dir`, which may hold choices too.

    Raises:
        UsageError: there is no such choice, or an entry is no task.
    """
    task = full_task(config.task, key="task", config_dir=config_dir)
    return replace(config, task=task, test_task=full_test_task(config.test_task, task=task, config_dir=config_dir))


def full_test_task(
    node: Mapping[str, Any] | None, *, task: Mapping[str, Any], config_dir: str | None = None
) -> dict[str, Any] | None:
    """The full node of `test_task`: `name` is a choice of the group task; without a name it is `task`, changed.

    Raises:
        UsageError: there is no such choice.
    """
    if not node:
        return None
    rest = {name: value for name, value in node.items() if name != "name"}
    if node.get("name") is not None:
        rest = {**_choice(node["name"], key="test_task.name", config_dir=config_dir), **rest}
    elif "_target_" not in rest:
        rest = {**task, **rest}
    return full_task(rest, key="test_task", config_dir=config_dir)


def full_task(node: Mapping[str, Any], *, key: str, config_dir: str | None = None) -> dict[str, Any]:
    """A task's node, with the sources of a mixture as full nodes too, to any depth.

    Raises:
        UsageError: an entry of a mixture is no task, or there is no such choice.
    """
    if not is_mixture(node):
        return dict(node)
    entries = node.get("sources")
    if not isinstance(entries, (list, tuple)) or not entries:
        raise UsageError(
            f"{key}.sources={entries}: a mixture needs a list of tasks, such as "
            f"'{key}.sources=[glyphs,{{task: omniglot, weight: 2}}]'."
        )
    full = [
        _full_entry(entry, key=f"{key}.sources[{position}]", config_dir=config_dir)
        for position, entry in enumerate(entries)
    ]
    return {**node, "sources": full}


def is_mixture(node: Mapping[str, Any]) -> bool:
    """Whether a task's node is a mixture of other ones."""
    return node.get("_target_") == MIXTURE


def _full_entry(entry: Any, *, key: str, config_dir: str | None) -> dict[str, Any]:
    given = {"task": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping) or not ("task" in given or "_target_" in given):
        raise UsageError(f"{key}={entry}: expected a task's name, or a mapping such as {{task: glyphs, weight: 2}}.")
    node = {str(name): value for name, value in given.items() if name != "task"}
    if "task" in given:
        node = {**_choice(given["task"], key=f"{key}.task", config_dir=config_dir), **node}
    return full_task(node, key=key, config_dir=config_dir)


def _choice(name: Any, *, key: str, config_dir: str | None) -> dict[str, Any]:
    if not isinstance(name, str):
        raise UsageError(f"{key}={name}: expected the name of a task, such as glyphs.")
    try:
        return dict(group_choice("task", name, config_dir=config_dir))
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None
