"""Whether decoded pictures fit on the disk or into memory, said before minutes of decoding and not after."""

import math
import os
import shutil
from pathlib import Path

from metalearn.errors import UsageError
from metalearn.tasks.images.decoding import Pictures, most_at_once

_GB = 1e9


def check_room(pictures: Pictures, folder: Path) -> None:
    """Refuses pictures that can be kept neither on the disk nor in memory, or that threads can not decode at once.

    What can not be found out about the machine is no reason to refuse; pictures that are skipped are counted.

    Args:
        pictures: what is to be decoded.
        folder: where it is to be kept.

    Raises:
        UsageError: with what is needed and what there is.
    """
    channels, height, width = pictures.shape
    number = sum(map(len, pictures.members.values()))
    one = math.prod(pictures.shape)
    memory, disk = available_memory(), free_disk(folder)
    at_once = one * min(number, most_at_once())
    too_large_to_keep = disk is not None and memory is not None and one * number > max(disk, memory)
    if not too_large_to_keep and (memory is None or at_once <= memory):
        return
    needed = f"{one * number / _GB:.3g} GB" if too_large_to_keep else f"{at_once / _GB:.3g} GB of memory to decode"
    there = f"{(memory or 0) / _GB:.3g} GB of memory" + ("" if disk is None else f" and {disk / _GB:.3g} GB of disk")
    raise UsageError(
        f"{number} images of {channels} x {height} x {width} pixels need {needed}, and there are {there} free (in"
        f" {folder.parent}). Choose a smaller task.image_size, or fewer images."
    )


def free_disk(folder: Path) -> int | None:
    """Bytes that can be written where `folder` is, or will be; None if that is not known."""
    place = next((each for each in (folder, *folder.parents) if each.exists()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or all there are; None if that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
