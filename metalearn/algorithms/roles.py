"""Which parameters of a model the inner loop adapts, and which are meta-learned."""

from dataclasses import dataclass

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.state import Filter, partition
from metalearn.types import Tensors


@dataclass(frozen=True)
class Roles:
    """The parts that a model's parameters play in an algorithm that learns a start.

    A parameter may be both adapted and learned (MAML's way), learned but not adapted (ANIL's features: shared by all
    tasks), adapted but not learned (every task starts from the model's own value), or neither (frozen).

    Attributes:
        adapted: the names of those that the inner loop adapts.
        learned: the model's values of those that are meta-learned, to start from.
        fixed: the model's values of those that are not.
    """

    adapted: frozenset[str]
    learned: Tensors
    fixed: Tensors

    @classmethod
    def of(cls, model: FunctionalModel, *, adapted: Filter = "*", learned: Filter = "*") -> "Roles":
        """The roles in a model.

        Raises:
            UsageError: a filter fits none of the model's parameters, or is none.
        """
        inner, _ = _parted(model, adapted, what="adapted")
        return cls(frozenset(inner), *_parted(model, learned, what="learned"))

    def without_learning(self, prefix: str) -> "Roles":
        """These roles, but that nothing is learned whose name begins with `prefix`."""
        ours = {name: value for name, value in self.learned.items() if name.startswith(prefix)}
        learned = {name: value for name, value in self.learned.items() if name not in ours}
        return Roles(self.adapted, learned, {**self.fixed, **ours})

    def start(self, meta: Tensors) -> Tensors:
        """Where the inner loop starts: what it adapts, learned (`"init.…"` in `meta`) or not."""
        return {name: value for name, value in self._whole(meta).items() if name in self.adapted}

    def whole(self, meta: Tensors, params: Tensors) -> Tensors:
        """All parameters for a call of the model: the adapted ones, `params`, and the others as they were learned."""
        return {**{name: value for name, value in self._whole(meta).items() if name not in self.adapted}, **params}

    def _whole(self, meta: Tensors) -> Tensors:
        return {**self.fixed, **tree.select(meta, "init.")}


def _parted(model: FunctionalModel, which: Filter, *, what: str) -> tuple[Tensors, ...]:
    try:
        return partition(model.params, which, model=model)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
