"""ProtoMAML: MAML whose head starts, in every task, at the prototypes of its classes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from metalearn.algorithms.base import check_kind
from metalearn.algorithms.classes import class_means, members_of
from metalearn.algorithms.embedding import rows_of
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.roles import Roles
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.metagrad import Implicit, Reptile
from metalearn.normalisation import policy_of
from metalearn.types import Batch, Tensors


@dataclass(frozen=True, kw_only=True)
class ProtoMAML(MAML):
    r"""MAML with a head that is made of the support set, instead of learned.

    With the mean $c_k$ of the features $f_\theta$ of class $k$ in the support set, the head starts at $W_k = 2 c_k$,
    $b_k = - \lVert c_k \rVert^2$: its logits are a prototypical network's, $- \lVert f_\theta(x) - c_k \rVert^2$, but
    for what all classes have in common. Then it is adapted like everything else; the outer gradient goes through
    the prototypes. A class without an example (in episodes of several sizes) starts at 0.

    Attributes:
        head: the name of the model's last linear layer.

    Reference: Triantafillou et al. 2020, arXiv:1903.03096, section 3, "Proto-MAML".
    """

    head: str = "head"

    def __post_init__(self) -> None:
        """Refuses a term that holds on to a start which is another one in every task."""
        super().__post_init__()
        if self.proximal:
            raise UsageError(
                f"ProtoMAML(proximal={self.proximal}): the head starts at another point in every task, so there is no "
                "one start to hold on to. Set proximal=0, or take MAML."
            )

    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """As MAML's, without the head.

        Raises:
            UsageError: the task is a regression.
        """
        check_kind(self, source)
        return super().init(model, source)

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        return {**super().protocol(), "head_start": "prototypes"}

    def check_strategy(self, strategy: Any) -> None:
        """Refuses what asks for one start of all tasks."""
        if isinstance(strategy, Implicit | Reptile):
            raise UsageError(
                f"ProtoMAML's head starts at another point in every task, and {type(strategy).__name__} is about one "
                "start. Take Unrolled, FirstOrder or Stepwise (metagrad=unrolled)."
            )
        super().check_strategy(strategy)

    def roles(self, model: FunctionalModel) -> Roles:
        """All but the head is learned, whatever `learned` says of it."""
        return super().roles(model).without_learning(f"{self.head}.")

    def task_start(
        self, model: FunctionalModel, roles: Roles, meta: Tensors, buffers: Tensors, support: Batch
    ) -> Tensors:
        """The learned start, with the head at the prototypes of the support set."""
        began = roles.start(meta)
        weight, bias = self._head_of(model, began)
        backbone = model.without(self.head).seeing(rows_of(support))
        whole = self.at_step(roles, meta, began, 0)
        at_support = policy_of(self.normalisation).at_support(backbone, 0)
        features, _ = at_support(
            {name: whole[name] for name in backbone.params},
            {name: buffers[name] for name in backbone.buffers},
            support[0],
        )
        means = class_means(features, members_of(support, weight.shape[0]))
        return {**began, f"{self.head}.weight": 2 * means, f"{self.head}.bias": -means.square().sum(-1).to(bias.dtype)}

    def _head_of(self, model: FunctionalModel, began: Tensors) -> tuple[Tensor, Tensor]:
        names = [f"{self.head}.{name}" for name in ("weight", "bias")]
        if not all(name in model.params for name in names):
            raise UsageError(
                f"ProtoMAML needs a last linear layer with a bias, and {type(model.module).__name__} has none called "
                f"{self.head!r}: give its name (algorithm.head=…). {_linear_layers(model)}"
            )
        if not all(name in began for name in names):
            raise UsageError(
                f"ProtoMAML adapts the head from the prototypes on, but adapted={self.adapted!r} leaves "
                f"{self.head!r} out."
            )
        return began[names[0]], began[names[1]]


def _linear_layers(model: FunctionalModel) -> str:
    found = [name for name, part in model.module.named_modules() if isinstance(part, nn.Linear)]
    return f"Its linear layers: {', '.join(map(repr, found[-5:]))}." if found else "It has no linear layer."
