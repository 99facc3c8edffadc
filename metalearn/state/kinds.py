"""The kinds of state, told apart by name."""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from torch import Tensor, nn

from metalearn.errors import UsageError, closest
from metalearn.functional import RNG, FunctionalModel
from metalearn.state.fit import check_dicts
from metalearn.state.named import OPT_STATE, named
from metalearn.types import Tensors


class Kind(str, Enum):
    """What a piece of state is to the model.

    Attributes:
        PARAMETER: a parameter of the module, also one that forward assigns to and that came back among the buffers.
        BATCH_STATISTIC: `running_mean`, `running_var` and `num_batches_tracked`, of whichever module.
        BUFFER: any other buffer: a position index, spectral norm's vectors, a module's own state.
        RANDOM: the key that the model draws from, `"rng"`.
        OPTIMIZER: state of an optimizer, as `metalearn.state.named` calls it: `"opt_state.…"`.
    """

    PARAMETER = "parameter"
    BATCH_STATISTIC = "batch_statistic"
    BUFFER = "buffer"
    RANDOM = "random"
    OPTIMIZER = "optimizer"


_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


def kinds(model: FunctionalModel | nn.Module, names: Iterable[str] | None = None) -> dict[str, Kind]:
    """The kind of every piece of state, by name.

    Args:
        model: the model, or its module.
        names: whose kinds; by default all parameters and buffers of the model, and its random key.

    Raises:
        UsageError: a name is neither the model's nor an optimizer's.

    Example:
        >>> from metalearn import functionalize
        >>> {name: kind.value for name, kind in kinds(functionalize(nn.BatchNorm1d(2, affine=False))).items()}
        {'running_mean': 'batch_statistic', 'running_var': 'batch_statistic', \
'num_batches_tracked': 'batch_statistic', 'rng': 'random'}
    """
    module = module_of(model)
    parameters = {name for name, _ in module.named_parameters()}
    buffers = {name for name, _ in module.named_buffers()}
    if isinstance(names, str):
        raise UsageError(f"names is the text {names!r}, expected several names: [{names!r}].")
    if names is None:
        names = [*parameters_and_buffers(module), RNG]
    return {name: _kind(name, parameters, buffers) for name in names}


def by_kind(
    model: FunctionalModel | nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    opt_state: Any = None,
) -> dict[Kind, Tensors]:
    """All state as one plain dict of tensors a kind; `merge(*by_kind(…).values())` is all of it in one.

    Args:
        model: the model, or its module.
        params: its parameters.
        buffers: its buffers, `"rng"` among them; a parameter that is among them counts, as it does in a call.
        opt_state: an optimizer's state, any nest of tensors; named by `metalearn.state.named`.
    """
    check_dicts(params, buffers, what="by_kind(model, params, buffers)")
    state = {**params, **buffers, **named(() if opt_state is None else opt_state)}
    told_apart = kinds(model, state)
    return {kind: {name: state[name] for name in state if told_apart[name] is kind} for kind in Kind}


def module_of(model: FunctionalModel | nn.Module) -> nn.Module:
    """The module behind a model.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(model, FunctionalModel):
        return model.module
    if isinstance(model, nn.Module):
        return model
    raise UsageError(f"model is {type(model).__name__}: expected a FunctionalModel or its torch.nn.Module.")


def parameters_and_buffers(module: nn.Module) -> Tensors:
    """The module's own tensors by name, a tied one once, in the order of `params` and `buffers`."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def _kind(name: str, parameters: set[str], buffers: set[str]) -> Kind:
    if name in parameters:
        return Kind.PARAMETER
    if name in buffers:
        return Kind.BATCH_STATISTIC if name.rpartition(".")[2] in _STATISTICS else Kind.BUFFER
    if name == RNG:
        return Kind.RANDOM
    if name == OPT_STATE or name.startswith(f"{OPT_STATE}."):
        return Kind.OPTIMIZER
    raise UsageError(
        f"{name!r} is no parameter or buffer of the model, nor {RNG!r}, nor an optimizer's ({OPT_STATE!r} and a dot in "
        f"front). {closest(name, parameters | buffers)}"
    )
