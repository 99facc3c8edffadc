"""The optimizer that one small LSTM is, applied to every coordinate by itself."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation, check_names, check_state
from metalearn.optim.learned.base import LearnedOptimizer, check_meta, dtype_of, in_range
from metalearn.types import Tensors


class LSTMState(NamedTuple):
    """The state of `CoordinateLSTM`.

    Attributes:
        hidden: the cells' outputs by parameter name, `[layer, *shape, hidden]`.
        cell: what they remember, likewise.
    """

    hidden: Tensors
    cell: Tensors


@dataclass(frozen=True)
class CoordinateLSTM(LearnedOptimizer):
    r"""An LSTM from each coordinate's gradients to its updates, the same for all: $u_t = c \, m_\phi(\nabla_t, h_t)$.

    Each coordinate has a state of its own. The gradient comes in as `log_and_sign` has it. There is no rate and no sign
    to begin with: untrained, it takes small steps in no sensible direction.

    In `meta`: `"weight_ih_l0"`, `"weight_hh_l0"`, `"bias_l0"` … with the gates in the order of `torch.nn.LSTM` (its two
    biases are one here), `"output.weight"`, `"output.bias"`; drawn uniformly within $\pm 1 / \sqrt{hidden}$, as there.

    Attributes:
        hidden_size: of each layer.
        num_layers: LSTM layers on top of each other.
        preprocessing: $p$: gradients are told apart down to $e^{-p}$.
        output_scale: $c$.
        seed: of the first weights.

    Raises:
        UsageError: a size below 1, or a `preprocessing` or an `output_scale` that is not above 0.

    Reference: Andrychowicz et al. 2016, arXiv:1606.04474, section 2.1 and appendix A. There the derivative of the inner
    gradients is left out: `metagrad.FirstOrder` does that, `Unrolled` has it.

    Example:
        >>> meta = CoordinateLSTM(hidden_size=4, num_layers=1).init({"w": torch.zeros(3, 2)})
        >>> {name: list(weight.shape) for name, weight in meta.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'weight_ih_l0': [16, 2], 'weight_hh_l0': [16, 4], 'bias_l0': [16],
         'output.weight': [1, 4], 'output.bias': [1]}
    """

    hidden_size: int = 20
    num_layers: int = 2
    _: KW_ONLY
    preprocessing: float = 10.0
    output_scale: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("CoordinateLSTM", hidden_size=self.hidden_size, num_layers=self.num_layers)
        for name in ("preprocessing", "output_scale"):
            if not getattr(self, name) > 0:
                raise UsageError(f"CoordinateLSTM({name}={getattr(self, name)!r}): it must be above 0.")

    def init(self, params: Tensors) -> Tensors:
        """The weights; none depends on the shapes of `params`."""
        gates, shapes = 4 * self.hidden_size, dict[str, tuple[int, ...]]()
        for layer in range(self.num_layers):
            shapes[f"weight_ih_l{layer}"] = (gates, self.hidden_size if layer else 2)
            shapes[f"weight_hh_l{layer}"] = (gates, self.hidden_size)
            shapes[f"bias_l{layer}"] = (gates,)
        shapes |= {"output.weight": (1, self.hidden_size), "output.bias": (1,)}
        bound = 1 / math.sqrt(self.hidden_size)
        return drawn(shapes, params, seed=self.seed, bounds=dict.fromkeys(shapes, bound))

    def __call__(self, meta: Tensors) -> GradientTransformation:
        """The optimizer with these weights."""

        def init(params: Tensors) -> LSTMState:
            check_meta(self, meta, params)
            like = meta["output.bias"]
            shapes = {name: (self.num_layers, *value.shape, self.hidden_size) for name, value in params.items()}
            hidden, cell = ({name: like.new_zeros(shape) for name, shape in shapes.items()} for _ in range(2))
            return LSTMState(hidden, cell)

        def update(updates: Tensors, state: LSTMState, params: Tensors) -> tuple[Tensors, LSTMState]:
            check_names(updates, params)
            check_state(state, LSTMState)
            moved: Tensors = {}
            hidden, cell = dict(state.hidden), dict(state.cell)
            for name, gradient in updates.items():
                known = log_and_sign(gradient.to(meta["output.bias"].dtype), self.preprocessing)
                output, hidden[name], cell[name] = self._run(meta, known, state.hidden[name], state.cell[name])
                moved[name] = (self.output_scale * output).to(gradient.dtype)
            return moved, LSTMState(hidden, cell)

        return GradientTransformation(init, update)

    def _run(self, meta: Tensors, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All layers once: the output `[*shape]`, and the next states."""
        hiddens, cells = [], []
        for layer in range(self.num_layers):
            weights = (meta[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias"))
            x, remembered = lstm_cell(x, hidden[layer], cell[layer], *weights)
            hiddens.append(x)
            cells.append(remembered)
        output = (x @ meta["output.weight"].T + meta["output.bias"]).squeeze(-1)
        return output, torch.stack(hiddens), torch.stack(cells)


def log_and_sign(gradient: Tensor, p: float) -> Tensor:
    r"""A gradient in two numbers of moderate size, `[..., 2]`.

    $(\log|g| / p, \mathrm{sgn}(g))$ where $|g| \ge e^{-p}$, else $(-1, e^p g)$. Continuous, and never NaN: there is no
    logarithm of anything smaller than $e^{-p}$. At zero, the derivative of the first is 0, of the second $e^p$, and the
    second derivatives are 0.

    Reference: Andrychowicz et al. 2016, arXiv:1606.04474, appendix A.

    Example:
        >>> log_and_sign(torch.tensor([1.0, -1.0, 0.0]), 10.0)
        tensor([[ 0.,  1.],
                [ 0., -1.],
                [-1.,  0.]])
    """
    is_large = gradient.abs() >= math.exp(-p)
    magnitude = torch.where(is_large, gradient, 1.0).abs()
    first = torch.where(is_large, magnitude.log() / p, -1.0)
    second = torch.where(is_large, gradient.sign(), math.exp(p) * gradient)
    return torch.stack((first, second), dim=-1)


def lstm_cell(
    x: Tensor, hidden: Tensor, cell: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    r"""One step of an LSTM layer, the next `hidden` and `cell`, for any leading axes.

    $c' = \sigma(f) \circ c + \sigma(i) \circ \tanh(g)$, $h' = \sigma(o) \circ \tanh(c')$ with $i, f, g, o$ the parts of
    $W_{ih} x + W_{hh} h + b$. Of products, because torch's own cell has no second derivative on every device.
    """
    gates = x @ weight_ih.T + hidden @ weight_hh.T + bias
    enter, keep, new, leave = gates.chunk(4, dim=-1)
    cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def drawn(shapes: dict[str, tuple[int, ...]], params: Tensors, *, seed: int, bounds: dict[str, float]) -> Tensors:
    """Weights drawn uniformly within `bounds` by name, each by its own key, in the widest dtype of `params`."""
    device = next(iter(params.values())).device if params else None
    dtype, key = dtype_of(params), random.key(seed, device=device)
    return {
        name: bounds[name] * (2 * random.uniform(random.fold_in(key, index), shape, dtype=dtype) - 1)
        for index, (name, shape) in enumerate(shapes.items())
    }
