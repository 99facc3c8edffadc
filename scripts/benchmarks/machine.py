"""What a machine is and how fast one of its cores, or its GPU, can be: the roof over every measured time."""

import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

GEMM = "GEMM"
COPY = "copy"
_SIZE = {"cpu": 1024, "cuda": 8192}
_FLOATS = {"cpu": 2**24, "cuda": 2**28}
LIBRARIES = ("torch", "higher", "torchopt", "learn2learn", "jax", "jaxlib", "optax", "numpy")


def described(device: str) -> dict[str, Any]:
    """The processor, its load and the versions of what is compared."""
    about: dict[str, Any] = {
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "system": platform.system(), "python": platform.python_version(), "versions": _versions(),
    }  # fmt: skip
    if device == "cuda":
        about["gpu"] = torch.cuda.get_device_name()
        about["cuda"] = torch.version.cuda
    return about


def _versions() -> dict[str, str]:
    installed = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    return {name: installed[name] for name in LIBRARIES if name in installed}


def _processor() -> str:
    """The kernel's name for it, with family and model where the name says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    vectors = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in fields.get("flags", "").split()
    ]
    return (
        f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family', '?')}, "
        f"model {fields.get('model', '?')}, {' '.join(vectors)}"
    )


def probes(device: str) -> dict[str, Callable[[], object]]:
    """A float32 matrix product and a copy that no cache holds, to be timed between the others."""
    size = _SIZE[device]
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    source, target = (torch.zeros(_FLOATS[device], device=device) for _ in range(2))
    product = torch.empty(size, size, device=device)
    return {GEMM: lambda: torch.mm(left, right, out=product), COPY: lambda: target.copy_(source)}


def roofs(gemm_seconds: float, copy_seconds: float, device: str) -> dict[str, float]:
    """GFLOP/s of the product, and GB/s of reading and writing."""
    return {
        "gemm_gflops_per_second": 2 * _SIZE[device] ** 3 / gemm_seconds / 1e9,
        "copy_gigabytes_per_second": 2 * 4 * _FLOATS[device] / copy_seconds / 1e9,
    }


def flops(work: Callable[[], object]) -> int:
    """Of its matrix products and convolutions; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
