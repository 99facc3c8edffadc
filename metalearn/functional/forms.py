"""Layers of torch whose forward is replaced as a whole, because its parts can not be seen or can not be replaced."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.adaptive import _ASMoutput

from metalearn.errors import UsageError
from metalearn.functional import norms
from metalearn.functional.ownership import vmap_levels


def own_forms(cls: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Further bases, and attributes, of the class of a skeleton of such a module."""
    own = {
        name: form
        for (base, name), form in _FORMS.items()
        if isinstance(cls, type) and issubclass(cls, base) and getattr(cls, name) is getattr(base, name)
    }
    if _is_compiled(cls):
        own["__call__"] = _call_uncompiled
    bases, attributes = norms.own_forms(cls)
    return bases, {**own, **attributes}


def _is_compiled(cls: Any) -> bool:
    # By name: its module takes long to import, and is there where torch.compile was called.
    return (cls.__module__, cls.__name__) == ("torch._dynamo.eval_frame", "OptimizedModule")


def _call_uncompiled(self: Any, *args: Any, **kwargs: Any) -> Any:
    # What torch.compile has made of a module runs the user's own, and compiles anew under each transform of torch.func.
    # metalearn compiles whole steps (execution.compile).
    return self._orig_mod(*args, **kwargs)


def _cross_map_norm(self: Any, input: Tensor) -> Tensor:
    # An autograd.Function that torch.func does not know, with a derivative of order 1 which is not that of its value:
    # its running sum over channels never lets go of the first one (torch 2.13).
    raise UsageError(
        "nn.CrossMapLRN2d has no second derivative, and its first one is not that of its value. Use "
        "nn.LocalResponseNorm(size, alpha, beta, k), which computes what it is meant to."
    )


_adaptive_forward = nn.AdaptiveLogSoftmaxWithLoss.forward
_adaptive_predict = nn.AdaptiveLogSoftmaxWithLoss.predict


def _adaptive_loss(self: Any, input_: Tensor, target_: Tensor) -> _ASMoutput:
    # torch's saves work by picking the rows of each cluster, and how many those are can not be read under vmap: there,
    # all clusters are computed for all rows.
    if not _batched(input_, target_, self.head.weight):
        return _adaptive_forward(self, input_, target_)
    rows = input_ if target_.dim() else input_[None]
    chosen = self.log_prob(rows).gather(1, target_.reshape(-1, 1))[:, 0]
    loss = -chosen.mean()
    return _ASMoutput(chosen if target_.dim() else chosen[0], loss)


def _adaptive_prediction(self: Any, input: Tensor) -> Tensor:
    if not _batched(input, self.head.weight):
        return _adaptive_predict(self, input)
    predicted: Tensor = self.log_prob(input).argmax(1)
    return predicted


def _adaptive_log_prob(self: Any, input: Tensor, head_output: Tensor) -> Tensor:
    # torch's writes the clusters into a tensor that it makes; these are its values.
    head = head_output.log_softmax(1)
    tails = [
        self.tail[index](input).log_softmax(1) + head[:, self.shortlist_size + index, None]
        for index in range(len(self.cutoffs) - 1)
    ]
    return torch.cat([head[:, : self.shortlist_size], *tails], 1)


def _batched(*tensors: Tensor) -> bool:
    return any(map(vmap_levels, tensors))


_FORMS: dict[tuple[type[nn.Module], str], Any] = {
    (nn.CrossMapLRN2d, "forward"): _cross_map_norm,
    (nn.AdaptiveLogSoftmaxWithLoss, "forward"): _adaptive_loss,
    (nn.AdaptiveLogSoftmaxWithLoss, "predict"): _adaptive_prediction,
    (nn.AdaptiveLogSoftmaxWithLoss, "_get_full_log_prob"): _adaptive_log_prob,
}
