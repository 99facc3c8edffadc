"""`check_agreement`: strategies that should give one gradient, compared on a user's own problem."""

from collections.abc import Mapping

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.metagrad import Strategy, Unrolled
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors


def check_agreement(
    problem: Problem,
    meta: Tensors,
    episode: Episode,
    strategies: Mapping[str, Strategy],
    *,
    reference: Strategy | None = None,
    tolerance: float = 1e-10,
) -> dict[str, float]:
    """Compares the value and the gradient that strategies give for one episode with a reference's.

    Unlike `check_meta_gradient` it takes one evaluation a strategy and works in any precision, but a mistake that all
    of them share, such as a detached tensor in a loss, goes unseen.

    Args:
        problem: for one task.
        meta: meta-parameters.
        episode: one task's data without the task axis.
        strategies: by the names under which they are reported.
        reference: what they are compared with; by default `Unrolled()`.
        tolerance: largest error accepted; 1e-10 is for float64.

    Returns:
        The error by strategy: the larger one of the value's and the gradient's, relative to the reference's.

    Raises:
        AssertionError: some disagree; it names them all, with what they say about themselves.
        UsageError: there is no strategy to compare.

    Example:
        >>> from metalearn import Episodes, algorithms, functionalize, losses, metagrad
        >>> model = functionalize(torch.nn.Linear(1, 1).double())
        >>> maml = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.1, num_inner_steps=3)
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        >>> episode = Episodes((x, 2 * x), (x, 3 * x))
        >>> strategies = {"stepwise": metagrad.Stepwise(), "forward": metagrad.ForwardMode()}
        >>> errors = check_agreement(maml.problem(model), maml.init(model), episode, strategies)
        >>> max(errors.values()) < 1e-12
        True
    """
    if not strategies:
        raise UsageError('check_agreement needs strategies to compare: {"stepwise": Stepwise(), …}.')
    expected = (reference or Unrolled()).value_and_grad(problem)(meta, episode)
    errors = {}
    for name, strategy in strategies.items():
        got = strategy.value_and_grad(problem)(meta, episode)
        errors[name] = max(
            _relative({"value": got.value}, {"value": expected.value}), _relative(got.grads, expected.grads)
        )
    wrong = [name for name, error in errors.items() if not error <= tolerance]
    if wrong:
        told = "; ".join(f"{name} by {errors[name]:.1e}. {strategies[name].inexact}".rstrip() for name in wrong)
        raise AssertionError(
            f"strategies disagree with {type(reference or Unrolled()).__name__} (tolerance {tolerance:.0e}): {told}"
        )
    return errors


def _relative(got: Tensors, expected: Tensors) -> float:
    if got.keys() != expected.keys():
        raise AssertionError(f"got gradients of {sorted(got)}, expected those of {sorted(expected)}.")
    difference = [_wide(got[name] - value) for name, value in expected.items()]
    scale = [_wide(value) for value in expected.values()]
    return float(tree.norm(difference) / tree.norm(scale).clamp_min(1e-12))


def _wide(value: Tensor) -> Tensor:
    return (torch.view_as_real(value) if value.is_complex() else value).double()
