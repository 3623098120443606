"""What a figure was taken on: machine, versions, date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = 1
PACKAGES = ("triton", "transformers", "numpy", "av")
RIVALS = ("xgrammar", "llguidance", "outlines_core", "hyperscan", "torchcodec", "decord2", "trl", "flash-attn")
"""What benches compare with, where it is installed."""


def header(name: str, quick: bool, device: str) -> dict[str, Any]:
    """What ran where: machine, versions, date."""
    import torch

    import vstar_fast
    from vstar_fast import backends

    gpu = backends.available("torch-cuda")
    return {
        "schema": SCHEMA,
        "bench": name,
        "quick": quick,
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name(0) if gpu.ok else None,
        "card": card() if gpu.ok else None,
        "commit": commit(),
        "versions": {
            "vstar-fast": vstar_fast.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            **{package: _version(package) for package in PACKAGES},
            **{rival: version for rival in RIVALS if (version := _version(rival))},
        },
    }


ASKED = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "ecc.mode.current",
)
"""What nvidia-smi is asked for; it changes nothing."""


def card() -> dict[str, str] | None:
    """Driver, clocks (MHz), temperature and power of the first GPU as found; None where nvidia-smi does not tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--id=0", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in found.stdout.strip().split(",")]
    return dict(zip(ASKED, values, strict=True)) if len(values) == len(ASKED) else None


def _cpu_name() -> str:
    """Model name from /proc/cpuinfo, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def commit() -> str | None:
    """Which commit of the sources runs, with a + where they were changed; None outside of a checkout."""
    root, git = Path(__file__).resolve().parents[1], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return found.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
