"""Losses and distances."""

import torch
import torch.nn.functional as F
from torch import nn

from metalearn import random
from tests.functional.interception.cases import (
    BehindLogSoftmax,
    Given,
    Of,
    case,
    distribution,
    numbers,
    positive,
    real,
    sign,
    target,
    whole,
)

CASES = [
    case("L1Loss", nn.L1Loss, real(4, 3), target(4, 3)),
    case("MSELoss", nn.MSELoss, real(4, 3), real(4, 3)),
    case("HuberLoss", lambda: nn.HuberLoss(delta=0.7), real(4, 3), target(4, 3)),
    case("SmoothL1Loss", nn.SmoothL1Loss, real(4, 3), target(4, 3)),
    case("BCELoss", nn.BCELoss, positive(4, 3), positive(4, 3, fixed=True)),
    case("BCELoss, weighted", lambda: nn.BCELoss(weight=torch.rand(3)), positive(4, 3), positive(4, 3, fixed=True)),
    case(
        "BCEWithLogitsLoss",
        lambda: nn.BCEWithLogitsLoss(pos_weight=torch.rand(3)),
        real(4, 3),
        positive(4, 3, fixed=True),
    ),
    case("CrossEntropyLoss", nn.CrossEntropyLoss, real(4, 3), whole(3, 4)),
    case(
        "CrossEntropyLoss, weights, smoothing",
        lambda: nn.CrossEntropyLoss(weight=torch.rand(3), label_smoothing=0.2, ignore_index=1),
        real(6, 3),
        whole(3, 6),
    ),
    case("CrossEntropyLoss, distributions", nn.CrossEntropyLoss, real(4, 3), distribution(4, 3)),
    case("CrossEntropyLoss, 2d", nn.CrossEntropyLoss, real(2, 3, 4, 4), whole(3, 2, 4, 4)),
    case("LinearCrossEntropyLoss", lambda: nn.LinearCrossEntropyLoss(5, 3), real(4, 5), whole(3, 4)),
    case("NLLLoss", nn.NLLLoss, real(4, 3), whole(3, 4)),
    case("NLLLoss, 2d", nn.NLLLoss, real(2, 3, 4, 4), whole(3, 2, 4, 4)),
    case("KLDivLoss", lambda: nn.KLDivLoss(reduction="batchmean"), real(4, 3), distribution(4, 3)),
    case("PoissonNLLLoss", lambda: nn.PoissonNLLLoss(full=True), real(4, 3), whole(5, 4, 3)),
    case(
        "PoissonNLLLoss, full, real targets",
        lambda: nn.PoissonNLLLoss(full=True),
        real(4, 3),
        positive(4, 3, low=0.2, high=3, fixed=True),
    ),
    case("GaussianNLLLoss", nn.GaussianNLLLoss, real(4, 3), target(4, 3), positive(4, 3, low=1, high=2)),
    case(
        "GaussianNLLLoss, full, one variance",
        lambda: nn.GaussianNLLLoss(full=True, reduction="sum"),
        real(4, 3),
        target(4, 3),
        positive(4, 1, low=8, high=9),
    ),
    case("HingeEmbeddingLoss", nn.HingeEmbeddingLoss, real(4, 3), sign(4, 3)),
    case("MarginRankingLoss", lambda: nn.MarginRankingLoss(0.3), real(5), real(5), sign(5)),
    case("SoftMarginLoss", nn.SoftMarginLoss, real(4, 3), sign(4, 3)),
    case("CosineEmbeddingLoss", lambda: nn.CosineEmbeddingLoss(margin=0.1), real(5, 3), real(5, 3), sign(5)),
    case("TripletMarginLoss", nn.TripletMarginLoss, real(4, 3), real(4, 3), real(4, 3)),
    case(
        "TripletMarginLoss, swap, p=3", lambda: nn.TripletMarginLoss(swap=True, p=3), real(4, 3), real(4, 3), real(4, 3)
    ),
    case(
        "TripletMarginWithDistanceLoss",
        lambda: nn.TripletMarginWithDistanceLoss(distance_function=lambda a, b: 1 - F.cosine_similarity(a, b)),
        real(4, 3),
        real(4, 3),
        real(4, 3),
    ),
    case("MultiLabelSoftMarginLoss", nn.MultiLabelSoftMarginLoss, real(4, 3), positive(4, 3, fixed=True)),
    case("MultiMarginLoss", nn.MultiMarginLoss, real(4, 3), whole(3, 4)),
    case(
        "MultiMarginLoss, squares, weights",
        lambda: nn.MultiMarginLoss(p=2, margin=0.7, weight=torch.rand(3)),
        real(4, 3),
        whole(3, 4),
    ),
    case("MultiMarginLoss, one example", lambda: nn.MultiMarginLoss(reduction="none"), real(3), whole(3)),
    case("MultiLabelMarginLoss", nn.MultiLabelMarginLoss, real(4), numbers(3, 0, -1, 1)),
    case(
        "MultiLabelMarginLoss, a batch",
        lambda: nn.MultiLabelMarginLoss(reduction="none"),
        real(2, 4),
        Given(lambda key: torch.tensor([[3, 0, -1, 1], [1, 0, 2, 3]]), fixed=True),
    ),
    case(
        "CTCLoss",
        lambda: BehindLogSoftmax(nn.CTCLoss()),
        real(6, 2, 4),
        Given(lambda key: 1 + random.integers(key, 3, (2, 3)), True),
        numbers(6, 5),
        numbers(3, 2),
    ),
]

CASES += [
    *(
        case(f"cdist (torch), p={p:g}", lambda p=p: Of(lambda a, b: torch.cdist(a, b, p)), real(4, 3), real(5, 3))
        for p in (0.5, 1.0, 1.5, 2.0, 3.0, float("inf"))
    ),
    case("cdist (torch), a batch", lambda: Of(lambda a, b: torch.cdist(a, b)), real(2, 1, 4, 3), real(3, 5, 3)),
    *(
        case(f"pdist (F), p={p:g}", lambda p=p: Of(lambda a: F.pdist(a, p)), real(5, 3))
        for p in (1.0, 2.0, 3.0, float("inf"))
    ),
]
