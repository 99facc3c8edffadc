"""What a protocol card says of normalisation: the policy, what each pass normalises by, what returns to the model."""

from typing import Any

from torch import nn

from metalearn.functional.norms import Norms, norms_of
from metalearn.functional.skeleton import places_of
from metalearn.normalisation import Normalisation, policy_of
from metalearn.types import Statistics


def policy_card(module: nn.Module, policy: str | Normalisation, *, mean_returns: bool) -> dict[str, Any]:
    """What a protocol card says of a module's norms under a policy.

    Args:
        module: the model.
        policy: the policy.
        mean_returns: whether the execution returns the tasks' mean of buffers to the model, or nothing.
    """
    policy, norms = policy_of(policy), norms_of(module, places_of(module))
    card: dict[str, Any] = {
        "normalisation": " + ".join(sorted(_kinds(module, policy, norms))) or "none",
        "normalisation_policy": policy.name,
        "transductive": policy.transductive(norms),
    }
    if not norms.statistics and not norms.untracked:
        return card
    passes = {
        f"{data}_at_{phase}": _words(policy, norms, uses[index], training=index == 0)
        for index, phase in enumerate(("training", "test"))
        for data, uses in (("support", policy.support), ("query", policy.query))
    }
    returning = mean_returns and policy.returns and norms.statistics
    return card | {"normalised_by": passes, "statistics_returned": "the tasks' mean" if returning else "none"}


_SET = "statistics of the current set"


def _words(policy: Normalisation, norms: Norms, statistics: Statistics | None, *, training: bool) -> str:
    """What one pass normalises by."""
    if statistics is not None:
        return {"set": _SET, "tracked": f"{_SET}, tracked", "running": policy.whose}[statistics]
    tracked = f"{_SET}, tracked" if training else policy.whose
    return " + ".join(([tracked] if norms.statistics else []) + ([_SET] if norms.untracked else []))


def _kinds(module: nn.Module, policy: Normalisation, norms: Norms) -> set[str]:
    """The kinds of norms of a module, batch norms with what the query set is normalised by at test."""
    kinds: set[str] = set()
    tracking = {name.rpartition(".")[0] for name in norms.statistics}
    for name, part in module.named_modules():
        if name in tracking or isinstance(part, nn.modules.batchnorm._BatchNorm):
            running = (policy.query[1] or ("running" if name in tracking else "set")) == "running"
            instance = isinstance(part, nn.modules.instancenorm._InstanceNorm)
            current = "statistics of each instance" if instance else _SET
            kinds.add(
                f"{'instance' if instance else 'batch'} norm, {f'{policy.whose} at test' if running else current}"
            )
        else:
            kinds |= {words for kind, words in _OTHERS if isinstance(part, kind)}
    return kinds


_OTHERS: tuple[tuple[Any, str], ...] = (
    (nn.modules.instancenorm._InstanceNorm, "instance norm"),
    (nn.LayerNorm, "layer norm"),
    (nn.GroupNorm, "group norm"),
    (nn.RMSNorm, "RMS norm"),
)
