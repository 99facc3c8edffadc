"""Open groups: finding what a `_target_` names, checking what it is given, and building it."""

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from metalearn.errors import PluginError, UsageError, did_you_mean
from metalearn.training.guard import in_a_line, own_traceback

_OFFERS = {
    "task": ("episodes", "a task source (a class with an `episodes` method, see metalearn.tasks.TaskSource)"),
    "algorithm": ("problem", "an algorithm (a class with a `problem` method, see metalearn.algorithms)"),
    "metagrad": ("value_and_grad", "a strategy (a class with a `value_and_grad` method, see metalearn.metagrad)"),
}

_EXAMPLES = {int: "40", float: "0.5", str: "a", bool: "true"}


def locate(group: str, node: Mapping[str, Any], *, key: str | None = None) -> Callable[..., Any]:
    """What `node["_target_"]` names, once it is known to make what the group is about.

    A run directory's config.yaml names classes too, and reading somebody else's run must call nothing but those: a
    function is accepted only if its return annotation says that it makes such an object.

    Args:
        group: what the object has to be: one of "task", "model", "algorithm", "metagrad".
        node: its configuration.
        key: where the node stands, for errors; by default the group.

    Raises:
        UsageError: nothing is named, it can not be imported, or it is something else.
    """
    key = key or group
    target = node.get("_target_")
    if not isinstance(target, str) or target == "???":
        raise UsageError(f"{key}._target_ names no class. Give it as {key}._target_=my_module.MyClass.")
    found = _import(key, target)
    made = found if inspect.isclass(found) else _hints(found).get("return")
    if group == "model":
        fits, wanted = inspect.isclass(made) and issubclass(made, nn.Module), "a model (a torch.nn.Module class)"
    else:
        attribute, wanted = _OFFERS[group]
        fits = inspect.isclass(made) and callable(getattr(made, attribute, None))
    if not fits or not callable(found):
        raise UsageError(
            f"{key}._target_={target} is not {wanted}. A function has to say what it makes by its return annotation."
        )
    make: Callable[..., Any] = found
    return make


def arguments_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a node that are arguments of its target."""
    return {name: value for name, value in node.items() if name != "_target_"}


def accepts(target: Callable[..., Any], name: str) -> bool:
    """Whether `target` takes the keyword argument `name`."""
    parameters = inspect.signature(target).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def has_default(target: Callable[..., Any], name: str) -> bool:
    """Whether `target` has a default of its own for the argument `name`."""
    parameter = inspect.signature(target).parameters.get(name)
    return parameter is not None and parameter.default is not parameter.empty


def construct(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    group: str,
    key: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Calls `target` with configured `arguments` and those `given` by the program; `key` is as in `locate`.

    Raises:
        UsageError: an argument is unknown, missing or of another type than annotated; or our own target's ValueError.
        PluginError: whatever else a target raises that is a user's own.
    """
    given, key = given or {}, key or group
    check_arguments(target, arguments, group=key, given=given)
    own = (getattr(target, "__module__", "") or "").partition(".")[0] == "metalearn"
    try:
        return target(**arguments, **given)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if own and not isinstance(error, (ValueError, OSError)):
            raise
        if own:
            raise UsageError(f"{key}: {' '.join(str(error).split())}") from error
        name = getattr(target, "__qualname__", str(target))
        raise PluginError(f"{key}: {name}(…) raised {in_a_line(error)}", own_traceback(error)) from error


def check_arguments(
    target: Callable[..., Any], arguments: Mapping[str, Any], *, group: str, given: Collection[str] = ()
) -> None:
    """Compares configured arguments with the signature and the plain annotations of `target`.

    Raises:
        UsageError: an argument is unknown, missing or of another type than annotated.
    """
    parameters = inspect.signature(target).parameters
    hints = _hints(target.__init__ if inspect.isclass(target) else target)
    known = [name for name in parameters if name not in given]
    name_of_target = getattr(target, "__qualname__", str(target))
    for name, value in arguments.items():
        if name in given:
            raise UsageError(f"{group}.{name} is not yours to set: it follows from the rest of the configuration.")
        if not accepts(target, name):
            raise UsageError(f"{name_of_target} takes no {group}.{name}. {did_you_mean(name, known)}")
        if value == "???":
            raise UsageError(f"{group}.{name} has no value: give it as {group}.{name}=….")
        if not _fits(value, hints.get(name, Any)):
            raise UsageError(f"{group}.{name}={value}: expected {_describe(hints[name])}, got {value!r}.")
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if required and parameter.kind is not parameter.VAR_POSITIONAL and name not in {*arguments, *given}:
            raise UsageError(f"{name_of_target} needs {group}.{name}: give it as +{group}.{name}=….")


def _import(group: str, target: str) -> Any:
    module_name, _, name = target.rpartition(".")
    try:
        module = import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(f"{group}._target_={target} can not be imported: {error}.") from error
        raise UsageError(
            f"{group}._target_={target}: there is no module {error.name!r}. It has to be installed, or lie in the "
            "current folder."
        ) from None
    except (Exception, SystemExit) as error:
        text = f"{group}._target_={target} can not be imported ({in_a_line(error)})."
        raise PluginError(text, own_traceback(error)) from error
    if module is None:
        raise UsageError(f"{group}._target_={target!r} has to be written module.Name.")
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise UsageError(f"{group}._target_={target}: {module_name} has no {name!r}. {did_you_mean(name, public)}")
    return getattr(module, name)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # an annotation that only a type checker can follow
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin in (tuple, list, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        several = origin is not tuple or parts[-1:] == (Ellipsis,)
        each = [parts[0]] * len(value) if several and parts else list(parts)
        return len(each) == len(value) and all(map(_fits, value, each))
    if hint in (int, float):
        number = (int,) if hint is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return value is None if hint is type(None) else isinstance(value, hint)
    return True  # a class of somebody's own: its constructor knows better


def _describe(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, parts))
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and parts[-1:] != (Ellipsis,)
        examples = [_EXAMPLES.get(part, "…") for part in (parts if fixed else parts[:1] * 2)]
        return f"a list{f' of {len(parts)}' if fixed else ''}, such as [{','.join(examples)}]"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(hint, str(hint).replace("typing.", ""))
