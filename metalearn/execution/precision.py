"""In which precision a meta-gradient's arithmetic is done; parameters, updates and losses are float32 in all of them.

Under `bf16` the inner and the outer loss run under torch's autocast: matrix products and convolutions take bfloat16
operands. Everything else of a meta-step stays float32:

- the parameters, what `Problem.init` makes of them, the inner optimizer's updates and state, the meta-gradient;
- the losses and what normalises (`_IN_FLOAT32`): softmax, log-softmax and the losses take and return float32,
  normalisation computes its statistics in float32 and returns bfloat16, running statistics stay float32. Autocast's
  own lists differ between devices, and its batch norm fails under vmap; this list is the same everywhere;
- validation, the test and every other evaluation.

Derivatives, also second ones, go through the same casts: what is differentiated is the function that was computed. A
loss written out by hand meets the model's outputs as autocast left them, in bfloat16: call `.float()` on them first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn import tree
from metalearn.errors import UsageError, did_you_mean
from metalearn.problem import Problem
from metalearn.types import Aux, Tensors

Precision: TypeAlias = Literal["float32", "tf32", "bf16"]
"""`"float32"`: as the tensors are, float64 too. `"tf32"`: products of float32 with 10 bits of mantissa (GPU alone).
`"bf16"`: mixed precision with bfloat16."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Loss: TypeAlias = Callable[[Tensors, Tensors, Tensors, Any, int], tuple[Tensor, Aux]]


def check_precision(precision: str, device: torch.device | None = None) -> None:
    """Refuses what is no precision, or none of that device.

    Raises:
        UsageError: an unknown name, or tf32 elsewhere than on a CUDA device.
    """
    if precision not in PRECISIONS:
        hint = did_you_mean(str(precision), PRECISIONS)
        raise UsageError(f"execution.precision={precision!r} is not a precision. {hint}")
    if precision == "tf32" and device is not None and device.type != "cuda":
        raise UsageError(
            f"execution.precision=tf32 is of CUDA devices, but this runs on the {device.type}. Take float32, or bf16."
        )


def in_precision(problem: Problem, precision: Precision) -> Problem:
    """The problem with its two losses computed in that precision; the very same problem for all but `"bf16"`."""
    if precision != "bf16":
        return problem
    return replace(problem, inner_loss=_in_bf16(problem.inner_loss), outer_loss=_in_bf16(problem.outer_loss))


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Float32 products of a CUDA device in TF32 or not, for as long as the block lasts.

    Torch's own default takes TF32 in convolutions: under `"float32"` they are float32 here. Global switches of torch,
    put back when the block is left; on other devices nothing is touched.

    Raises:
        UsageError: TF32 on another device.
    """
    if device.type != "cuda":
        check_precision(precision, device)
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # The older of torch's two interfaces: inductor reads it, which raises where the newer one alone was written.
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _in_bf16(loss: Loss) -> Loss:
    def mixed(meta: Tensors, params: Tensors, buffers: Tensors, batch: Any, step: int) -> tuple[Tensor, Aux]:
        seen = params or meta  # a problem without inner steps adapts nothing
        _refuse_other_dtypes(seen)
        device = next(iter(seen.values())).device.type
        # No cache of casts: it is kept by tensor, and the same tensor is another one at another level of a transform.
        with torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False), _Float32Parts():
            found = loss(meta, params, buffers, batch, step)
        # What is no (loss, Aux) is told as such by who called.
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Aux)):
            return found
        value, aux = found
        kept = {name: _as_before(value, buffers.get(name, params.get(name))) for name, value in aux.buffers.items()}
        return tree.map_tensors(_widened, value), Aux(kept, tree.map_tensors(_widened, aux.metrics))

    return mixed


def _refuse_other_dtypes(params: Tensors) -> None:
    for name, value in params.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise UsageError(
                f"execution.precision=bf16 keeps the parameters in float32, but {name!r} is {value.dtype}. Take "
                "precision=float32, which computes as the tensors are, or make the model float32."
            )


def _as_before(value: Tensor, before: Tensor | None) -> Tensor:
    return value if before is None or value.dtype == before.dtype else value.to(before.dtype)


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value


class _Float32Parts(TorchFunctionMode):
    """Gives float32 to what is not to be computed in bfloat16."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _IN_FLOAT32:
            return function(*args, **kwargs)
        result = function(*tree.map_tensors(_widened, args), **tree.map_tensors(_widened, kwargs))
        narrow = function in _NORMALISATION and args and isinstance(args[0], Tensor) and args[0].dtype == torch.bfloat16
        return result.to(torch.bfloat16) if narrow else result


_NORMALISATION = {
    F.batch_norm, F.group_norm, F.instance_norm, F.layer_norm, F.local_response_norm, F.normalize, F.rms_norm,
    torch.batch_norm, torch.group_norm, torch.instance_norm, torch.layer_norm, torch.rms_norm,
}  # fmt: skip

_IN_FLOAT32 = _NORMALISATION | {
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.cosine_embedding_loss, F.cross_entropy, F.ctc_loss,
    F.gaussian_nll_loss, F.hinge_embedding_loss, F.huber_loss, F.kl_div, F.l1_loss, F.log_softmax,
    F.margin_ranking_loss, F.mse_loss, F.multi_margin_loss, F.multilabel_margin_loss, F.multilabel_soft_margin_loss,
    F.nll_loss, F.poisson_nll_loss, F.smooth_l1_loss, F.soft_margin_loss, F.softmax, F.softmin,
    F.triplet_margin_loss, F.cosine_similarity, F.pairwise_distance,
    torch.cdist, torch.log_softmax, torch.logsumexp, torch.softmax, torch.std, torch.std_mean, torch.var,
    torch.var_mean, Tensor.log_softmax, Tensor.logsumexp, Tensor.softmax, Tensor.std, Tensor.var,
}  # fmt: skip
"""Functions that are given float32 where they would meet bfloat16."""
