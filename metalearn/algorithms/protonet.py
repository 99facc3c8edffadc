"""Prototypical networks: the class whose mean is nearest."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.algorithms.classes import class_means, members_of, without_absent
from metalearn.algorithms.closed_form import ClosedForm
from metalearn.errors import UsageError, did_you_mean
from metalearn.types import Examples, Tensors

Distance = Literal["euclidean", "cosine"]

_SCALES: dict[Distance, float] = {"euclidean": 1.0, "cosine": 10.0}


@dataclass(frozen=True, kw_only=True)
class ProtoNet(ClosedForm):
    r"""Nearest prototypes in a learned space of features.

    The prototype of class $k$ is the mean of its support features, $c_k = \frac{1}{|S_k|} \sum_{(x, y) \in S_k}
    f_\phi(x)$ (equation 1), and $p_\phi(y = k \mid x) \propto \exp(-d(f_\phi(x), c_k))$ (equation 2) with the squared
    Euclidean distance $d(z, c) = \lVert z - c \rVert^2$. The loss is $-\log p_\phi(y = k \mid x)$ over the query set.
    All of $\phi$ is learned by the outer loop, `"init.…"` in `meta`; nothing is adapted.

    With `distance="cosine"` the logits are $s \cos(f_\phi(x), c_k)$. The paper trains with more ways than it tests with
    (60 on Omniglot): `train_ways`.

    Attributes:
        distance: `"euclidean"` (squared, as in the paper) or `"cosine"`.
        scale: $s$, what logits are multiplied by; None for 1 (Euclidean) or 10 (cosine).
        learn_scale: whether $s$ is learned too, as `"log_scale"`.

    Reference: Snell, Swersky and Zemel 2017, arXiv:1703.05175.
    """

    distance: Distance = "euclidean"
    scale: float | None = None
    learn_scale: bool = False

    def __post_init__(self) -> None:
        """Refuses a distance that there is not, and a scale that is none."""
        super().__post_init__()
        if self.distance not in get_args(Distance):
            hint = did_you_mean(str(self.distance), get_args(Distance))
            raise UsageError(f"{type(self).__name__}(distance={self.distance!r}). {hint}")
        if self.scale is None:
            object.__setattr__(self, "scale", _SCALES[self.distance])
        if not 0 < self._scale < float("inf"):
            raise UsageError(f"{type(self).__name__}(scale={self.scale}): it must be above 0.")

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        learned = {"learned_scale": True} if self.learn_scale else {}
        return {"distance": self.distance, "scale": self.scale, **learned, **super().protocol()}

    def numbers(self, kind: str) -> dict[str, float]:
        """See `ClosedForm.numbers`: the scale, where it is learned."""
        return {"log_scale": float(torch.tensor(self._scale, dtype=torch.float64).log())} if self.learn_scale else {}

    def outputs(self, meta: Tensors, features: Tensor, support: Examples, query: Tensor, num_classes: int) -> Tensor:
        """See `ClosedForm.outputs`: the scaled negative distances to the prototypes."""
        members = members_of(support, num_classes)
        prototypes = class_means(features, members)
        scale = meta["log_scale"].exp() if self.learn_scale else self._scale
        return without_absent(scale * similarities(query, prototypes, self.distance), members)

    @property
    def _scale(self) -> float:
        assert self.scale is not None
        return self.scale


def similarities(features: Tensor, prototypes: Tensor, distance: Distance) -> Tensor:
    """How near features `[example, feature]` are to prototypes `[class, feature]`, `[example, class]`."""
    if distance == "euclidean":
        # Not by |z|² + |c|² - 2zc, which cancels where both are far from 0.
        return -(features.unsqueeze(1) - prototypes.unsqueeze(0)).square().sum(-1)
    return _directions(features) @ _directions(prototypes).T


def _directions(vectors: Tensor) -> Tensor:
    # The square root of 0, of a dead layer or of a class without examples, has no derivative.
    squares = vectors.square().sum(-1, keepdim=True)
    return vectors * squares.clamp_min(torch.finfo(vectors.dtype).tiny ** 0.5).rsqrt()
