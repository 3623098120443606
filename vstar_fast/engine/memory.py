"""How much memory is free, and whether an error says that there was too little."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def free_bytes(device: torch.device) -> int:
    """Bytes that can be had on the device now; on a CPU within the limit of the control group too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return min(_available(), _within_group())


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


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def release(device: torch.device) -> None:
    """Hand memory that torch holds for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
