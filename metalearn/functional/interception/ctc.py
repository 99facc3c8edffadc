"""Connectionist temporal classification by its forward recursion, which has derivatives of every order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.functional.interception.call import Call

_NEVER = -1e30
"""The logarithm of a probability of 0: finite, so that no derivative becomes NaN."""

Lengths = Tensor | Sequence[int]


def ctc_loss(
    call: Call,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """`F.ctc_loss` (Graves et al. 2006, equations 5 to 8), in the log domain.

    Its gradient is the derivative by `log_probs`. torch's is that only behind a log_softmax, to which both give the
    same gradient.
    """
    single = log_probs.dim() == 2
    if single:
        log_probs = log_probs[:, None]
    device, batch = log_probs.device, log_probs.shape[1]
    input_lengths, target_lengths = (
        torch.as_tensor(lengths, dtype=torch.int64, device=device).reshape(-1).expand(batch)
        for lengths in (input_lengths, target_lengths)
    )
    labels = _padded(targets, target_lengths, batch)
    loss = -_log_likelihood(log_probs, labels, input_lengths, target_lengths, blank)
    impossible = loss > -_NEVER / 2
    loss = torch.where(impossible, 0.0 if zero_infinity else torch.inf, loss)
    if reduction == "mean":
        return (loss / target_lengths.clamp_min(1)).mean()
    if reduction == "sum":
        return loss.sum()
    return loss[0] if single else loss


def _padded(targets: Tensor, lengths: Tensor, batch: int) -> Tensor:
    """The labels as `[example, position]`; what lies behind an example's length does not matter."""
    targets = targets.to(lengths)
    if targets.dim() == 2:
        return targets
    if batch == 1:
        return targets[None]
    # One after another: the length of the longest can not be read under vmap, that of all of them bounds it.
    starts = lengths.cumsum(0) - lengths
    position = starts[:, None] + torch.arange(len(targets), device=targets.device)
    return targets[position.clamp_max(max(len(targets) - 1, 0))] if len(targets) else targets.expand(batch, 0)


def _log_likelihood(
    log_probs: Tensor, labels: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> Tensor:
    """The log-probability of the labels, `[example]`: the sum over all ways through blank, label, blank … blank."""
    batch, num_labels = labels.shape
    pairs = torch.stack([torch.full_like(labels, blank), labels], -1).reshape(batch, 2 * num_labels)
    path = torch.cat([pairs, labels.new_full((batch, 1), blank)], 1)
    # Two states further is allowed onto a label that differs from the last one.
    skips = torch.zeros_like(path, dtype=torch.bool)
    if num_labels > 1:
        skips = torch.cat([skips[:, :2], (path[:, 2:] != blank) & (path[:, 2:] != path[:, :-2])], 1)
    emitted = log_probs.gather(2, path.clamp(0, log_probs.shape[2] - 1).expand(len(log_probs), *path.shape))
    state = torch.arange(path.shape[1], device=path.device)
    alpha = torch.where(state < 2, emitted[0], _NEVER)
    for step in range(1, len(log_probs)):
        previous, before = _shifted(alpha, 1), torch.where(skips, _shifted(alpha, 2), _NEVER)
        moved = torch.stack([alpha, previous, before]).logsumexp(0) + emitted[step]
        alpha = torch.where((step < input_lengths)[:, None], moved.clamp_min(_NEVER), alpha)
    last = 2 * target_lengths[:, None]
    ends = (state == last) | (state == last - 1)
    return torch.where(ends, alpha, _NEVER).logsumexp(-1)


def _shifted(alpha: Tensor, count: int) -> Tensor:
    filling = torch.full_like(alpha[:, :count], _NEVER)
    return torch.cat([filling, alpha], 1)[:, : alpha.shape[1]]
