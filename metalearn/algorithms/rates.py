"""What the algorithms that learn how to step begin with: a rate, and an optimizer of that rate."""

from collections.abc import Callable

from metalearn.algorithms.maml import MAML
from metalearn.errors import UsageError
from metalearn.optim import GradientTransformation
from metalearn.optim.learned import LearnedOptimizer
from metalearn.types import Hyper


def starting_rate(algorithm: MAML) -> tuple[float, Callable[[Hyper], GradientTransformation]]:
    """The number that an algorithm's rates start at, and the optimizer whose rates they are.

    Raises:
        UsageError: the inner optimizer is learned itself, or the rate is no number.
    """
    name = type(algorithm).__name__
    if isinstance(algorithm.inner_optimizer, LearnedOptimizer):
        raise UsageError(
            f"{name} learns how to step itself, and inner_optimizer={algorithm.inner_optimizer} does too: give an "
            "optimizer such as metalearn.optim.sgd, or take MAML with that one."
        )
    if not isinstance(algorithm.inner_lr, int | float):
        raise UsageError(f"{name}(inner_lr={algorithm.inner_lr!r}): learned rates start at a number.")
    return float(algorithm.inner_lr), algorithm.inner_optimizer
