"""Copies from the host to a GPU that nothing waits for: through pinned memory, on a stream of their own.

uploads = Uploads(device)
uploads.ahead(next_video)     # the copy begins; the GPU goes on with what it is doing
uploads.take(next_video)      # on the device; work that is asked for from now on comes behind the copy
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

MOST_AHEAD = 64
"""Tensors on their way at once; what is not taken in time is copied again."""


class Uploads:
    """Tensors on their way to `device`. On a CPU it is a plain `.to`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = None
        self._coming: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def ahead(self, tensors: Iterable[torch.Tensor]) -> None:
        """Begin to copy tensors that will be taken."""
        if self.device.type != "cuda":
            return
        for tensor in tensors:
            if id(tensor) not in self._coming and tensor.device.type == "cpu":
                self._coming[id(tensor)] = tensor, self._send(tensor)
        while len(self._coming) > MOST_AHEAD:
            del self._coming[next(iter(self._coming))]

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, its copy begun now unless it was before."""
        if self.device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(self.device)
        there = self._coming.pop(id(tensor))[1] if id(tensor) in self._coming else self._send(tensor)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        there.record_stream(current)
        return there

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            return tensor.pin_memory().to(self.device, non_blocking=True)
