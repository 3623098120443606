"""What records a decode step: CUDA graphs on a GPU; elsewhere the step itself stands for its recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


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
    """CUDA graphs that share one pool of memory, and one stream of `device` to be captured on.

    Without a stream of ours torch takes one of the GPU that the first graph of the process was captured on.
    """

    name = "cuda graph"

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Two calls on the stream to warm up, and one that is captured."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                step()
                step()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # other threads may use the GPU meanwhile, to decode frames
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                step()
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own
        replay: Callable[[], None] = graph.replay
        return replay
