"""CAVIA: adapt a few context parameters, and learn all others."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import random
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.roles import Roles
from metalearn.errors import UsageError
from metalearn.functional import RNG, FunctionalModel
from metalearn.state import Filter

CONTEXT = "context"
_MAPS = ("context_to_scale", "context_to_shift")
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Norm = nn.modules.batchnorm._NormBase | nn.GroupNorm


@dataclass(frozen=True, kw_only=True)
class CAVIA(MAML):
    r"""Context adaptation: what is specific to a task is a small vector that modulates one layer.

    $\phi_i = \phi_0 - \alpha \nabla_\phi L_i^{support}(\phi_0, \theta)$ from $\phi_0 = 0$ in every task, and
    $\min_\theta \sum_i L_i^{query}(\phi_i, \theta)$. Any model can take it: the context acts on the output $h$ of the
    submodule `layer`. A linear layer gets $h + V \phi$, as if $\phi$ were concatenated to its input; a convolution, or
    the norm after it, $(1 + U \phi) \circ h + V \phi$, channel by channel (FiLM). U and V are learned,
    `"init.LAYER.context_to_scale"` and `"init.LAYER.context_to_shift"`; they start uniform in
    $\pm 1 / \sqrt{num\_context}$. A layer whose output is normalised next is refused: the norm would take scale and
    shift out again, and nothing would be learned.

    The paper's convolution has a bias in the place of the 1, so that its layer starts at a random scale.

    Attributes:
        num_context: the size of $\phi$; the paper takes 4 or 5 on sinusoids and 100 on mini-ImageNet.
        layer: which submodule; None for the last but one convolution (the third of a Conv-4, as in the paper), or,
            in a model without two of them, the first linear layer; for the norm after it where one follows.
        adapted: the context; leave it as it is.
        inner_lr: the paper takes 1.0 on sinusoids, and on images.

    Reference: Zintgraf et al. 2019, arXiv:1810.03642, section 3.
    """

    num_context: int = 5
    layer: str | None = None
    adapted: Filter = f"*.{CONTEXT}"

    def __post_init__(self) -> None:
        """Refuses a context of nothing."""
        super().__post_init__()
        size = self.num_context
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"CAVIA(num_context={size!r}): it must be an integer of at least 1.")

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        layer = self.layer or "the last but one convolution, or the first linear layer"
        return {**super().protocol(), "num_context": self.num_context, "context_layer": layer}

    def working_model(self, model: FunctionalModel) -> FunctionalModel:
        """The model with a context in one of its layers."""
        layer = _usual_layer(model.module) if self.layer is None else self.layer
        norm = _norm_after(model.module, layer)
        if norm is not None:
            raise UsageError(
                f"CAVIA(layer={layer!r}): the norm {norm!r} follows and takes the context's scale and shift out again. "
                f"Put it behind the norm: layer={norm!r} (algorithm.layer={norm})."
            )
        return model.exchanging(layer, lambda part: _modulated(part, layer, self.num_context, model.buffers.get(RNG)))

    def roles(self, model: FunctionalModel) -> Roles:
        """All is learned but the context, which starts at 0."""
        roles = super().roles(model)
        context = {name: value for name, value in roles.learned.items() if name.endswith(f".{CONTEXT}")}
        learned = {name: value for name, value in roles.learned.items() if name not in context}
        return replace(roles, learned=learned, fixed={**roles.fixed, **context})


def _usual_layer(module: nn.Module) -> str:
    convolutions: list[str] = [name for name, part in module.named_modules() if isinstance(part, _Convolution)]
    linear: list[str] = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if len(convolutions) > 1:
        layer = convolutions[-2]
    elif linear:
        layer = linear[0]
    else:
        raise UsageError(
            f"CAVIA found no linear layer and no convolutions in {type(module).__name__} to put a context into. Name "
            "the layer: layer=…."
        )
    return _norm_after(module, layer) or layer


def _norm_after(module: nn.Module, layer: str) -> str | None:
    """The norm of a layer's channels that is registered next to it, if the layer is no norm itself."""
    leaves = [(name, part) for name, part in module.named_modules() if not any(part.children())]
    names = [name for name, _ in leaves]
    if layer not in names or names.index(layer) + 1 == len(leaves):
        return None
    (_, part), (name, after) = leaves[names.index(layer) :][:2]
    normalised = isinstance(part, nn.Linear | _Convolution) and isinstance(after, _Norm)
    return name if normalised and _channels(after) == _channels(part) else None


def _channels(part: nn.Module) -> int:
    """How many channels, or features, a layer returns."""
    for name in ("out_features", "out_channels", "num_features", "num_channels"):
        if hasattr(part, name):
            return int(getattr(part, name))
    raise UsageError(f"CAVIA does not know how many channels a {type(part).__name__} returns.")


def _modulated(part: nn.Module, layer: str, num_context: int, key: Tensor | None) -> nn.Module:
    """The layer, with a context among its parameters and a hook that lets it act on the output."""
    if not isinstance(part, nn.Linear | _Convolution | _Norm):
        kind = type(part).__name__
        raise UsageError(f"CAVIA puts a context into a linear layer, a convolution or a norm; {layer!r} is a {kind}.")
    channels, maps = _channels(part), _MAPS[1:] if isinstance(part, nn.Linear) else _MAPS
    dtype = torch.get_default_dtype() if part.weight is None else part.weight.dtype
    own = {CONTEXT: torch.zeros(num_context, dtype=dtype)}
    key = random.key(0) if key is None else key.cpu()
    for number, name in enumerate(maps):
        drawn = random.uniform(random.fold_in(key, number), (channels, num_context), dtype=dtype)
        own[name] = (2 * drawn - 1) / num_context**0.5
    part.__dict__["_parameters"] = {**part._parameters, **{name: nn.Parameter(value) for name, value in own.items()}}
    part.__dict__["_forward_hooks"] = OrderedDict(copy.copy(part._forward_hooks))
    part.register_forward_hook(_act)
    return part


def _act(part: nn.Module, args: Any, output: Tensor) -> Tensor:
    """What a context makes of the layer's output."""
    parameters = part._parameters
    context, shift = parameters[CONTEXT], parameters[_MAPS[1]]
    assert context is not None
    assert shift is not None
    added = shift @ context
    scale = parameters.get(_MAPS[0])
    if scale is None:
        return output + added
    form = (-1, *[1] * (output.dim() - 2))
    return output * (1 + (scale @ context).reshape(form)) + added.reshape(form)
