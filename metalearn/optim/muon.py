"""Muon: momentum, orthogonalised."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.optim.base import GradientTransformation, MeanState
from metalearn.optim.hypers import ANY, FRACTION, Hypers, hyper_parameters
from metalearn.optim.numerics import lerp, norm
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper

ADJUSTMENTS = ("original", "match_rms_adamw")
"""How the rate depends on a matrix's shape `[rows, columns]`: times $\\sqrt{\\max(1, rows / columns)}$ (Jordan), or
times $0.2 \\sqrt{\\max(rows, columns)}$, the size of a step of AdamW (Liu et al. 2025, arXiv:2502.16982)."""

_COEFFICIENTS = ("a", "b", "c")
_RANGES = {"momentum": FRACTION, **dict.fromkeys(_COEFFICIENTS, ANY)}


@hyper_parameters
def muon(
    lr: Hyper = 1e-3,
    *,
    weight_decay: Hyper = 0.1,
    momentum: Hyper = 0.95,
    nesterov: bool = True,
    ns_coefficients: Sequence[Hyper] = (3.4445, -4.7750, 2.0315),
    eps: Hyper = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = "original",
) -> GradientTransformation:
    r"""Muon, as `torch.optim.Muon` but in the parameters' own dtype, where torch's casts to bfloat16.

    $m_t = \mu m_{t-1} + (1 - \mu) g_t$; of $m_t$ (Nesterov: $(1 - \mu) g_t + \mu m_t$), divided by its Frobenius norm,
    $X \leftarrow a X + (b X X^T + c (X X^T)^2) X$ is taken `ns_steps` times, which brings its singular values near 1;
    $\theta_t = (1 - \eta\lambda) \theta_{t-1} - \eta s X$, where $s$ depends on the shape.

    The parameters have to be matrices. A convolution's weight `[out, in, ...]` is taken for the matrix
    `[out, in * ...]`, as its author does; the rest belong to another optimizer (`partition`).

    Args:
        lr: learning rate $\eta$, a `metalearn.types.Hyper` like all the others.
        weight_decay: $\lambda$, decoupled.
        momentum: $\mu$, in [0, 1).
        nesterov: look ahead along the momentum.
        ns_coefficients: $a$, $b$ and $c$, each a hyper-parameter too.
        eps: the norm is not taken to be less than this.
        ns_steps: how many iterations.
        adjust_lr_fn: one of `ADJUSTMENTS`; None for the first.

    Raises:
        UsageError: in `init`, for a parameter of fewer than two axes.

    Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    adjust_lr_fn = ADJUSTMENTS[0] if adjust_lr_fn is None else adjust_lr_fn
    if adjust_lr_fn not in ADJUSTMENTS:
        raise UsageError(f"adjust_lr_fn is {adjust_lr_fn!r}. {did_you_mean(str(adjust_lr_fn), ADJUSTMENTS)}")
    if not isinstance(ns_coefficients, Sequence) or len(ns_coefficients) != 3:
        raise UsageError(f"ns_coefficients is {ns_coefficients!r}, but there are three numbers: a, b and c.")
    if not isinstance(ns_steps, int) or ns_steps < 0:
        raise UsageError(f"ns_steps is {ns_steps!r}, but must be an integer of at least 0.")
    hypers = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eps": eps}
    hypers |= zip(_COEFFICIENTS, ns_coefficients, strict=True)
    move = partial(_move, nesterov=nesterov, num_steps=ns_steps, adjustment=adjust_lr_fn)
    rule = Rule(move, {"mean": zeros}, is_entrywise=False, least_axes=2)
    return from_rule(rule, MeanState, Hypers(hypers, _RANGES), decoupled=True)


def _move(
    step: Step, gradient: Tensor, param: Tensor, mean: Tensor, *, nesterov: bool, num_steps: int, adjustment: str
) -> tuple[Tensor, Slots]:
    mean = lerp(mean, gradient, step.entries(1 - step.exact("momentum")))
    ahead = lerp(gradient, mean, step["momentum"]) if nesterov else mean
    matrix = ahead.flatten(1)
    coefficients = [step[name] for name in _COEFFICIENTS]
    moved = orthogonalised(matrix, coefficients, num_steps=num_steps, eps=step["eps"])
    return -step["lr"] * _adjustment(adjustment, *matrix.shape) * moved.reshape(param.shape), (mean,)


def orthogonalised(
    matrix: Tensor, coefficients: Sequence[float | Tensor], *, num_steps: int, eps: float | Tensor
) -> Tensor:
    """A matrix with its singular values brought near 1 by Newton and Schulz's iteration; 0 stays 0."""
    a, b, c = coefficients
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    size = norm(x)
    x = x / (torch.maximum(size, eps.to(size)) if isinstance(eps, Tensor) else size.clamp_min(eps))
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x


def _adjustment(name: str, rows: int, columns: int) -> float:
    ratio: float = max(1, rows / columns) ** 0.5 if name == "original" else 0.2 * max(rows, columns) ** 0.5
    return ratio
