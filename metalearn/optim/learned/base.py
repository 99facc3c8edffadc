"""The seam of learned optimizers: a function from meta-parameters to an optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from metalearn import tree
from metalearn.errors import UsageError, did_you_mean
from metalearn.optim.base import GradientTransformation
from metalearn.types import Tensors


class LearnedOptimizer(ABC):
    r"""An optimizer whose own parameters $\phi$ are learned: $u_t, s_{t+1} = o_\phi(g_t, s_t, \theta_t)$.

    One of a user's own is a frozen dataclass that implements `init` and `__call__`. It works wherever a
    `GradientTransformation` does, once it has been given its meta-parameters: in `Problem.optimizer`, in
    `metalearn.adapt`, and in `algorithms.MAML(inner_optimizer=…)`, which holds them in `meta` as `"optimizer.…"`.

    Example:
        >>> from metalearn.optim.learned import MetaSGD
        >>> learned, params = MetaSGD(0.1), {"w": torch.ones(2)}
        >>> meta = learned.init(params)
        >>> meta
        {'lr.w': tensor([0.1000, 0.1000])}
        >>> optimizer = learned(meta)
        >>> optimizer.step({"w": torch.tensor([1.0, 2.0])}, optimizer.init(params), params)[0]
        {'w': tensor([0.9000, 0.8000])}
    """

    @abstractmethod
    def init(self, params: Tensors) -> Tensors:
        """The meta-parameters to start from, for an inner loop that adapts `params`; in their dtype, on their device.

        They depend on the names, shapes, dtypes and device of `params`, never on their values.
        """

    @abstractmethod
    def __call__(self, meta: Tensors) -> GradientTransformation:
        """The optimizer that has these meta-parameters; differentiable in them."""

    def __str__(self) -> str:
        # Not the repr of a dataclass: that of a function among the fields holds its address, another in every run.
        given = [f"{each.name}={_shown(getattr(self, each.name))}" for each in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(given)})"


def of_params(
    make: Callable[[Tensors], GradientTransformation], *, check: Callable[[Tensors], None]
) -> GradientTransformation:
    """The transformation that `make` returns for the parameters at hand, for optimizers that need their names.

    `check` is called where an inner loop begins, and where a name is missing later (a state of other parameters).
    """

    def init(params: Tensors) -> Any:
        check(params)
        return make(params).init(params)

    def update(updates: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Any]:
        with _telling(check, params):
            return make(params).update(updates, state, params)

    def fused(grads: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Tensors, Any]:
        with _telling(check, params):
            return make(params).step(grads, state, params)

    return GradientTransformation(init, update, fused)


@contextmanager
def _telling(check: Callable[[Tensors], None], params: Tensors) -> Iterator[None]:
    try:
        yield
    except KeyError:
        check(params)
        raise


def check_meta(learned: LearnedOptimizer, meta: Tensors, params: Tensors) -> None:
    """Raises UsageError unless `meta` has the names and shapes of `learned.init(params)`."""
    kind, expected = type(learned).__name__, learned.init(params)
    fix = f"Meta-parameters come from {kind}.init(params) of the parameters that are adapted."
    for name, value in expected.items():
        if name not in meta:
            raise UsageError(f"{kind} has no meta-parameter {name!r}. {did_you_mean(name, meta)} {fix}")
        if meta[name].shape != value.shape:
            got, wanted = list(meta[name].shape), list(value.shape)
            raise UsageError(f"{kind}'s meta-parameter {name!r} has shape {got}, expected {wanted}. {fix}")
    for name in meta:
        if name not in expected:
            raise UsageError(
                f"{kind} has a meta-parameter {name!r} that no parameter uses. {did_you_mean(name, expected)} {fix}"
            )


def check_rate(owner: str, optimizer: Any, lr: Any, *, names: tuple[str, str]) -> None:
    """Raises UsageError where a rate is given that a learned optimizer would not use, or none that is needed.

    Args:
        owner: the class that has both.
        optimizer: a `LearnedOptimizer`, or a callable from a rate to a `GradientTransformation`.
        lr: the rate, or None.
        names: how the owner calls the two, optimizer first.
    """
    optimizer_name, lr_name = names
    if isinstance(optimizer, LearnedOptimizer):
        if lr is not None:
            raise UsageError(
                f"{owner} got {lr_name}={lr!r} and {optimizer_name}={optimizer}, which brings rates of its own: give "
                f"the rate there, and {lr_name}=None."
            )
    elif not callable(optimizer) or isinstance(optimizer, GradientTransformation):
        raise UsageError(
            f"{owner} got {optimizer_name}={type(optimizer).__name__}: expected a function from a rate to an optimizer "
            f"(metalearn.optim.sgd, with {lr_name}=0.1), or a learned optimizer (MetaSGD(0.1))."
        )
    elif lr is None:
        raise UsageError(f"{owner} has no rate: give {lr_name}=…, or a learned optimizer as {optimizer_name}.")


def optimizer_of(optimizer: Any, lr: Any, meta: Tensors, prefix: str) -> GradientTransformation:
    """A learned optimizer with its part of `meta`, or what a callable makes of a rate."""
    made: GradientTransformation
    made = optimizer(tree.select(meta, prefix)) if isinstance(optimizer, LearnedOptimizer) else optimizer(lr)
    return made


def in_range(owner: str, **counts: int) -> None:
    """Raises UsageError unless every one is an integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"{owner}({name}={count!r}): it must be an integer of at least 1.")


def dtype_of(params: Tensors) -> torch.dtype:
    """The widest dtype among parameters."""
    dtype = next(iter(params.values())).dtype if params else torch.get_default_dtype()
    for value in params.values():
        dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def _shown(value: Any) -> str:
    """A field as it is written in code."""
    if isinstance(value, LearnedOptimizer):
        return str(value)
    if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        given = [*map(repr, value.args), *(f"{name}={each!r}" for name, each in value.keywords.items())]
        return f"{_shown(value.func)}({', '.join(given)})"
    return str(getattr(value, "__name__", repr(value)))
