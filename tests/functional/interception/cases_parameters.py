"""Embeddings, parametrizations, recurrent layers and attention."""

import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.functional.interception.cases import Children, Sine, WeightedBag, called, case, numbers, old, real, whole

PROJECTED = "rows too long are projected at look-up, differentiably; the parameter is not changed"

CASES = [
    case("Embedding", lambda: nn.Embedding(7, 3), whole(7, 4, 2)),
    case("Embedding, padding_idx", lambda: nn.Embedding(7, 3, padding_idx=2), numbers(0, 2, 2, 5, 6), constant_row=2),
    case(
        "Embedding, max_norm",
        lambda: nn.Embedding(7, 3, max_norm=1.0),
        whole(7, 4, 2),
        differs=PROJECTED,
        first_tolerance=None,
    ),
    case(
        "Embedding, max_norm of order 1",
        lambda: nn.Embedding(7, 3, max_norm=1.0, norm_type=1.0),
        whole(7, 5),
        differs=PROJECTED,
        first_tolerance=None,
    ),
    case("Embedding, sparse", lambda: nn.Embedding(7, 3, sparse=True), whole(7, 4, 2)),
    case(
        "Embedding, scale_grad_by_freq",
        lambda: nn.Embedding(7, 3, scale_grad_by_freq=True),
        whole(7, 4, 2),
        refused="scale_grad_by_freq",
    ),
]
for _mode in ("sum", "mean", "max"):
    CASES += [
        case(f"EmbeddingBag, {_mode}", lambda m=_mode: nn.EmbeddingBag(7, 3, mode=m), whole(7, 4, 5)),
        case(
            f"EmbeddingBag, {_mode}, offsets with empty bags",
            lambda m=_mode: nn.EmbeddingBag(7, 3, mode=m),
            whole(7, 8),
            numbers(0, 0, 3, 5, 8),
        ),
        case(
            f"EmbeddingBag, {_mode}, last offset, padding",
            lambda m=_mode: nn.EmbeddingBag(7, 3, mode=m, include_last_offset=True, padding_idx=2),
            numbers(1, 2, 2, 2, 5, 6, 2, 0),
            numbers(0, 2, 4, 8),
        ),
        case(
            f"EmbeddingBag, {_mode}, max_norm",
            lambda m=_mode: nn.EmbeddingBag(7, 3, mode=m, max_norm=1.0),
            whole(7, 4, 5),
            differs=PROJECTED,
            first_tolerance=None,
        ),
    ]
CASES += [
    case(
        "EmbeddingBag, sum, per_sample_weights",
        lambda: WeightedBag(nn.EmbeddingBag(7, 3, mode="sum", padding_idx=2)),
        whole(7, 4, 5),
        real(4, 5),
    ),
    case("EmbeddingBag, sparse", lambda: nn.EmbeddingBag(7, 3, mode="sum", sparse=True), whole(7, 4, 5)),
    case(
        "EmbeddingBag, scale_grad_by_freq",
        lambda: nn.EmbeddingBag(7, 3, mode="sum", scale_grad_by_freq=True),
        whole(7, 4, 5),
        refused="scale_grad_by_freq",
    ),
]

CASES += [
    case("weight_norm (parametrization)", lambda: parametrizations.weight_norm(nn.Linear(3, 4)), real(4, 3)),
    case(
        "weight_norm (parametrization), dim=1",
        lambda: parametrizations.weight_norm(nn.Conv1d(2, 3, 2), dim=1),
        real(2, 2, 4),
    ),
    case("weight_norm (old hook)", lambda: old(nn.utils.weight_norm, nn.Linear(3, 4)), real(4, 3)),
    case("weight_norm (old hook), dim=None", lambda: old(nn.utils.weight_norm, nn.Linear(3, 4), dim=None), real(4, 3)),
    case("spectral_norm (parametrization)", lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), real(4, 3)),
    case(
        "spectral_norm (parametrization), evaluation",
        lambda: parametrizations.spectral_norm(nn.Linear(3, 4)).eval(),
        real(4, 3),
    ),
    case(
        "spectral_norm (parametrization), bias",
        lambda: parametrizations.spectral_norm(nn.Linear(3, 4), "bias"),
        real(4, 3),
    ),
    case("spectral_norm (old hook)", lambda: old(nn.utils.spectral_norm, nn.Conv1d(2, 3, 2)), real(2, 2, 4)),
    case(
        "spectral_norm (old hook), evaluation", lambda: old(nn.utils.spectral_norm, nn.Linear(3, 4)).eval(), real(4, 3)
    ),
    *(
        case(
            f"orthogonal (parametrization), {name}{'' if square else ', not square'}",
            lambda name=name, square=square: parametrizations.orthogonal(
                nn.Linear(3, 3 if square else 4), orthogonal_map=name
            ),
            real(4, 3),
            slow=name == "householder",
        )
        for name, square in (("matrix_exp", True), ("cayley", True), ("householder", False), ("matrix_exp", False))
    ),
]

