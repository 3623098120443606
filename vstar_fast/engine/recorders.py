"""What records a decode step: CUDA graphs on a GPU; elsewhere the step itself stands for its recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from vstar_fast.kernels.capture import captured


class Recorder(Protocol):
    """Makes a replay of a step whose buffers keep their addresses."""

    name: str

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that does again what `step` does; `step` may have been called any number of times afterwards."""


class Again:
    """A recording that is the step itself."""

    name = "eager"

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step."""
        return step


class CudaGraphs:
    """CUDA graphs of `device` that share one pool of memory and one stream."""

    name = "cuda graph"

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Two calls to warm up, and one that is captured."""
        replay, _ = captured(step, self._stream, self._pool)
        return replay
