"""What a task source and a batch of its episodes have to be: the checks that cost next to nothing.

`metalearn.testing.check_task` begins with them, and a run makes them on the first episodes of every split.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.tasks.padding import NO_LABEL
from metalearn.types import Episodes, Present

KINDS = ("classification", "regression")
_METHODS = {
    "episodes": "def episodes(self, split, indices, *, seed=0)",
    "to": "def to(self, device)",
    "protocol": "def protocol(self)",
}
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Finding:
    """One mistake of a task source.

    Attributes:
        check: which check found it, in a word.
        text: what was got and what was expected, a sentence.
        fix: what to do, a sentence.
        cause: the exception behind it, if there is one.
    """

    check: str
    text: str
    fix: str
    cause: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.text} {self.fix}"


def attribute_findings(source: Any) -> list[Finding]:
    """What is missing from a task source, or of the wrong type, before it is asked for any episode."""
    findings = []
    for name, (fits, expected) in _ATTRIBUTES.items():
        if not hasattr(source, name):
            findings.append(Finding("attribute", f"there is no `{name}`.", f"Add {expected}."))
        elif not fits(getattr(source, name)):
            findings.append(
                Finding("attribute", f"`{name}` is {getattr(source, name)!r}.", f"It has to be {expected}.")
            )
    for name, signature in _METHODS.items():
        if not callable(getattr(source, name, None)):
            findings.append(Finding("attribute", f"there is no method `{name}`.", f"Add `{signature}`."))
    if not findings and source.kind == "classification" and source.num_outputs < 2:
        text = f"`num_outputs` is {source.num_outputs} in a classification."
        findings.append(Finding("attribute", text, "It has to be the number of classes of an episode, 2 or more."))
    return findings


def batch_findings(
    source: Any, episodes: Any, *, num_tasks: int, dtype: torch.dtype = torch.float32, values: bool = True
) -> list[Finding]:
    """What is wrong with one batch of episodes, each kind of mistake once; in the order in which to mend them.

    Args:
        source: where the batch comes from; `attribute_findings` has found nothing in it.
        episodes: what its method `episodes` returned.
        num_tasks: how many it was asked for.
        dtype: of the inputs, that of the model.
        values: whether to look at all values too; shapes, dtypes and labels cost next to nothing. On another
            device than the CPU labels and masks are values too: to look at one makes the host wait for it.
    """
    if not isinstance(episodes, Episodes):
        text = f"it returned {_kind_of(episodes)}, expected metalearn.Episodes."
        return [Finding("episodes", text, "Return Episodes(support=(x, y), query=(x, y), key=keys).")]
    found: dict[str, Finding] = {}
    for name in ("support", "query"):
        for finding in _set_findings(source, name, getattr(episodes, name), num_tasks, dtype, values=values):
            found.setdefault(finding.check, finding)
            if finding.check in _STRUCTURE:
                break
    if not found:
        for finding in _episode_findings(source, episodes, num_tasks, values=values):
            found.setdefault(finding.check, finding)
    return list(found.values())


def protocol_problem(card: Any) -> str:
    """Why what a source's `protocol` returned is no plain data, in a few words; empty if it is."""
    if not isinstance(card, dict):
        return f"it is {_kind_of(card)}, not a dict"
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def real_rows(examples: Sequence[Any]) -> Tensor:
    """Which rows of a set are real, bool `[task, example]`: all of them where it is not padded."""
    if len(examples) == 3:
        mask: Tensor = examples[2].examples
        return mask
    return torch.ones(examples[1].shape[:2], dtype=torch.bool, device=examples[1].device)


