"""Norms in every mode, and norms of weights."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.rows import SPACE, VECTORS, Row, convolutional, dense, silenced

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def _normed(norm: nn.Module, dims: int = 2) -> nn.Sequential:
    """With running statistics that are not those of a new layer, and that matter in evaluation mode."""
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2.0)
    return convolutional(norm, nn.Tanh(), dims=dims)


def _parametrized(function) -> nn.Sequential:
    return nn.Sequential(function(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


def _signs_held(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The diagonal holds signs that torch reads as integers: constants, and a jump for finite differences."""
    name = "0.parametrizations.weight.original"
    with torch.no_grad():
        signs = torch.diag_embed(params[name].diagonal(), offset=0)
    return {**params, name: params[name].tril(-1) + torch.cat([signs, params[name].new_zeros(1, 3)])}


def _old_weight_norm(layer: nn.Module) -> nn.Module:
    with silenced("`torch.nn.utils.weight_norm` is deprecated"):
        return nn.utils.weight_norm(layer)


ROWS = {
    **{f"batch norm {d}d": Row(lambda n=n, d=d: _normed(n(4), d), SPACE[d]) for d, n in _BATCH.items()},
    **{
        f"batch norm {d}d, evaluation": Row(lambda n=n, d=d: _normed(n(4), d), SPACE[d], training=False)
        for d, n in _BATCH.items()
    },
    **{
        f"batch norm {d}d, no tracking": Row(lambda n=n, d=d: _normed(n(4, track_running_stats=False), d), SPACE[d])
        for d, n in _BATCH.items()
    },
    **{
        f"batch norm {d}d, momentum=None": Row(lambda n=n, d=d: _normed(n(4, momentum=None), d), SPACE[d])
        for d, n in _BATCH.items()
    },
    "batch norm, not affine": Row(lambda: _normed(nn.BatchNorm2d(4, affine=False)), SPACE[2]),
    "batch norm, vectors": Row(lambda: dense(nn.BatchNorm1d(6), nn.Tanh()), VECTORS, inert=("0.bias",)),
    "batch norm, synchronised, evaluation": Row(lambda: _normed(nn.SyncBatchNorm(4)), SPACE[2], training=False),
    "group norm": Row(lambda: _normed(nn.GroupNorm(2, 4)), SPACE[2]),
    "group norm, not affine": Row(lambda: _normed(nn.GroupNorm(2, 4, affine=False)), SPACE[2]),
    "layer norm": Row(lambda: dense(nn.LayerNorm(6), nn.Tanh())),
    "layer norm, several axes": Row(lambda: _normed(nn.LayerNorm((4, 5, 5))), SPACE[2]),
    "layer norm, no bias": Row(lambda: dense(nn.LayerNorm(6, bias=False), nn.Tanh())),
    "layer norm, not affine": Row(lambda: dense(nn.LayerNorm(6, elementwise_affine=False), nn.Tanh())),
    "RMS norm": Row(lambda: dense(nn.RMSNorm(6), nn.Tanh())),
    "RMS norm, not affine": Row(lambda: dense(nn.RMSNorm(6, elementwise_affine=False), nn.Tanh())),
    **{f"instance norm {d}d": Row(lambda n=n, d=d: _normed(n(4), d), SPACE[d]) for d, n in _INSTANCE.items()},
    **{
        f"instance norm {d}d, affine": Row(lambda n=n, d=d: _normed(n(4, affine=True), d), SPACE[d])
        for d, n in _INSTANCE.items()
    },
    **{
        f"instance norm {d}d, tracked": Row(
            lambda n=n, d=d: _normed(n(4, affine=True, track_running_stats=True), d), SPACE[d]
        )
        for d, n in _INSTANCE.items()
    },
    "instance norm, tracked, evaluation": Row(
        lambda: _normed(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), SPACE[2], training=False
    ),
    "local response norm": Row(lambda: _normed(nn.LocalResponseNorm(2)), SPACE[2]),
    "lazy batch norm": Row(lambda: convolutional(nn.LazyBatchNorm2d(), nn.Tanh()), SPACE[2]),
    "weight norm": Row(lambda: _parametrized(parametrizations.weight_norm)),
    "weight norm of all": Row(lambda: _parametrized(lambda layer: parametrizations.weight_norm(layer, dim=None))),
    "weight norm of a convolution": Row(
        lambda: convolutional(parametrizations.weight_norm(nn.Conv2d(4, 2, 3)), nn.Tanh()), SPACE[2]
    ),
    "weight norm, old style": Row(lambda: _parametrized(_old_weight_norm)),
    "spectral norm": Row(lambda: _parametrized(parametrizations.spectral_norm), replay=True),
    "spectral norm, evaluation": Row(
        lambda: _parametrized(parametrizations.spectral_norm), training=False, replay=True
    ),
    "spectral norm of a convolution": Row(
        lambda: convolutional(parametrizations.spectral_norm(nn.Conv2d(4, 2, 3), n_power_iterations=2), nn.Tanh()),
        SPACE[2],
        replay=True,
    ),
    "spectral norm, old style": Row(lambda: _parametrized(nn.utils.spectral_norm), replay=True),
    "spectral norm, old style, evaluation": Row(
        lambda: _parametrized(nn.utils.spectral_norm), training=False, replay=True
    ),
    **{
        f"orthogonal, {kind}": Row(
            lambda kind=kind: _parametrized(lambda layer: parametrizations.orthogonal(layer, orthogonal_map=kind))
        )
        for kind in ("matrix_exp", "cayley")
    },
    **{
        f"orthogonal, householder{name}": Row(
            lambda options=options: _parametrized(
                lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder", **options)
            ),
            start=_signs_held,
            replay=True,
            slow_batching="aten::(tril_|linalg_householder_product)",
        )
        for name, options in {"": {}, ", without trivialization": {"use_trivialization": False}}.items()
    },
}
