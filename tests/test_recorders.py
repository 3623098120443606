"""CUDA graphs are captured on a stream of their own GPU, and a capture that fails leaves nothing behind."""

import contextlib
import logging
from types import SimpleNamespace

import pytest
import torch

from vstar_fast.engine import graphs
from vstar_fast.engine.recorders import CudaGraphs

CUDA = torch.device("cuda", 1)


class Stream:
    def __init__(self, device):
        self.device = device

    def wait_stream(self, other):
        assert isinstance(other, Stream)


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda with streams alone: `now` is the current one, `captured` those that graphs were captured on."""
    found = SimpleNamespace(now=Stream(CUDA), captured=[], breaks=False)

    @contextlib.contextmanager
    def stream(wanted):
        before, found.now = found.now, wanted
        yield
        found.now = before

    @contextlib.contextmanager
    def graph(_graph, _pool, wanted, *, capture_error_mode):
        assert capture_error_mode == "thread_local"
        found.captured.append(wanted)
        found.now = wanted
        try:
            yield
        finally:
            if found.breaks:  # as torch: the end of a broken capture is an error of its own, and the stream stays
                raise RuntimeError("operation failed due to a previous error during capture")
        found.now = before

    class Generator:
        state = "capturing"

        def clone_state(self):
            return "as before"

        def graphsafe_set_state(self, state):
            self.state = state

    def end_allocating(device, pool):
        assert (device, pool) == (CUDA.index, (0, 1))
        found.ended = True

    before, found.generator, found.ended = found.now, Generator(), False
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocating, raising=False)
    graph_of = SimpleNamespace(replay=lambda: None)
    replaced = {
        "Stream": Stream, "current_stream": lambda: found.now, "stream": stream, "graph": graph,
        "set_stream": lambda wanted: setattr(found, "now", wanted), "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": lambda: graph_of, "default_generators": {CUDA.index: found.generator},
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return found


def test_every_graph_of_a_model_is_captured_on_one_stream_of_its_gpu(gpu):
    recorder, seen = CudaGraphs(CUDA), []
    for _ in range(2):
        recorder.record(lambda: seen.append(gpu.now))
    assert len(seen) == 6 and len({*seen, *gpu.captured}) == 1
    assert seen[0].device == CUDA and seen[0] is not gpu.now


def test_a_capture_that_fails_gives_the_stream_back_and_says_what_failed_first(gpu, caplog):
    before, calls = gpu.now, []

    def step():
        calls.append(gpu.now)
        if gpu.captured:
            raise RuntimeError("operation not permitted when stream is capturing")

    gpu.breaks = True
    held = SimpleNamespace(recorder=CudaGraphs(CUDA), batch=SimpleNamespace(stack=SimpleNamespace(text_model=None)))
    with caplog.at_level(logging.WARNING):
        graphs.Graphs._record(held, step)
    assert gpu.now is before and len(calls) == 3
    assert "cannot be recorded, steps are made anew: operation not permitted" in caplog.text
    assert held.recorder.name == "eager"
    assert gpu.generator.state == "as before" and gpu.ended
