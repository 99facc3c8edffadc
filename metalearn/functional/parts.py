"""A module with one of its parts exchanged, as a copy that shares everything else with it."""

import copy
from collections.abc import Callable

from torch import nn

from metalearn.errors import UsageError, did_you_mean


def with_part(module: nn.Module, part: str, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A module like `module` with another one in the place of a submodule; `module` itself stays as it is.

    Args:
        module: what is copied, without its tensors: they are shared.
        part: the submodule's name, such as `"head"` or `"classifier.6"`.
        change: from a copy of that submodule, which may be changed but for its own dicts, to what takes its place.

    Raises:
        UsageError: there is no such submodule, or it is all of the module.
    """
    names = [name for name, _ in module.named_modules() if name]
    if part not in names:
        raise UsageError(f"{type(module).__name__} has no submodule {part!r}. {did_you_mean(part, names)}")
    first, _, rest = part.partition(".")
    child = module._modules[first]
    assert child is not None
    whole = copy.copy(module)
    whole.__dict__["_modules"] = {
        **module._modules,
        first: with_part(child, rest, change) if rest else change(copy.copy(child)),
    }
    return whole
