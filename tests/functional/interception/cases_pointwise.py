"""Activations, and layers that know no neighbourhood."""

from typing import Any

import torch.nn.functional as F
from torch import nn

from tests.functional.interception.cases import Method, Of, case, positive, real, whole

# torch has the slope 1/6 in single precision (2.13).
OPTIONS: dict[str, dict[str, Any]] = {
    "Hardsigmoid": {"first_tolerance": 1e-7, "differs": "torch's first gradient is exact to 3e-8 alone"}
}

CASES = [
    case(name, getattr(nn, name), real(4, 6), **OPTIONS.get(name, {}))
    for name in (
        "CELU",
        "ELU",
        "GELU",
        "GLU",
        "Hardshrink",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "Identity",
        "LeakyReLU",
        "LogSigmoid",
        "Mish",
        "PReLU",
        "ReLU",
        "ReLU6",
        "SELU",
        "SiLU",
        "Sigmoid",
        "Softplus",
        "Softshrink",
        "Softsign",
        "Tanh",
        "Tanhshrink",
    )
]
CASES += [
    case("GELU, tanh", lambda: nn.GELU(approximate="tanh"), real(4, 6)),
    case("PReLU, a slope a channel", lambda: nn.PReLU(6), real(4, 6)),
    case("RReLU", nn.RReLU, real(4, 6), draws=True),
    case("RReLU, evaluation", lambda: nn.RReLU().eval(), real(4, 6)),
    case("Threshold", lambda: nn.Threshold(0.1, 0.3), real(4, 6)),
    case("Softplus, beta", lambda: nn.Softplus(2.0, 5.0), real(4, 6)),
    case("ReLU, in place", lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)), real(4, 6)),
    case("RReLU, in place", lambda: nn.Sequential(nn.Linear(6, 6), nn.RReLU(inplace=True)), real(4, 6), draws=True),
    case(
        "Hardsigmoid, in place",
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Hardsigmoid(inplace=True)),
        real(4, 6),
        first_tolerance=1e-7,
    ),
    case("Softmax", lambda: nn.Softmax(-1), real(4, 6)),
    case("Softmax2d", nn.Softmax2d, real(2, 3, 2, 2)),
    case("Softmin", lambda: nn.Softmin(-1), real(4, 6)),
    case("LogSoftmax", lambda: nn.LogSoftmax(-1), real(4, 6)),
    case(
        "AdaptiveLogSoftmaxWithLoss",
        lambda: nn.AdaptiveLogSoftmaxWithLoss(64, 10, [3, 6]),
        real(5, 64),
        whole(10, 5),
    ),
    case(
        "AdaptiveLogSoftmaxWithLoss, log_prob",
        lambda: Method(nn.AdaptiveLogSoftmaxWithLoss(64, 10, [3, 6]), "log_prob"),
        real(5, 64),
    ),
]

CASES += [
    case("Linear", lambda: nn.Linear(3, 2), real(4, 3)),
    case("Bilinear", lambda: nn.Bilinear(3, 2, 4), real(4, 3), real(4, 2)),
    case("Flatten", nn.Flatten, real(2, 3, 2)),
    case("Unflatten", lambda: nn.Unflatten(1, (2, 3)), real(2, 6)),
    case("Fold", lambda: nn.Fold((4, 5), (2, 2)), real(2, 3 * 4, 12)),
    case("Unfold", lambda: nn.Unfold((2, 3), padding=1, stride=2), real(2, 3, 6, 5)),
    case("PixelShuffle", lambda: nn.PixelShuffle(2), real(2, 8, 3, 3)),
    case("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), real(2, 2, 4, 4)),
    case("ChannelShuffle", lambda: nn.ChannelShuffle(2), real(2, 4, 3, 3)),
    case("Upsample, nearest", lambda: nn.Upsample(scale_factor=2), real(2, 3, 4)),
    case("Upsample, nearest 2d", lambda: nn.Upsample(scale_factor=2), real(2, 3, 4, 3)),
    case("Upsample, nearest 3d", lambda: nn.Upsample(scale_factor=2), real(2, 3, 2, 3, 2)),
    case("Upsample, nearest-exact", lambda: nn.Upsample(size=(5, 7), mode="nearest-exact"), real(2, 3, 4, 3)),
    case("Upsample, linear", lambda: nn.Upsample(scale_factor=2, mode="linear"), real(2, 3, 4)),
    case("Upsample, bilinear", lambda: nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True), real(2, 3, 4, 3)),
    case("Upsample, bicubic", lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"), real(2, 3, 4, 3)),
    case("Upsample, trilinear", lambda: nn.Upsample(scale_factor=2, mode="trilinear"), real(1, 2, 2, 3, 2)),
    case("interpolate (F), area", lambda: Of(lambda x: F.interpolate(x, (3, 2), mode="area")), real(2, 3, 4, 4)),
    case(
        "interpolate (F), antialias",
        lambda: Of(lambda x: F.interpolate(x, (3, 2), mode="bilinear", antialias=True)),
        real(2, 3, 5, 4),
    ),
    case("UpsamplingBilinear2d", lambda: nn.UpsamplingBilinear2d(scale_factor=2), real(2, 3, 3, 3)),
    case("UpsamplingNearest2d", lambda: nn.UpsamplingNearest2d(scale_factor=2), real(2, 3, 3, 3)),
    case("CosineSimilarity", nn.CosineSimilarity, real(4, 3), real(4, 3)),
    case("PairwiseDistance", nn.PairwiseDistance, real(4, 3), real(4, 3)),
    case("PairwiseDistance, p=1", lambda: nn.PairwiseDistance(1.0), real(4, 3), real(4, 3)),
    case("LocalResponseNorm", lambda: nn.LocalResponseNorm(3, alpha=0.5), real(2, 5, 3, 3)),
    case(
        "CrossMapLRN2d",
        lambda: nn.CrossMapLRN2d(3, alpha=0.5),
        real(2, 5, 3, 3),
        refused="LocalResponseNorm",
        differs="use `nn.LocalResponseNorm`",
    ),
    case("LayerNorm", lambda: nn.LayerNorm(6), real(4, 6)),
    case("LayerNorm, not affine", lambda: nn.LayerNorm((3, 2), elementwise_affine=False), real(4, 3, 2)),
    case("RMSNorm", lambda: nn.RMSNorm(6), real(4, 6)),
    case("RMSNorm, not affine", lambda: nn.RMSNorm(6, elementwise_affine=False, eps=1e-3), real(4, 6)),
    case("GroupNorm", lambda: nn.GroupNorm(2, 4), real(2, 4, 3)),
    case("SyncBatchNorm", lambda: nn.SyncBatchNorm(2).eval(), real(4, 2, 3)),
    case("Dropout", lambda: nn.Dropout(0.3), real(4, 6), draws=True),
    case("Dropout, in place", lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3, True)), real(4, 6), draws=True),
    case("AlphaDropout", lambda: nn.AlphaDropout(0.3), real(4, 6), draws=True),
    case("FeatureAlphaDropout", lambda: nn.FeatureAlphaDropout(0.3), real(4, 6, 2), draws=True),
    case(
        "grid_sample (F)",
        lambda: Of(lambda x, g: F.grid_sample(x, g, align_corners=False)),
        real(2, 2, 4, 4),
        positive(2, 3, 3, 2, low=-0.8, high=0.8),
        slow=True,
    ),
    case("affine_grid (F)", lambda: Of(lambda t: F.affine_grid(t, [2, 3, 4, 4], align_corners=False)), real(2, 2, 3)),
]
