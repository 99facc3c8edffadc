"""Pure functions of tensors as graphs of torch's operations, cut into pieces, and compiled.

A function is run once on tensors without data, as it is, with its transforms of `torch.func` and whatever Python is in
it; what is left of it is a list of operations (`graphs`). Graphs are pruned and split (`splitting`), and given to
torch's compiler (`programs`).
"""

from metalearn.compilation.convolutions import CONVOLUTIONS, Convolutions, convolutions_as
from metalearn.compilation.functions import Compiled, check_number_of_forms, form_of
from metalearn.compilation.graphs import Graph, trace, unfilled
from metalearn.compilation.programs import Program, require_compiler
from metalearn.compilation.splitting import split

__all__ = [
    "CONVOLUTIONS",
    "Compiled",
    "Convolutions",
    "Graph",
    "Program",
    "check_number_of_forms",
    "convolutions_as",
    "form_of",
    "require_compiler",
    "split",
    "trace",
    "unfilled",
]
