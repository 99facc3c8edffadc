"""A function of nests of tensors, compiled for each form that its arguments come in."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from metalearn import tree
from metalearn.compilation.graphs import trace
from metalearn.compilation.programs import Program
from metalearn.errors import UsageError

MOST_FORMS = 16
"""So many forms of arguments are compiled for one function; more of them are a mistake that would only ever compile."""


class Compiled:
    """The same pure function, traced and compiled at the first call with arguments of a form.

    The form is the structure of the nests, the shapes, dtypes and devices of the tensors and whatever else is in them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._made: list[tuple[Any, Callable[[list[Tensor]], Any]]] = []

    def __call__(self, *args: Any) -> Any:
        """What the function returns, without history."""
        form, tensors = form_of(args)
        for known, run in self._made:
            if known == form:
                return run(tensors)
        check_number_of_forms(len(self._made))
        run = self._compile(args)
        self._made.append((form, run))
        return run(tensors)

    def _compile(self, args: tuple[Any, ...]) -> Callable[[list[Tensor]], Any]:
        given, close = tree.opened(args)
        closed: list[Callable[[Any], Any]] = []

        def flat(tensors: list[Tensor]) -> list[Tensor]:
            found, close_result = tree.opened(self._function(*close(tensors)))
            closed.append(close_result)
            return found

        program = Program(trace(flat, given))
        return lambda tensors: closed[-1](program(tensors))


def form_of(nest: Any) -> tuple[Any, list[Tensor]]:
    """What two nests have to have in common to be run by the same compiled code, and the tensors, without history."""
    leaves, structure = tree.flatten(nest)
    tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
    kinds = [(leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return (structure, kinds), tensors


def check_number_of_forms(number: int) -> None:
    """Raises UsageError when yet another form would be compiled, and there are too many already."""
    if number >= MOST_FORMS:
        raise UsageError(
            f"compiled execution: the inputs have come in {number} different shapes, and each is compiled anew. Let "
            "the batches have one shape (task.imbalanced=false), or take execution.compile=false."
        )
