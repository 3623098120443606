"""What a kernel must cost on a card, from its bytes and operations: printed beside each measurement.

Rates are those of the makers' data sheets times what well-written code reaches of them. A prediction is not a
measurement: rows made here say "predicted" and name the card they are about.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

REACHED_BYTES, REACHED_FLOPS = 0.9, 0.8
"""Shares of the data sheet's rates that a copy and a large matrix product reach."""


class Card(NamedTuple):
    """Multiprocessors; bytes and dense 16-bit operations a second of the data sheet."""

    name: str
    processors: int
    bytes_s: float
    flops_s: float


CARDS = {
    card.name: card
    for card in (
        Card("A100", 108, 2.04e12, 312e12),
        Card("H100", 132, 3.35e12, 989e12),
        Card("H200", 132, 4.8e12, 989e12),
        Card("B200", 148, 8.0e12, 2250e12),
    )
}


class Cost(NamedTuple):
    """Bytes that must move, 16-bit operations, programs and how many of them lie on one multiprocessor at once."""

    bytes: float
    flops: float
    programs: int
    resident: int

    def seconds(self, card: Card, copy_bytes_s: float | None = None) -> float:
        """The longer of moving and computing; a last wave that is not full counts as one."""
        rate = copy_bytes_s or REACHED_BYTES * card.bytes_s
        return max(self.bytes / rate, self.flops / (REACHED_FLOPS * card.flops_s)) / self.filled(card)

    def waves(self, card: Card) -> float:
        """Programs over the places there are for them."""
        return self.programs / (card.processors * self.resident)

    def filled(self, card: Card) -> float:
        """Share of the multiprocessors that have work, over all waves; moving bytes needs half of them."""
        waves = self.waves(card)
        share = waves / max(1.0, -(-waves // 1.0))
        return share if self.flops > self.bytes * 100 else min(1.0, 2 * share)

    def line(self, card: Card) -> str:
        """One line for people."""
        bound = "bytes" if self.bytes / card.bytes_s > self.flops / card.flops_s else "operations"
        return (
            f"  cost model: {self.bytes / 1e6:.1f} MB, {self.flops / 1e9:.2f} GFLOP, {self.programs} programs, "
            f"{self.waves(card):.2f} waves of {self.resident} a multiprocessor; {card.name} "
            f"{self.seconds(card) * 1e6:.0f} us predicted, bound by {bound}"
        )


def card_here() -> Card | None:
    """The card of this machine; None without a GPU, or for one that is not in CARDS."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0)
    return next((card for part, card in CARDS.items() if part in name), None)


def wait() -> None:
    """Until the GPU has done what it was told."""
    import torch

    torch.cuda.synchronize()


def replayed(function: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of what a call launches; a call of it gives the same tensors each time.

    Between kernels of some microseconds launches from Python are most of the time. What cannot be captured is the
    function itself, and said.
    """
    import torch
    from vstar_fast.kernels.capture import captured, first

    function()
    try:
        replay, found = captured(function, torch.cuda.Stream(), torch.cuda.graph_pool_handle(), warm_ups=1)
    except RuntimeError as error:
        print(f"  launched anew each time, it cannot be captured: {first(error)}")
        return function

    def again() -> object:
        replay()
        return found

    return again


def gpu_seconds(function: Callable[[], object], calls: int = 10) -> float:
    """Seconds of the GPU that a call takes: the best of `calls`, after three to warm up."""
    import torch

    for _ in range(3):
        function()
    best = float("inf")
    for _ in range(calls):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(stop) / 1e3)
    return best


def calls_for(function: Callable[[], Any], floor_s: float, device: str) -> int:
    """Calls that together take at least `floor_s`; also the warm-up. What is queued on a GPU is waited for."""
    calls = 1
    while True:
        began = time.perf_counter()
        for _ in range(calls):
            function()
        if device == "cuda":
            wait()
        taken = time.perf_counter() - began
        if taken >= floor_s or calls >= 1 << 16:
            return calls
        calls = max(calls * 2, int(calls * floor_s / max(taken, 1e-7)))


def time_on_gpu(function: Callable[[], Any], calls: int) -> dict[str, float]:
    """Seconds a call of the GPU, between two events, and on the wall."""
    import torch

    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    wall = time.perf_counter()
    start.record()
    for _ in range(calls):
        function()
    stop.record()
    torch.cuda.synchronize()
    wall = time.perf_counter() - wall
    return {"gpu": start.elapsed_time(stop) / 1e3 / calls, "wall": wall / calls}


def copy_bytes_s() -> float:
    """Bytes a second that a copy of 1 GiB reads and writes on the GPU here."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / gpu_seconds(lambda: target.copy_(source))


def seconds_of(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Result and CPU seconds; beside a GPU seconds, until it is done."""
    import torch

    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, clock() - start
