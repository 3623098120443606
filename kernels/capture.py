"""CUDA graphs: what a call launches, to be launched again at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


def captured(
    function: Callable[[], Any], stream: torch.cuda.Stream, pool: Any, warm_ups: int = 2
) -> tuple[Callable[[], None], Any]:
    """(what launches it all again, what the captured call gave) of a function that is called `warm_ups` times before.

    All on `stream`, which lies on the current GPU: without one torch takes a stream of the GPU that the first graph
    of the process was captured on. `pool`: `torch.cuda.graph_pool_handle()`; graphs that share one share the stream
    too. Raises the RuntimeError of what cannot be captured; the GPU can be used afterwards as before.
    """
    current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            function()
    current.wait_stream(stream)
    try:
        # other threads may use the GPU meanwhile, to decode frames
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            found = function()
    except BaseException:
        _mend(current, pool)
        raise
    return graph.replay, found


def _mend(stream: torch.cuda.Stream, pool: Any) -> None:
    """Undo what a broken capture leaves: torch's end of one fails before it has put anything back.

    Its stream stays current, all draws are taken for captured ones, and freed memory waits for its end.
    """
    torch.cuda.set_stream(stream)
    device = stream.device.index
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    with contextlib.suppress(RuntimeError):  # torch has done it, where what failed was not the capture
        torch._C._cuda_endAllocateToPool(device, pool)


def first(error: BaseException) -> BaseException:
    """What went wrong first; the end of a capture only says that something did."""
    return error if error.__context__ is None else first(error.__context__)
