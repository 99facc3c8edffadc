"""Activations: all of torch's, and what is drawn (dropouts)."""

from torch import nn

from tests.zoo.rows import SPACE, Row, convolutional, dense

_SMOOTH_OR_NOT = {
    "ELU": nn.ELU,
    "Hardshrink": nn.Hardshrink,
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardtanh": nn.Hardtanh,
    "Hardswish": nn.Hardswish,
    "LeakyReLU": nn.LeakyReLU,
    "LogSigmoid": nn.LogSigmoid,
    "PReLU": nn.PReLU,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "SELU": nn.SELU,
    "CELU": nn.CELU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "Softplus": nn.Softplus,
    "Softshrink": nn.Softshrink,
    "Softsign": nn.Softsign,
    "Tanh": nn.Tanh,
    "Tanhshrink": nn.Tanhshrink,
    "Identity": nn.Identity,
}

ROWS = {
    **{f"activation {name}": Row(lambda build=build: dense(build())) for name, build in _SMOOTH_OR_NOT.items()},
    "activation GELU, tanh": Row(lambda: dense(nn.GELU(approximate="tanh"))),
    "activation ELU, in place": Row(lambda: dense(nn.ELU(inplace=True))),
    "activation ReLU, in place": Row(lambda: dense(nn.ReLU(inplace=True))),
    "activation Hardsigmoid, in place": Row(lambda: dense(nn.Hardsigmoid(inplace=True))),
    "activation Threshold": Row(lambda: dense(nn.Threshold(0.1, -0.3))),
    "activation PReLU, one a channel": Row(lambda: convolutional(nn.PReLU(4)), SPACE[2]),
    "activation GLU": Row(lambda: dense(nn.GLU())),
    "activation Softmax": Row(lambda: dense(nn.Softmax(dim=-1))),
    "activation LogSoftmax": Row(lambda: dense(nn.LogSoftmax(dim=-1))),
    "activation Softmin": Row(lambda: dense(nn.Softmin(dim=-1))),
    "activation Softmax2d": Row(lambda: convolutional(nn.Softmax2d()), SPACE[2]),
    "activation RReLU": Row(lambda: dense(nn.RReLU()), draws=True),
    "activation RReLU, evaluation": Row(lambda: dense(nn.RReLU()), training=False),
    "dropout": Row(lambda: dense(nn.Tanh(), nn.Dropout(0.3)), draws=True),
    "dropout, in place": Row(lambda: dense(nn.Dropout(0.3, inplace=True), nn.Tanh()), draws=True),
    "dropout, evaluation": Row(lambda: dense(nn.Tanh(), nn.Dropout(0.3)), training=False),
    "dropout 1d": Row(lambda: convolutional(nn.Dropout1d(0.3), dims=1), SPACE[1], draws=True),
    "dropout 2d": Row(lambda: convolutional(nn.Dropout2d(0.3)), SPACE[2], draws=True),
    "dropout 3d": Row(lambda: convolutional(nn.Dropout3d(0.3), dims=3), SPACE[3], draws=True),
    "alpha dropout": Row(lambda: dense(nn.SELU(), nn.AlphaDropout(0.3)), draws=True),
    "feature alpha dropout": Row(lambda: convolutional(nn.FeatureAlphaDropout(0.3)), SPACE[2], draws=True),
}
