"""Episodes from several task sources, each drawn with its weight."""

import copy
import itertools
import math
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource, episode_keys
from metalearn.tasks.padding import merge, pad_examples
from metalearn.types import Episodes

Weighted: TypeAlias = tuple[TaskSource, float]
"""A source and how often it is drawn, relative to the others."""


class Mixture(TaskSource):
    """A task source whose every episode comes from one of several sources, chosen by weight.

    Episode `i` of the mixture is episode `i` of the chosen source under the same seed, and the choice is a function of
    (split, index, seed) too. Sources of other ways, shots or numbers of points are padded to the largest, with
    `metalearn.types.Present` saying what is real; the sets of a mixture without such differences are not.

    A split that some sources do not have is drawn from those that have it.

    Attributes:
        components: the sources by name.
        weights: of each, adding up to 1.
        class_names: by split, the classes of the sources that name theirs, as `component/class`.
        differing: the optional attributes (`image_format`, `standardisation`, …) that the sources do not agree on.

    Example:
        >>> from metalearn.tasks import Sinusoid
        >>> mixed = Mixture({"narrow": (Sinusoid(x_range=(-1, 1)), 3), "wide": (Sinusoid(), 1)})
        >>> mixed.weights
        {'narrow': 0.75, 'wide': 0.25}
    """

    kind: Literal["classification", "regression"]
    image_format: Any
    standardisation: Any
    label_names: Any
    scaled_uint8: Any

    def __init__(
        self,
        sources: Mapping[str, Weighted] | Sequence[Weighted],
        *,
        name: str = "mixture",
        allow_shared_classes: bool = False,
    ) -> None:
        """A mixture of sources of one kind with inputs of one shape.

        Args:
            sources: `(source, weight)` by name, or a list of them, which takes the sources' own names.
            name: of the mixture, for the protocol card.
            allow_shared_classes: whether a class may be in one split of one source and in another split of another one.
                Refused by default, because a model would be tested on classes that it was trained on.

        Raises:
            UsageError: no source, a wrong weight, sources that do not go together, or such a shared class.
        """
        if not isinstance(sources, Mapping | Sequence) or isinstance(sources, str):
            raise UsageError(f"A mixture is of {{name: (source, weight)}} or [(source, weight)], got {sources!r}.")
        named = sources if isinstance(sources, Mapping) else _named(sources)
        checked = {str(each): _checked(str(each), pair) for each, pair in named.items()}
        if not checked:
            raise UsageError("A mixture needs at least one (source, weight), got none.")
        total = sum(weight for _, weight in checked.values())
        if total <= 0:
            raise UsageError("The weights of a mixture are all 0. Give at least one source a weight above 0.")
        self.name = name
        self.components = {each: source for each, (source, _) in checked.items()}
        self.weights = {each: weight / total for each, (_, weight) in checked.items()}
        self._check_agreement()
        first = next(iter(self.components.values()))
        self.kind, self.input_shape = first.kind, tuple(first.input_shape)
        self.num_outputs = max(source.num_outputs for source in self.components.values())
        self.splits = tuple(dict.fromkeys(split for source in self.components.values() for split in source.splits))
        self.class_names = _class_names(self.components, self.splits)
        if not allow_shared_classes:
            _refuse_shared_classes(self.components)
        # What other code asks a source for, where the sources agree on it.
        self.differing = tuple(each for each in _OPTIONAL if _differs(self.components.values(), each))
        for attribute in _OPTIONAL:
            value = None if attribute in self.differing else getattr(first, attribute, None)
            setattr(self, attribute, value)
        self._layouts = {split: self._layout(split) for split in self.splits}
        self._device = torch.device("cpu")

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`; one call of each source that was chosen."""
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device="cpu")
        index = torch.as_tensor(indices, device="cpu").to(torch.int64)
        layout, chosen = self._layouts[split], self._chosen(split, keys)
        parts, positions = [], []
        for number, name in enumerate(layout.names):
            position = torch.nonzero(chosen == number)[:, 0]
            # An empty batch still has to have shapes: the first source gives them.
            if len(position) or (number == 0 and not len(index)):
                part = self.components[name].episodes(split, index[position].tolist(), seed=seed)
                parts.append(self._padded(part, layout, self.components[name].num_outputs, keys[position]))
                positions.append(position.to(self._device))
        return merge(parts, positions, own_outputs=[self.num_outputs] * len(parts), num_outputs=self.num_outputs)

    def chosen(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> list[str]:
        """The names of the components that these episodes come from."""
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device="cpu")
        return [self._layouts[split].names[number] for number in self._chosen(split, keys).tolist()]

    def to(self, device: torch.device | str) -> "Mixture":
        """The same mixture with its sources on `device`."""
        moved = copy.copy(self)
        moved.components = {name: source.to(device) for name, source in self.components.items()}
        moved._device = torch.device(device)
        return moved

    def protocol(self) -> dict[str, Any]:
        """The sources' own cards with their weights, as plain data."""
        cards = {name: {"weight": self.weights[name], **source.protocol()} for name, source in self.components.items()}
        # The counts that all sources share stand where they stand for a single source.
        common = {
            key: value
            for key, value in next(iter(cards.values())).items()
            if key in {"ways", "shots", "query_shots"} and all(card.get(key) == value for card in cards.values())
        }
        return {"dataset": self.name, **common, "input_shape": list(self.input_shape), "components": cards}

    def _chosen(self, split: str, keys: Tensor) -> Tensor:
        """The number of the component that each episode comes from, among those of the split."""
        # Salted by what the mixture consists of: the choice inside a mixture of mixtures is then another draw.
        draws = random.uniform(random.fold_in(keys, zlib.crc32(_signature(self).encode())), (), dtype=torch.float64)
        return torch.bucketize(draws, self._layouts[split].bounds, right=True)

    def _layout(self, split: str) -> "_Layout":
        names = [name for name, source in self.components.items() if split in source.splits]
        weights = torch.tensor([self.weights[name] for name in names], dtype=torch.float64)
        if float(weights.sum()) == 0:
            raise UsageError(f"Split {split!r} is only in sources of weight 0 ({', '.join(names)}). Raise one of them.")
        bounds = (weights / weights.sum()).cumsum(0)[:-1]
        # One episode of each tells the sizes: those of a batch must not depend on what happened to be drawn.
        samples = {name: self.components[name].episodes(split, [0], seed=0) for name in names}
        rows = [(part.support[1].shape[1], part.query[1].shape[1]) for part in samples.values()]
        pads = (
            len(set(rows)) > 1
            or any(len(each) == 3 for part in samples.values() for each in (part.support, part.query))
            or any(self.components[name].num_outputs != self.num_outputs for name in names)
        )
        return _Layout(tuple(names), bounds, max(row[0] for row in rows), max(row[1] for row in rows), pads)

    def _padded(self, part: Episodes, layout: "_Layout", own_outputs: int, keys: Tensor) -> Episodes:
        # A source without keys gets the mixture's, so that a batch has them whatever was drawn.
        key = random.fold_in(keys, 0).to(self._device) if part.key is None else part.key
        if not layout.pads:
            return part._replace(key=key)
        sizes = {"num_outputs": self.num_outputs, "own_outputs": own_outputs}
        return Episodes(
            support=pad_examples(part.support, num_examples=layout.num_support, **sizes),
            query=pad_examples(part.query, num_examples=layout.num_query, **sizes),
            key=key,
        )

    def _check_agreement(self) -> None:
        fixes = {
            "kind": "Mix classifications with classifications.",
            "input_shape": "Give all of them inputs of one shape (pictures: image_size=… and one colour).",
        }
        if {source.kind for source in self.components.values()} == {"regression"}:
            fixes["num_outputs"] = "Regressions need targets of one width."
        for attribute, fix in fixes.items():
            values = {name: _plain(getattr(source, attribute)) for name, source in self.components.items()}
            usual = Counter(values.values()).most_common(1)[0][0]
            for name, value in values.items():
                if value != usual:
                    raise UsageError(
                        f"{name!r} does not go into the mixture: its {attribute} is {value}, that of"
                        f" {', '.join(repr(each) for each in values if values[each] == usual)} is {usual}. {fix}"
                    )


@dataclass(frozen=True)
class _Layout:
    """How a split is drawn: the components that have it, where each one's share ends, and the sizes of a batch."""

    names: tuple[str, ...]
    bounds: Tensor
    num_support: int
    num_query: int
    pads: bool


def _named(sources: Sequence[Weighted]) -> dict[str, Weighted]:
    """The sources by their own names; of two of one name the second is `name-2`."""
    named: dict[str, Weighted] = {}
    for pair in sources:
        own = str(getattr(_pair(repr(pair), pair)[0], "name", "source"))
        free = itertools.chain([own], (f"{own}-{number}" for number in itertools.count(2)))
        named[next(name for name in free if name not in named)] = pair
    return named


def _pair(name: str, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, Sequence) or len(pair) != 2 or not hasattr(pair[0], "episodes"):
        raise UsageError(f"{name} must be (source, weight), such as (Sinusoid(), 0.5), got {pair!r}.")
    return pair[0], pair[1]


def _checked(name: str, pair: Any) -> tuple[Any, float]:
    source, weight = _pair(name, pair)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise UsageError(f"The weight of {name!r} must be a number of at least 0, got {weight!r}.")
    return source, float(weight)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


_OPTIONAL = ("image_format", "standardisation", "label_names", "scaled_uint8")


def _differs(sources: Collection[Any], attribute: str) -> bool:
    """Whether sources say different things, or one is a mixture of such."""
    values = [_plain(getattr(source, attribute, None)) for source in sources]
    inside = any(attribute in getattr(source, "differing", ()) for source in sources)
    return inside or any(value != values[0] for value in values)


def _signature(source: TaskSource) -> str:
    if not isinstance(source, Mixture):
        return ""
    return f"mixture({','.join(name + _signature(each) for name, each in source.components.items())})"


def _names_of(source: Any) -> Mapping[str, Sequence[str]]:
    return getattr(source, "class_names", None) or {}


def _class_names(components: Mapping[str, Any], splits: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found = {
        split: tuple(
            f"{name}/{each}" for name, source in components.items() for each in _names_of(source).get(split, ())
        )
        for split in splits
    }
    return {split: names for split, names in found.items() if names}


def _refuse_shared_classes(components: Mapping[str, Any]) -> None:
    # By the classes' own names, because data sets share pictures: CIFAR-FS and FC100 are the same ones split otherwise.
    for (one, first), (two, second) in itertools.permutations(_leaves(components), 2):
        for (split, names), (other, others) in itertools.product(_names_of(first).items(), _names_of(second).items()):
            if split != other and (shared := sorted({*names} & {*others})):
                raise UsageError(
                    f"Class {shared[0]!r} is in {split!r} of {one!r} and in {other!r} of {two!r}"
                    f" ({len(shared)} such classes): a model would be tested on classes it was trained on."
                    "\nGive both the same splits, or allow_shared_classes=True where only the names are alike."
                )


def _leaves(components: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The sources, with those in mixtures among them in the mixtures' place."""
    return [
        leaf
        for name, source in components.items()
        for leaf in (_leaves(source.components) if isinstance(source, Mixture) else [(name, source)])
    ]