def _is_shape(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_count, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_names(value: Any) -> bool:
    several = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return several and all(isinstance(each, str) for each in value)


_ATTRIBUTES: dict[str, tuple[Any, str]] = {
    "name": (lambda value: isinstance(value, str), 'a text, such as `name = "my_task"`'),
    "kind": (lambda value: value in KINDS, 'one of `kind = "classification"` and `kind = "regression"`'),
    "input_shape": (_is_shape, "the shape of one example, such as `input_shape = (2,)`"),
    "num_outputs": (_is_count, "the number of classes of an episode, or the width of a target: `num_outputs = 1`"),
    "splits": (_is_names, 'a tuple of names, such as `splits = ("train", "val", "test")`'),
}

_STRUCTURE = {"set", "tensors", "task axis", "tasks", "input_shape", "examples", "present"}
"""After one of these mistakes nothing else of the set can be looked at."""


def _set_findings(
    source: Any, name: str, examples: Any, num_tasks: int, dtype: torch.dtype, *, values: bool
) -> Iterator[Finding]:
    if not isinstance(examples, tuple) or len(examples) not in (2, 3):
        text = f"the {name} set is {_kind_of(examples)}, expected a tuple of inputs and targets."
        yield Finding("set", text, f"Return Episodes({name}=(x, y), …).")
        return
    for value, what in zip(examples, ("inputs", "targets"), strict=False):
        if not isinstance(value, Tensor):
            text = f"the {name} {what} are {_kind_of(value)}, expected a tensor [task, example, …]."
            yield Finding("tensors", text, "Make it one: torch.as_tensor(…); class names become numbers from 0.")
            return
    yield from _shape_findings(source, name, examples[0], num_tasks)
    if len(examples) == 3:
        yield from _present_findings(source, name, examples[1], examples[2], values=values)
    yield from _dtype_findings(name, examples[0], dtype)
    yield from _target_findings(source, name, examples, values=values or examples[1].device.type == "cpu")
    if any(part.requires_grad for part in examples[:2]):
        text = f"the {name} set requires grad: it carries the graph of what made it into every meta step."
        yield Finding("gradient", text, "Detach it: return x.detach(), or draw it under torch.no_grad().")
    if values:
        yield from _finite_findings(name, examples)


def _finite_findings(name: str, examples: Sequence[Any]) -> Iterator[Finding]:
    fixes = {
        "inputs": "Drop or fill the missing values, and look for a division by zero.",
        "targets": "Look for a division by zero, or a simulation that blows up.",
    }
    for value, (what, fix) in zip(examples, fixes.items(), strict=False):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).sum())
            text = f"{count} of the {value.numel()} values of the {name} {what} are not finite (NaN or infinity)."
            yield Finding("finite", text, fix)


def _shape_findings(source: Any, name: str, inputs: Tensor, num_tasks: int) -> Iterator[Finding]:
    shape, wanted = tuple(inputs.shape), tuple(source.input_shape)
    expected = f"expected [{num_tasks}, example{''.join(f', {size}' for size in wanted)}] (task, example, input_shape)."
    got = f"the {name} inputs have shape {list(shape)}, {expected}"
    if inputs.dim() == len(wanted) + 1 and shape[1:] == wanted:
        yield Finding("task axis", got, "The task axis is missing: torch.stack the tasks, also when there is one.")
    elif inputs.dim() < 2 or shape[2:] != wanted:
        own = list(shape[2:])
        fix = f"Reshape the examples, or set input_shape = ({', '.join(map(str, own))}{',' * (len(own) == 1)})."
        yield Finding("input_shape", got, fix)
    elif shape[0] != num_tasks:
        yield Finding("tasks", got, "Return one episode for every entry of `indices`, in their order.")
    elif shape[1] == 0:
        yield Finding("examples", got, f"The {name} set is empty: give it at least one example.")


def _dtype_findings(name: str, inputs: Tensor, dtype: torch.dtype) -> Iterator[Finding]:
    # int64 stays allowed: tokens for an embedding.
    if inputs.dtype not in (dtype, torch.int64):
        scaled = f".to({dtype})" + (" / 255" if inputs.dtype == torch.uint8 else "")
        yield Finding("dtype", f"the {name} inputs are {inputs.dtype}, expected {dtype}.", f"Return inputs{scaled}.")


def _target_findings(source: Any, name: str, examples: Sequence[Any], *, values: bool) -> Iterator[Finding]:
    inputs, targets = examples[:2]
    rows, shape = list(inputs.shape[:2]), list(targets.shape)
    if source.kind == "regression":
        yield from _value_findings(name, targets, [*rows, source.num_outputs], inputs)
        return
    if shape != rows:
        one_hot = shape[:2] == rows and len(shape) == 3
        fix = "Take targets.argmax(-1) of one-hot ones." if one_hot else "Return one label an example."
        yield Finding("targets", f"the {name} labels have shape {shape}, expected {rows} (task, example).", fix)
    elif targets.dtype != torch.int64:
        more = "" if targets.dtype in _INTEGERS else '; for real-valued targets set kind = "regression"'
        text = f"the {name} labels are {targets.dtype}, expected torch.int64."
        yield Finding("targets", text, f"Return labels.long(){more}.")
    elif values:
        yield from _label_findings(source, name, targets[real_rows(examples)])