CASES += [
    *(
        case(
            f"{name}{', ' + special if special else ''}",
            lambda name=name, kw=kw: Sine(getattr(nn, name)(3, 4, **kw)),
            real(5, 2, 3),
        )
        for name in ("RNN", "LSTM", "GRU")
        for special, kw in (("", {}), ("two layers, both directions", {"num_layers": 2, "bidirectional": True}))
    ),
    case("RNN, relu", lambda: Sine(nn.RNN(3, 4, nonlinearity="relu", batch_first=True)), real(2, 5, 3)),
    case("LSTM, projected", lambda: Sine(nn.LSTM(3, 4, proj_size=2)), real(5, 2, 3)),
    case("LSTM, dropout", lambda: Sine(nn.LSTM(3, 4, 2, dropout=0.5)), real(5, 2, 3), draws=True),
    case("RNNCell", lambda: nn.RNNCell(3, 4), real(2, 3), real(2, 4)),
    case("GRUCell", lambda: nn.GRUCell(3, 4), real(2, 3), real(2, 4)),
    case("LSTMCell", lambda: Sine(nn.LSTMCell(3, 4)), real(2, 3)),
    case("MultiheadAttention", lambda: Sine(nn.MultiheadAttention(4, 2)), real(5, 2, 4), real(3, 2, 4), real(3, 2, 4)),
    case(
        "MultiheadAttention, evaluation",
        lambda: Sine(nn.MultiheadAttention(4, 2, batch_first=True).eval()),
        real(2, 5, 4),
        real(2, 5, 4),
        real(2, 5, 4),
    ),
    case(
        "MultiheadAttention, dropout",
        lambda: Sine(nn.MultiheadAttention(4, 2, dropout=0.3)),
        real(5, 2, 4),
        real(3, 2, 4),
        real(3, 2, 4),
        draws=True,
    ),
    case(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu"),
        real(5, 2, 4),
    ),
    case(
        "TransformerEncoderLayer, dropout",
        lambda: nn.TransformerEncoderLayer(4, 2, 6, activation="gelu"),
        real(5, 2, 4),
        draws=True,
    ),
    case(
        "TransformerEncoderLayer, evaluation",
        lambda: nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", batch_first=True).eval(),
        real(2, 5, 4),
    ),
    case(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, 0.0, "gelu", batch_first=True), 2),
        real(2, 5, 4),
    ),
    case(
        "TransformerDecoderLayer",
        lambda: nn.TransformerDecoderLayer(4, 2, 6, 0.0, "gelu"),
        real(3, 2, 4),
        real(5, 2, 4),
    ),
    case(
        "TransformerDecoder",
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 6, 0.0, "gelu"), 2),
        real(3, 2, 4),
        real(5, 2, 4),
    ),
    case(
        "Transformer",
        lambda: nn.Transformer(4, 2, 1, 1, 6, 0.0, "gelu", batch_first=True),
        real(2, 3, 4),
        real(2, 5, 4),
    ),
]

CASES += [
    case("Sequential", lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), real(4, 3)),
    case("ModuleList", lambda: Children(nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2)])), real(4, 3)),
    case("ModuleDict", lambda: Children(nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 2)})), real(4, 3)),
    case("ParameterList", lambda: Children(nn.ParameterList([torch.rand(3, 3), torch.rand(3, 2)])), real(4, 3)),
    case("ParameterDict", lambda: Children(nn.ParameterDict({"a": torch.rand(3, 2)})), real(4, 3)),
    case("LazyLinear", lambda: called(nn.LazyLinear(2), torch.ones(4, 3)), real(4, 3)),
]
for _dims, _space in {1: (6,), 2: (4, 5), 3: (4, 3, 4)}.items():
    for _name, _options in {
        "LazyConv": (3, 2),
        "LazyConvTranspose": (3, 2),
        "LazyBatchNorm": (),
        "LazyInstanceNorm": (1e-5, 0.1, True),
    }.items():
        CASES.append(
            case(
                f"{_name}{_dims}d",
                lambda name=f"{_name}{_dims}d", options=_options, space=_space: called(
                    getattr(nn, name)(*options), torch.ones(4, 2, *space)
                ),
                real(4, 2, *_space),
            )
        )
