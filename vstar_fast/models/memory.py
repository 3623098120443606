"""How much memory is free, and how many rows it takes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

PATIENCE = 64
"""Full steps in a row that must go well before more rows are tried again; twice as many after each failure."""
MOST_PATIENCE = 1 << 14
KEPT_BYTES = 256 << 20
LARGEST_KEPT = 32 << 20
"""Larger buffers go back when they are freed; glibc takes no more than this."""
_C_LIBRARY = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
HEADROOM = 2
"""Copies of weights are made when so many times their size is free."""


def free_bytes(device: torch.device) -> int:
    """Bytes that can be had on the device now; on a CPU within the limit of the control group too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return min(_available(), _within_group())


def room_for_copies(size: int, device: torch.device) -> bool:
    """Whether so many bytes of weights may be copied for as long as answers are drawn."""
    return HEADROOM * size <= free_bytes(device)


def _available() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _within_group() -> int:
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = (root / "memory.max").read_text().strip(), int((root / "memory.current").read_text())
    except OSError:  # no version 2 control group here, hence no limit by one
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used)


def release(device: torch.device) -> None:
    """Hand memory that torch, or the C library, holds for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif hasattr(_C_LIBRARY, "malloc_trim"):
        _C_LIBRARY.malloc_trim(0)


def keep_freed() -> None:
    """Have glibc keep freed memory of this process up to KEPT_BYTES; without glibc, or where the user said it, nothing.

    By default it hands a layer's buffers back to the system, which maps them in anew page by page at the next layer:
    a tenth of the engine's time on a CPU.
    """
    if hasattr(_C_LIBRARY, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        _C_LIBRARY.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        _C_LIBRARY.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)


class RowLimit:
    """How many answers are drawn at once: halved when memory runs out, doubled again when it has long sufficed."""

    def __init__(self, most: int) -> None:
        self.most = self.now = most
        self._patience = PATIENCE // 2
        self._good = 0

    def halve(self, rows: int) -> None:
        """`rows` in flight were too many."""
        self.now = rows // 2
        self._patience, self._good = min(2 * self._patience, MOST_PATIENCE), 0

    def went_well(self, rows: int) -> bool:
        """A step of so many rows had memory enough; True when there may be more of them from now on."""
        if self.now == self.most or 2 * rows <= self.now:  # a small step says nothing of a full one
            return False
        self._good += 1
        if self._good < self._patience:
            return False
        self.now, self._good = min(2 * self.now, self.most), 0
        return True
