"""From a clip's index and a request to the pictures to decode."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from vstar_fast.clip_errors import Unusable
from vstar_fast.frames.index import Index, check_length
from vstar_fast.frames.request import FrameRequest, Sampling


class Picked(NamedTuple):
    """Ticks of the pictures in the order asked for (repeats kept), the window's first tick, and its seconds."""

    ticks: list[int]
    start: Fraction
    duration_s: float

    def times_s(self, index: Index) -> tuple[float, ...]:
        """When each picture appears, from the start of the window; 0 for one that was on screen before it."""
        return tuple(float(max(Fraction(0), (tick - self.start) * index.base)) for tick in self.ticks)


class _Window(NamedTuple):
    """Part of a clip: its ends in ticks, and the pictures `first` to `stop` - 1 that appear in it.

    A window that lies between two pictures has the earlier one.
    """

    start: Fraction
    end: Fraction
    first: int
    stop: int


def pick(index: Index, request: FrameRequest) -> Picked:
    """The pictures that `request` asks for. Raises Unusable for a window or picture that is not there."""
    window = _window(index, request)
    duration_s = float((window.end - window.start) * index.base)
    check_length(duration_s, request.max_duration_s)
    numbers = list(_POLICIES[request.sampling.policy](index, window, request.sampling))
    return Picked([index.ticks[n] for n in numbers], window.start, duration_s)


def _window(index: Index, request: FrameRequest) -> _Window:
    def tick(seconds: float) -> Fraction:
        return index.zero + Fraction(seconds).limit_denominator(1_000_000) / index.base

    begin, until = request.start_s or 0.0, math.inf if request.end_s is None else request.end_s
    if not (0 <= begin < until):
        raise Unusable("window_outside", f"no part of a clip lies between start_s {begin:g} and end_s {until:g}")
    start = tick(begin)
    end = Fraction(index.end) if math.isinf(until) else min(Fraction(index.end), tick(until))
    if start >= end:
        clip_s = float((index.end - index.zero) * index.base)
        detail = f"start_s {begin:g} is past the end of the clip ({clip_s:.2f} s)"
        raise Unusable("window_outside", detail)
    stop = max(bisect.bisect_left(index.ticks, end), 1)
    first = min(bisect.bisect_left(index.ticks, start), stop - 1)
    return _Window(start, end, first, stop)


def _on_screen(index: Index, window: _Window, tick: Fraction) -> int:
    return max(window.first, bisect.bisect_right(index.ticks, tick) - 1)


def _centres(index: Index, window: _Window, sampling: Sampling) -> Iterator[int]:
    length = window.end - window.start
    for k in range(sampling.count):
        yield _on_screen(index, window, window.start + length * Fraction(2 * k + 1, 2 * sampling.count))


def _ends(_: Index, window: _Window, sampling: Sampling) -> Iterator[int]:
    last = window.stop - 1 - window.first
    for k in range(sampling.count):
        yield window.first + (last * k // (sampling.count - 1) if sampling.count > 1 else 0)


def _fps(index: Index, window: _Window, sampling: Sampling) -> Iterator[int]:
    length = window.end - window.start
    step = 1 / (Fraction(sampling.fps).limit_denominator(1_000_000) * index.base)
    count = -(-length // step)
    if count > sampling.count:
        count, step = sampling.count, length / sampling.count
    for k in range(int(count)):
        yield _on_screen(index, window, window.start + k * step)


def _indices(_: Index, window: _Window, sampling: Sampling) -> Iterator[int]:
    held = window.stop - window.first
    for number in sampling.at:
        if not 0 <= number < held:
            raise Unusable(
                "index_outside", f"picture {int(number)} was asked for, the window has {held} (0 to {held - 1})"
            )
        yield window.first + int(number)


def _seconds(index: Index, window: _Window, sampling: Sampling) -> Iterator[int]:
    length_s = float((window.end - window.start) * index.base)
    for second in sampling.at:
        tick = window.start + Fraction(second).limit_denominator(1_000_000) / index.base
        if second < 0 or tick >= window.end:
            raise Unusable("index_outside", f"second {second:g} was asked for, the window lasts {length_s:.3f} s")
        yield _on_screen(index, window, tick)


_POLICIES = {"centres": _centres, "ends": _ends, "fps": _fps, "indices": _indices, "seconds": _seconds}
