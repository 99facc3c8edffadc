"""A compiled meta-gradient as one CUDA graph: everything that the host launches is recorded once, and launched as one.

A compiled meta-gradient launches a hundred kernels, each a few microseconds of a GPU's time that a host takes as long
to ask for. Its shapes are fixed, it decides by no value and never waits for the device, so that a recording of the
launches is the function.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from metalearn import tree
from metalearn.compilation import check_number_of_forms, form_of
from metalearn.errors import UsageError

T = TypeVar("T")
Launch: TypeAlias = Callable[[], None]

WARM_UPS = 3
"""Calls before the recording: what is compiled, tuned or allocated at the first of them is not to be recorded."""


class Recorded:
    """The same function, recorded at the first call with arguments of a form, see `form_of`.

    Inputs are copied to where the recording reads, and outputs from where it writes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._made: list[tuple[Any, Callable[[list[Tensor]], Any]]] = []

    def __call__(self, *args: Any) -> Any:
        """What the function returns.

        Raises:
            UsageError: a tensor does not lie on a CUDA device, or the arguments have come in too many forms.
        """
        form, tensors = form_of(args)
        for known, run in self._made:
            if known == form:
                return run(tensors)
        check_number_of_forms(len(self._made))
        check_cuda_graphs(next((leaf.device for leaf in tensors if leaf.device.type != "cuda"), None))
        run = self._recorded(args)
        self._made.append((form, run))
        return run(tensors)

    def _recorded(self, args: tuple[Any, ...]) -> Callable[[list[Tensor]], Any]:
        given, close = tree.opened(args)
        places = [leaf.detach().clone() for leaf in given]
        found, launch = record(lambda: self._function(*close(places)))
        written, close_result = tree.opened(found)

        def run(tensors: list[Tensor]) -> Any:
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor)
            launch()
            return close_result([leaf.clone() for leaf in written])

        return run


def record(work: Callable[[], T]) -> tuple[T, Launch]:
    """Records what `work` launches on the current CUDA device, after some calls of it.

    Returns:
        What it returned, of which every launch writes the tensors anew; and the launch.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    return found, graph.replay


def check_cuda_graphs(device: torch.device | None) -> None:
    """Refuses CUDA graphs on a device (None for none to object to) that has none.

    Raises:
        UsageError: it is no CUDA device.
    """
    if device is not None and device.type != "cuda":
        raise UsageError(
            f"execution.cuda_graphs=true is of CUDA devices, but this runs on the {device.type}. Take "
            "execution.cuda_graphs=false, or device=cuda."
        )
