"""Learned rates: an entry, a parameter, a module or one for all, and at every step its own."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import torch

from metalearn.errors import UsageError, did_you_mean
from metalearn.optim.base import GradientTransformation
from metalearn.optim.learned.base import LearnedOptimizer, check_meta, in_range, of_params
from metalearn.optim.schedules import per_step
from metalearn.optim.sgd import sgd
from metalearn.types import Hyper, Tensors

Per = Literal["entry", "parameter", "module", "all"]
"""What has a rate of its own."""


@dataclass(frozen=True)
class LearnedRates(LearnedOptimizer):
    r"""An optimizer with learned rates, $\theta_{t+1} = \theta_t - \alpha_t \circ g_t$ where it is SGD.

    Nothing keeps a rate above 0: one that turns negative climbs, as the papers allow it to. In `meta` they are
    `"lr.NAME"`, of a parameter or of a module; `"lr"` is that of all, or of the parameters outside any module.

    Attributes:
        lr: where all rates start.
        per: what has a rate of its own: every `"entry"` of every parameter (Meta-SGD), every `"parameter"`, every
            `"module"` (a layer's weight and bias share one), or `"all"` together.
        num_steps: how many steps have rates of their own, from the first; the last one's hold for all that follow,
            because a model is often adapted for longer at test than in training. None: the same at every step.
        base: what they are the rates of: an optimizer of `metalearn.optim` by its rate.

    Raises:
        UsageError: an unknown `per`, a rate that is no finite float of at least 0, or less than one step.

    References: Li, Zhou, Chen and Li 2017, arXiv:1707.09835, equation 1; Antoniou, Edwards and Storkey 2019,
    arXiv:1810.09502, section 4.

    Example:
        >>> params = {"body.weight": torch.ones(2, 3), "body.bias": torch.ones(2)}
        >>> {name: list(rates.shape) for name, rates in LearnedRates(0.1, "module", num_steps=5).init(params).items()}
        {'lr.body': [5]}
    """

    lr: float
    per: Per = "entry"
    _: KW_ONLY
    num_steps: int | None = None
    base: Callable[[Hyper], GradientTransformation] = sgd

    def __post_init__(self) -> None:
        if self.per not in get_args(Per):
            raise UsageError(f"LearnedRates(per={self.per!r}). {did_you_mean(str(self.per), get_args(Per))}")
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float) or not 0 <= self.lr < math.inf:
            raise UsageError(f"LearnedRates(lr={self.lr!r}): where the rates start is a finite float of at least 0.")
        if self.num_steps is not None:
            in_range("LearnedRates", num_steps=self.num_steps)
        if not callable(self.base) or isinstance(self.base, GradientTransformation | LearnedOptimizer):
            raise UsageError(
                f"LearnedRates(base={type(self.base).__name__}): expected a function from a rate to an optimizer, such "
                "as metalearn.optim.adam or functools.partial(metalearn.optim.sgd, momentum=0.9)."
            )

    def init(self, params: Tensors) -> Tensors:
        """The rates, all at `lr`: `[*shape]` an entry, else scalars; with `num_steps` one axis more, in front."""
        steps = () if self.num_steps is None else (self.num_steps,)
        rates: Tensors = {}
        for name, value in params.items():
            shape = value.shape if self.per == "entry" else ()
            filled = torch.full((*steps, *shape), float(self.lr), dtype=value.dtype, device=value.device)
            rates.setdefault(self._key(name), filled)
        return rates

    def __call__(self, meta: Tensors) -> GradientTransformation:
        """The base optimizer at the rates in `meta`."""

        def make(params: Tensors) -> GradientTransformation:
            rates = {name: meta[self._key(name)] for name in params}
            return self.base(rates if self.num_steps is None else per_step(rates))

        return of_params(make, check=lambda params: check_meta(self, meta, params))

    def _key(self, name: str) -> str:
        group = {"module": name.rpartition(".")[0], "all": ""}.get(self.per, name)
        return f"lr.{group}" if group else "lr"


def MetaSGD(  # noqa: N802 (reads as the class that it makes)
    lr: float, *, num_steps: int | None = None, base: Callable[[Hyper], GradientTransformation] = sgd
) -> LearnedRates:
    r"""Meta-SGD's learned rate for every entry, $\theta' = \theta - \alpha \circ \nabla L(\theta)$; see `LearnedRates`.

    Reference: Li, Zhou, Chen and Li 2017, arXiv:1707.09835, equation 1.
    """
    return LearnedRates(lr, "entry", num_steps=num_steps, base=base)


def LSLR(  # noqa: N802
    lr: float,
    num_steps: int,
    *,
    per: Literal["parameter", "module"] = "parameter",
    base: Callable[[Hyper], GradientTransformation] = sgd,
) -> LearnedRates:
    """MAML++'s per-layer per-step learned rates; see `LearnedRates`.

    A layer's weight and bias have rates of their own unless `per="module"`, where they share one.

    Reference: Antoniou, Edwards and Storkey 2019, arXiv:1810.09502, section 4 (LSLR).
    """
    return LearnedRates(lr, per, num_steps=num_steps, base=base)
