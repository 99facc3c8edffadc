"""A module as a pure function of state that is held outside it.

    output, buffers = model(params, buffers, *args, **kwargs)

The user's module is never changed, not even during a call: a call runs on a skeleton of it (`skeleton`). Skeletons are
pooled (`pool`), one a concurrent call, so two threads may call one model. `running` protects what forward writes into;
`interception` replaces what torch can not differentiate twice, vmap or draw from a key.
"""

from metalearn.functional.model import FunctionalModel, functionalize
from metalearn.functional.norms import Norms
from metalearn.types import RNG

__all__ = ["RNG", "FunctionalModel", "Norms", "functionalize"]
