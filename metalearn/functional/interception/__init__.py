"""What happens to torch functions inside a call of a functional model.

A `TorchFunctionMode` around the call sees each torch function before it runs. Every file here is a table of
replacements for one kind of functions:

- functions that draw are replaced with keyed ones (`draws`); those without a keyed form are refused, because their
  numbers would come from hidden state: another value in a recomputation, none under vmap;
- functions whose second derivative is wrong or missing in torch, or that vmap can not run, are replaced with exact
  ones.

A use of the module's own tensor instead of the state passed in (a closure, say) is refused: it would silently get no
gradient.
"""

from metalearn.functional.interception.indexing import read_at
from metalearn.functional.interception.mode import Interception

__all__ = ["Interception", "read_at"]
