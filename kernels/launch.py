"""Where kernels are launched: on the GPU of their tensors, which need not be the current one."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU current meanwhile; does nothing for a CPU, whose tensors the interpreter takes."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
