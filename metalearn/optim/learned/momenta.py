"""The optimizer that one small network is, on the momenta of every coordinate."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation, check_names, check_state, zero_count
from metalearn.optim.learned.base import LearnedOptimizer, check_meta, in_range
from metalearn.optim.learned.coordinatewise import drawn
from metalearn.optim.numerics import safe_sqrt, wide
from metalearn.types import Tensors


class MomentaState(NamedTuple):
    """The state of `CoordinateMLP`.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        mean: decaying means of the gradients by parameter name, `[decay, *shape]`.
        square: decaying mean of the squared gradients by parameter name, `[*shape]`.
    """

    num_steps: Tensor
    mean: Tensors
    square: Tensors


@dataclass(frozen=True)
class CoordinateMLP(LearnedOptimizer):
    r"""A network from each coordinate's momenta to its update, the same for all coordinates.

    $u = -\eta \, e^{b} d$ with $(d, b) = W_{direct} x + W_{out} \tanh(W_{in} x + c)$. The features $x$ are the gradient
    and its means over several time scales, $\hat m_j$, all divided by $\sqrt{\hat v} + \epsilon$ (bias-corrected as in
    Adam), and $\tanh(t / T_k - 1)$ of the number of steps $t$ done, the same for all coordinates: a schedule can be
    learned.

    It starts as **Adam**: $W_{out} = 0$, and $W_{direct}$ passes on the mean whose decay is nearest to 0.9. So
    meta-training begins at an optimizer that works and learns what to do otherwise. The networks of the references have
    no such start, and more features than these (of the parameter and of its whole tensor).

    In `meta`: `"hidden.weight"`, `"hidden.time"`, `"hidden.bias"`, `"output.weight"`, `"direct.weight"`,
    `"direct.time"`; of the two outputs the first is $d$. All are numbers of order 1, so one meta-learning rate does.

    Attributes:
        lr: $\eta$, the rate of Adam that it starts at.
        hidden_size: units of the network.
        decays: of the means, each in (0, 1).
        square_decay: of the mean square, in (0, 1).
        eps: $\epsilon$.
        timescales: $T_k$, in steps.
        seed: of the first weights.

    Raises:
        UsageError: a size below 1, a rate or a time scale that is not above 0, or a decay outside (0, 1).

    References: Metz, Maheswaranathan, Nixon, Freeman and Sohl-Dickstein 2019, arXiv:1810.10180; Metz, Maheswaranathan,
    Freeman, Poole and Sohl-Dickstein 2020, arXiv:2009.11243; a nominal optimizer beside the network: Harrison, Metz and
    Sohl-Dickstein 2022, arXiv:2209.11208.

    Example:
        >>> from metalearn.optim import adam
        >>> params, grads = {"w": torch.ones(2)}, {"w": torch.tensor([3.0, -0.1])}
        >>> learned = CoordinateMLP(lr=0.01)
        >>> optimizer = learned(learned.init(params))
        >>> optimizer.step(grads, optimizer.init(params), params)[0]
        {'w': tensor([0.9900, 1.0100])}
    """

    lr: float = 1e-3
    hidden_size: int = 16
    _: KW_ONLY
    decays: Sequence[float] = (0.5, 0.9, 0.99)
    square_decay: float = 0.999
    eps: float = 1e-8
    timescales: Sequence[float] = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("CoordinateMLP", hidden_size=self.hidden_size)
        above_zero = {"lr": (self.lr,), "eps": (self.eps,), "timescales": self.timescales}
        for name, values in above_zero.items():
            if not all(0 < value < math.inf for value in values):
                raise UsageError(f"CoordinateMLP({name}={getattr(self, name)!r}): it must be above 0.")
        for name, values in {"decays": self.decays, "square_decay": (self.square_decay,)}.items():
            if not values or not all(0 < value < 1 for value in values):
                raise UsageError(f"CoordinateMLP({name}={getattr(self, name)!r}): a decay is between 0 and 1.")

    def init(self, params: Tensors) -> Tensors:
        """The weights of an optimizer that is Adam; none depends on the shapes of `params`."""
        num_features, num_times = 1 + len(self.decays), len(self.timescales)
        hidden = {
            "hidden.weight": (self.hidden_size, num_features),
            "hidden.time": (self.hidden_size, num_times),
            "hidden.bias": (self.hidden_size,),
        }
        bound = 1 / math.sqrt(num_features + num_times)
        meta = drawn(hidden, params, seed=self.seed, bounds=dict.fromkeys(hidden, bound))
        like = meta["hidden.bias"]
        nearest = min(range(len(self.decays)), key=lambda index: abs(self.decays[index] - 0.9))
        places = torch.arange(num_features, device=like.device) == 1 + nearest
        direct = torch.stack((places.to(like), torch.zeros_like(places).to(like)))
        zeros = {"output.weight": like.new_zeros(2, self.hidden_size), "direct.time": like.new_zeros(2, num_times)}
        return {**meta, **zeros, "direct.weight": direct}

    def __call__(self, meta: Tensors) -> GradientTransformation:
        """The optimizer with these weights."""

        def init(params: Tensors) -> MomentaState:
            check_meta(self, meta, params)
            like, shapes = meta["hidden.bias"], {name: value.shape for name, value in params.items()}
            mean = {name: like.new_zeros(len(self.decays), *shape) for name, shape in shapes.items()}
            square = {name: like.new_zeros(shape) for name, shape in shapes.items()}
            return MomentaState(zero_count(params), mean, square)

        def update(updates: Tensors, state: MomentaState, params: Tensors) -> tuple[Tensors, MomentaState]:
            check_names(updates, params)
            check_state(state, MomentaState)
            like, count = meta["hidden.bias"], state.num_steps + 1
            times = self._times(state.num_steps, like)
            decays = torch.stack([wide(decay, like.device) for decay in self.decays])
            moved, mean, square = {}, {}, {}
            for name, gradient in updates.items():
                given = gradient.to(like.dtype)
                along = decays.reshape(-1, *[1] * given.dim())
                mean[name] = along.to(given) * state.mean[name] + (1 - along).to(given) * given
                square[name] = self.square_decay * state.square[name] + (1 - self.square_decay) * given.square()
                unbiased = mean[name] / _unbias(along, count, like)
                root = safe_sqrt(square[name] / _unbias(self.square_decay, count, like)) + self.eps
                features = torch.cat((given[None], unbiased)) / root
                moved[name] = self._moved(meta, features.movedim(0, -1), times).to(gradient.dtype)
            return moved, MomentaState(count, mean, square)

        return GradientTransformation(init, update)

    def _moved(self, meta: Tensors, features: Tensor, times: Tensor) -> Tensor:
        hidden = (features @ meta["hidden.weight"].T + (meta["hidden.time"] @ times + meta["hidden.bias"])).tanh()
        outputs = features @ meta["direct.weight"].T + meta["direct.time"] @ times + hidden @ meta["output.weight"].T
        return -self.lr * outputs[..., 1].exp() * outputs[..., 0]

    def _times(self, num_steps: Tensor, like: Tensor) -> Tensor:
        scales = torch.tensor(self.timescales, dtype=like.dtype, device=like.device)
        return (num_steps / scales - 1).tanh()


def _unbias(decay: Tensor | float, count: Tensor, like: Tensor) -> Tensor:
    """What a mean that began at zero is divided by, $1 - decay^t$; in double, where it is a small difference."""
    return (1 - wide(decay, like.device) ** wide(count, like.device)).to(like.dtype)
