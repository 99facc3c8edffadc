"""Adam."""

from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation, chain
from metalearn.optim.sgd import check_not_negative
from metalearn.optim.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from metalearn.types import Hyper


def adam(
    lr: Hyper = 1e-3, *, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, weight_decay: Hyper | None = None
) -> GradientTransformation:
    r"""Adam, equal to `torch.optim.Adam`, differentiable in everything, without NaN for dead units.

    $\theta_t = \theta_{t-1} - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$; see `scale_by_adam` for the moments.

    Args:
        lr: learning rate $\eta$: a float, a tensor, a dict by parameter name, or a schedule; the other
            hyper-parameters likewise.
        b1: decay of the mean, in [0, 1).
        b2: decay of the mean square, in [0, 1).
        eps: added to the root; above 0, or a unit without gradient is 0 / 0.
        weight_decay: L2 regularisation added to the gradient (as in torch's Adam; not the decoupled form of AdamW).

    Raises:
        UsageError: a float out of its range.

    Reference: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1.
    """
    check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
    for name, beta in (("b1", b1), ("b2", b2)):
        if isinstance(beta, int | float) and not 0 <= beta < 1:
            raise UsageError(f"{name} is {beta}, but must be in [0, 1): the moments are divided by 1 - {name}**t.")
    decay = () if weight_decay is None else (add_decayed_weights(weight_decay),)
    return chain(*decay, scale_by_adam(b1, b2, eps), scale_by_learning_rate(lr))