def _value_findings(name: str, targets: Tensor, expected: list[int], inputs: Tensor) -> Iterator[Finding]:
    shape = list(targets.shape)
    if shape != expected:
        narrow = shape == expected[:-1] and expected[-1] == 1
        fix = "Return targets.unsqueeze(-1)." if narrow else "Reshape them, or change num_outputs."
        text = f"the {name} targets have shape {shape}, expected {expected} (task, example, num_outputs)."
        yield Finding("targets", text, fix)
    elif not targets.is_floating_point():
        text = f"the {name} targets are {targets.dtype}, expected real values ({torch.float32})."
        yield Finding("targets", text, 'Return targets.float(); for class labels set kind = "classification".')
    elif inputs.is_floating_point() and targets.dtype != inputs.dtype:
        text = f"the {name} targets are {targets.dtype} and the inputs {inputs.dtype}, expected the same."
        yield Finding("targets", text, f"Return targets.to({inputs.dtype}).")


def _label_findings(source: Any, name: str, labels: Tensor) -> Iterator[Finding]:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= source.num_outputs:
        text = (
            f"the {name} labels run from {low} to {high}, expected 0 … {source.num_outputs - 1} "
            f"(num_outputs={source.num_outputs})."
        )
        yield Finding("labels", text, "Number the classes of every episode anew from 0, or change num_outputs.")


def _present_findings(source: Any, name: str, targets: Tensor, present: Any, *, values: bool) -> Iterator[Finding]:
    wanted = {"examples": list(targets.shape[:2]), "outputs": [len(targets), source.num_outputs]}
    for part, shape in wanted.items():
        mask = getattr(present, part, None) if isinstance(present, Present) else None
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or list(mask.shape) != shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else _kind_of(present)
            text = f"the third entry of the {name} set has {got} as `{part}`, expected torch.bool {shape}."
            yield Finding("present", text, "Pad with metalearn.tasks.padding.pad_examples.")
            return
    if not values and targets.device.type != "cpu":
        return
    real = present.examples
    if bool((real[:, 1:] & ~real[:, :-1]).any()) or not bool(real[:, :1].all()):
        text = f"`Present.examples` of the {name} set has padding before a real row."
        yield Finding("present", text, "Real rows come first, at least one an episode, padding after them.")
        return
    padding = targets[~real]
    fill = 0 if targets.is_floating_point() else NO_LABEL
    if bool((padding != fill).any()):
        text = f"padded rows of the {name} set have other targets than {fill}."
        yield Finding("present", text, f"Set the targets of padding to {fill}, so that no loss can count them.")


def _episode_findings(source: Any, episodes: Episodes, num_tasks: int, *, values: bool) -> Iterator[Finding]:
    if values and source.kind == "classification":
        yield from _class_findings(source, episodes)
    key = episodes.key
    if key is None:
        return
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or list(key.shape) != [num_tasks]:
        got = f"{key.dtype} {list(key.shape)}" if isinstance(key, Tensor) else _kind_of(key)
        text = f"`key` is {got}, expected torch.int64 [{num_tasks}], one random key a task."
        yield Finding("key", text, "Take metalearn.tasks.base.episode_keys, or leave `key` out.")


def _class_findings(source: Any, episodes: Episodes) -> Iterator[Finding]:
    named = [_classes(examples, source.num_outputs) for examples in (episodes.support, episodes.query)]
    absent = named[1] & ~named[0]
    if bool(absent.any()):
        task, label = absent.nonzero()[0].tolist()
        text = f"the query set of task {task} has class {label}, of which the support set has no example."
        yield Finding("classes", text, "Draw support and query examples of the same classes.")
        return
    for name, present, examples in zip(("support", "query"), named, (episodes.support, episodes.query), strict=True):
        if len(examples) == 3 and bool((present & ~examples[2].outputs).any()):
            text = f"the {name} set has labels that its `Present.outputs` says are no classes of the episode."
            yield Finding("present", text, "Mark in `outputs` every class that the episode has.")


def _classes(examples: Sequence[Any], num_outputs: int) -> Tensor:
    """Which labels the real rows of each task have, bool `[task, output]`."""
    labels = torch.where(real_rows(examples), examples[1], torch.full_like(examples[1], num_outputs))
    counts = torch.zeros(len(labels), num_outputs + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(1, labels, torch.ones_like(labels))[:, :num_outputs] > 0


def _kind_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {len(value)} ({_kind_of(value[0])} …)"
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    return f"a {type(value).__name__}"
