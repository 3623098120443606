"""PyAV: every codec on the CPU, exact through the index, entering each group of pictures at its key picture."""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vstar_fast import clip_files
from vstar_fast.frames import picture
from vstar_fast.frames.geometry import plan
from vstar_fast.frames.index import Index, open_video, video_stream
from vstar_fast.frames.job import Job, Pictures
from vstar_fast.unusable import Unusable

if TYPE_CHECKING:
    import av

# Unneeded pictures that nothing refers to may be skipped; exact for these decoders only.
_SKIPPABLE = frozenset({"h264", "hevc"})


def decode(job: Job) -> Pictures:
    """The wanted pictures that decode; a picture that does not is not in the answer."""
    found = _Found(job)
    if job.index.codec == "images":
        found.take_images()
        return found.pictures
    with open_video(job.path) as container:
        stream = video_stream(container)
        if not job.index.counted:
            for key, group in _by_key(job.index, job.wanted).items():
                with _failing():
                    container.seek(key, stream=stream, backward=True)
                    found.play(container, stream, group)
    if found.todo:
        # Some formats cannot be entered exactly: play from the start.
        with open_video(job.path) as again, _failing():
            found.play(again, video_stream(again), job.wanted, counted=job.index.counted)
    return found.pictures


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """What FFmpeg cannot decode is missing from the answer, which says so."""
    import av

    with contextlib.suppress(av.FFmpegError):
        yield


def _by_key(index: Index, wanted: list[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for tick in wanted:
        at = bisect.bisect_right(index.keys, tick) - 1
        groups.setdefault(index.keys[at] if at >= 0 else index.zero, []).append(tick)
    return groups


class _Found:
    """Pictures found so far. All come at the size of the first one, should the file change size."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._size: tuple[int, int] | None = None
        self.todo = set(job.wanted)
        self.pictures = Pictures({}, 0, 0)

    def take(self, tick: int, frame: av.VideoFrame) -> None:
        if self._size is None:
            upright = picture.of_frame(frame).size(frame.height, frame.width)
            geometry = self._job.geometry
            self._size = plan(geometry, *upright).size if geometry.filter == "area" else upright
            self.pictures = Pictures({}, *upright)
        self.pictures.by_tick[tick] = picture.rgb(frame, self._size)
        self.todo.discard(tick)

    def play(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        wanted: list[int],
        *,
        counted: bool = False,
    ) -> None:
        """Decode on from where the file stands until every wanted picture is found."""
        context = stream.codec_context
        skip = context.name in _SKIPPABLE and not counted
        todo = self.todo.intersection(wanted)
        number = -1
        for packet in container.demux(stream):
            if time.monotonic() > self._job.deadline:
                raise Unusable("too_slow", f"took longer than {self._job.limit_s:g} s")
            context.skip_frame = "NONREF" if skip and packet.pts not in todo else "DEFAULT"
            for frame in packet.decode():
                number += 1
                tick = number if counted else frame.pts
                if tick in todo and not frame.is_corrupt:
                    self.take(tick, frame)
                    todo.discard(tick)
            if not todo:
                return

    def take_images(self) -> None:
        import av

        files = clip_files.images(self._job.path)
        for number in self._job.wanted:
            with _failing(), av.open(f"file:{files[number]}", metadata_errors="ignore") as container:
                self.take(number, next(container.decode(video=0)))
