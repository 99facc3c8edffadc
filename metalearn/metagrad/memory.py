"""How much memory a piece of work takes: the most bytes of tensors that are alive at once while it runs."""

import gc
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn import tree

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def peak_bytes(work: Callable[[], object], device: torch.device | str) -> int:
    """The most bytes of tensors alive at once while `work` runs, above what was alive before.

    On CUDA it is the allocator's own count, with the scratch memory of kernels. Anywhere else every operator's results
    are followed until they are freed, also those that only an autograd graph keeps, whatever transforms of `torch.func`
    the work applies. That leaves out sparse tensors, what a kernel takes for itself and frees before it returns (about
    10 MB for Conv-4-64 on a CPU, whatever the number of inner steps), and the holes that a CPU's allocator leaves
    between tensors: with glibc's, a process that keeps small states among large activations was seen to take 2.6 times
    the bytes of its tensors, and 1.1 times with `MALLOC_MMAP_THRESHOLD_=65536` in its environment.

    Args:
        work: called once; its result counts while it is alive, and is let go.
        device: where the work's tensors are.

    Example:
        >>> peak_bytes(lambda: torch.ones(1000).exp().sum(), "cpu")  # the ones, their exponentials, and then a sum
        8000
    """
    gc.collect()  # a cycle of an earlier work's, collected during this one, would be taken for this one's saving
    device = torch.device(device)
    if device.type == "cuda":
        return _allocators_peak(work, device)
    following = _Following(device)
    with following:
        work()
    return following.peak


def _allocators_peak(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    peak: int = torch.cuda.max_memory_allocated(device) - before
    return peak


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes that are free on a device now, for this process too; None where that can not be asked (CPU of no Linux)."""
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its tensors
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    (line,) = (line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
    return min([int(line.split()[1]) * 1024, *_left_of_the_group()])


def _left_of_the_group() -> list[int]:
    """What a container's limit leaves, where there is one (cgroup v2); files that it may take back count as free."""
    limit, current, stat = (CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return []
    files = next((int(line.split()[1]) for line in stat.read_text().splitlines() if line.startswith("file ")), 0)
    return [int(limit.read_text()) - int(current.read_text()) + files]


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operators make on a device while it is on.

    A dispatch mode runs below autograd and below all layers of `torch.func`, so that it sees plain tensors, each once.
    Storages are followed and not tensors: a view takes no memory, and an autograd graph keeps a storage alive under a
    tensor other than the one that the operator returned.

    Attributes:
        peak: the most bytes alive at once so far.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._device_type = device.type
        self._alive = 0
        self._sizes: dict[int, int] = {}  # by the address of the storage, which is its own as long as it lives
        self._references: dict[int, weakref.ref[Any]] = {}  # the callbacks are called only while these exist

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = self._storages(result)
        if made.keys() - self._sizes.keys():
            # An unknown storage that came in was there before: the result is a view of it, or it was written to.
            given = self._storages((args, kwargs)).keys() - self._sizes.keys()
            made = {address: storage for address, storage in made.items() if address not in given}
        for address, storage in made.items():
            self._follow(address, storage)
        self.peak = max(self.peak, self._alive)
        return result

    def _storages(self, nest: Any) -> dict[int, torch.UntypedStorage]:
        storages: Iterable[torch.UntypedStorage] = (
            leaf.untyped_storage() for leaf in tree.tensors(nest) if self._has_storage(leaf)
        )
        return {storage._cdata: storage for storage in storages}

    def _has_storage(self, leaf: Tensor) -> bool:
        return leaf.layout is torch.strided and leaf.device.type == self._device_type

    def _follow(self, address: int, storage: torch.UntypedStorage) -> None:
        if address not in self._sizes:
            self._sizes[address] = 0
            self._references[address] = weakref.ref(storage, partial(self._freed, address))
        self._alive += storage.nbytes() - self._sizes[address]  # known ones too: an operator may have resized it
        self._sizes[address] = storage.nbytes()

    def _freed(self, address: int, _: object) -> None:
        self._alive -= self._sizes.pop(address)
        del self._references[address]
