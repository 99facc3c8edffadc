"""The state of a model, told apart: kinds, partitions by kind, name or predicate, state dicts in and out.

    head, rest = state.partition(model.params, "head.*")                 # adapt only the head
    norms, rest = state.partition(model.params, state.NORMS, model=model)  # freeze the norms
    output, buffers = model(state.merge(head, rest), model.buffers, x)

Everything is a plain dict of tensors by the module's own names.
"""

from metalearn.state.files import Saved, load, read_state_dict, save, write_state_dict
from metalearn.state.filters import NORMS, Filter, describe, excluding
from metalearn.state.kinds import Kind, by_kind, kinds
from metalearn.state.named import from_named, named
from metalearn.state.partition import merge, override, partition
from metalearn.state.state_dicts import from_state_dict, load_into, to_state_dict

__all__ = [
    "NORMS",
    "Filter",
    "Kind",
    "Saved",
    "by_kind",
    "describe",
    "excluding",
    "from_named",
    "from_state_dict",
    "kinds",
    "load",
    "load_into",
    "merge",
    "named",
    "override",
    "partition",
    "read_state_dict",
    "save",
    "to_state_dict",
    "write_state_dict",
]
