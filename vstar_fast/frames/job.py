"""One clip from file to pictures: what a worker does. Imports no torch: a worker starts fast and stays small."""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vstar_fast import clip_files
from vstar_fast.clip_errors import Unusable
from vstar_fast.frames.index import Index, check_whole, of_images, open_video, scan, video_stream
from vstar_fast.frames.memory import tidy
from vstar_fast.frames.picture import UPRIGHT, Turn, of_frame
from vstar_fast.frames.request import FrameRequest, Geometry
from vstar_fast.frames.sampling import Picked, pick

if TYPE_CHECKING:
    import av

DECODERS = {
    "pyav": "vstar_fast.frames.pyav:decode",
    "torchcodec": "vstar_fast.frames.torchcodec:decode",
}
"""Decoder that takes one clip -> its function `Job -> Pictures`."""


Room = Callable[[tuple[int, ...]], np.ndarray]
"""Makes the array, uint8 of a shape, that a clip's pictures are written to."""


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """The plain Room."""
    return np.empty(shape, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Job:
    """Pictures wanted of one file: ticks in order, without repeats. `deadline` is on time.monotonic()'s clock."""

    path: str
    index: Index
    wanted: list[int]
    geometry: Geometry
    deadline: float = math.inf
    limit_s: float = math.inf
    room: Room = in_memory
    container: Any = None
    """The file, when it is open already; a decoder may seek in it and leaves it open."""

    def check_time(self) -> None:
        """Raise Unusable when the time is up."""
        check_time(self.deadline, self.limit_s)


def check_time(deadline: float, limit_s: float) -> None:
    """Raise Unusable when it is later than `deadline`."""
    if time.monotonic() > deadline:
        raise Unusable("too_slow", f"took longer than {limit_s:g} s")


class Pictures(NamedTuple):
    """Pictures uint8 `[U, h, w, 3]` in order of `Job.wanted`, and the upright size they had in the file.

    `missing`: ticks of those that did not decode, whose rows say nothing.
    """

    data: np.ndarray
    missing: Collection[int]
    height_px: int
    width_px: int


class Look(NamedTuple):
    """How a file's pictures are to be shown, read off its first one; for decoders that do not look themselves."""

    turn: Turn = UPRIGHT
    colorspace: int = 2
    """ISO/IEC 23091-2 matrix coefficients: 1 BT.709, 5 and 6 BT.601, 2 not stated."""
    full_range: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is asked; with `decoder` empty only the index and the look of the file."""

    request: FrameRequest
    decoder: str = "pyav"
    index: Index | None = None
    limit_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Read:
    """What came of it: distinct pictures uint8 `[U, h, w, 3]`, and for each frame asked for its row among them."""

    index: Index | None
    """Of the file, where the task had none."""
    pictures: np.ndarray
    rows: list[int]
    times_s: tuple[float, ...]
    duration_s: float
    height_px: int
    width_px: int


def do(task: Task, room: Room = in_memory) -> Read:
    """Read the clip of `task` in this process. Raises Unusable, OSError, or whatever a decoder raises."""
    request, deadline = task.request, time.monotonic() + task.limit_s
    tidy()
    with contextlib.ExitStack() as stack:
        index, container = task.index, None
        if index is None:
            index, container = _probed(request, stack)
        check_time(deadline, task.limit_s)
        picked = choose(index, request)
        wanted = sorted(set(picked.ticks))
        check_time(deadline, task.limit_s)
        job = Job(request.path, index, wanted, request.geometry, deadline, task.limit_s, room, container)
        pictures = decoder(task.decoder)(job)
    check_complete(index, picked, pictures.missing)
    row = {tick: i for i, tick in enumerate(wanted)}
    rows = [row[tick] for tick in picked.ticks]
    size = (pictures.height_px, pictures.width_px)
    new = None if task.index else index
    return Read(new, pictures.data, rows, picked.times_s(index), picked.duration_s, *size)


def decoder(name: str) -> Callable[[Job], Pictures]:
    """The function of DECODERS' entry `name` (or of `module:function`, as tests give it)."""
    module, _, function = DECODERS.get(name, name).partition(":")
    found: Callable[[Job], Pictures] = getattr(importlib.import_module(module), function)
    return found


def probe(request: FrameRequest) -> Index:
    """The index of a clip. Raises Unusable for what is no whole video."""
    with contextlib.ExitStack() as stack:
        return _probed(request, stack)[0]


def _probed(request: FrameRequest, stack: contextlib.ExitStack) -> tuple[Index, Any]:
    """The index of a clip, and its container, which is open as long as `stack` (None: a folder has none)."""
    path = request.path
    clip_files.check(path)
    if clip_files.is_folder(path):
        return of_images(path), None
    container = stack.enter_context(open_video(path))
    return scan(container, request), container


def choose(index: Index, request: FrameRequest) -> Picked:
    """The pictures to decode; Unusable where the file has not got them."""
    check_whole(index, request)
    return pick(index, request)


def check_complete(index: Index, picked: Picked, missing: Collection[int]) -> None:
    """Raise Unusable when a wanted picture did not decode."""
    if missing:
        first = next(tick for tick in picked.ticks if tick in missing)
        at_s = float((first - index.zero) * index.base)
        raise Unusable("truncated", f"the picture at {at_s:.3f} s does not decode; the file is damaged or cut off")


def look(path: str) -> Look:
    """Rotation and colour tags, from the first picture that decodes."""
    with open_video(path) as container:
        frame: av.VideoFrame = next(container.decode(video_stream(container)))
        full = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
        return Look(of_frame(frame), int(frame.colorspace), full)
