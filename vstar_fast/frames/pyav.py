"""PyAV: every codec on the CPU, exact through the index, entering each group of pictures at its key picture."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vstar_fast import clip_files
from vstar_fast.frames import picture
from vstar_fast.frames.geometry import plan
from vstar_fast.frames.index import Index, open_video, video_stream
from vstar_fast.frames.job import Job, Pictures

if TYPE_CHECKING:
    import av

# Unneeded pictures that nothing refers to may be skipped; exact for these decoders only.
_SKIPPABLE = frozenset({"h264", "hevc"})


def decode(job: Job) -> Pictures:
    """The wanted pictures that decode; a picture that does not is not in the answer."""
    found = _Found(job)
    if job.index.codec == "images":
        found.take_images()
        return found.pictures()
    with contextlib.ExitStack() as stack:
        if not job.index.counted:
            container = job.container or stack.enter_context(open_video(job.path))
            found.enter_groups(container)
        if found.todo:
            # Some formats cannot be entered exactly: play from the start.
            again = stack.enter_context(open_video(job.path))
            found.play(again, video_stream(again), job.wanted)
    return found.pictures()


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
        self._rgb = picture.Rgb()
        self._row = {tick: i for i, tick in enumerate(job.wanted)}
        self._turn: picture.Turn | None = None
        self._upright = (0, 0)
        self._number = -1
        self._drain = not job.index.counted
        self.todo = set(job.wanted)

    def pictures(self) -> Pictures:
        """What was found."""
        if len(self.todo) == len(self._row):
            return Pictures(self._job.room((0, 1, 1, 3)), self.todo, 0, 0)
        return Pictures(self._data, self.todo, *self._upright)

    def take(self, tick: int, frame: av.VideoFrame) -> None:
        if self._turn is None or self._job.index.codec == "images":
            # Of a film asked once: a frame that was asked is in a cycle of references and stays for a while.
            self._turn = picture.of_frame(frame)
        if not self._upright[0]:
            self._upright = self._turn.size(frame.height, frame.width)
            geometry = self._job.geometry
            size = plan(geometry, *self._upright).size if geometry.filter == "area" else self._upright
            self._data = self._job.room((len(self._row), *size, 3))
        self._rgb(frame, self._turn, self._data[self._row[tick]])
        self.todo.discard(tick)

    def enter_groups(self, container: av.container.InputContainer) -> None:
        """Decode each group of pictures that holds a wanted one, from its key picture on."""
        stream = video_stream(container)
        for key, group in _by_key(self._job.index, self._job.wanted).items():
            self._enter(container, stream, key, group)
            if self._drain and self.todo.intersection(group):
                self._drain = False
                self._enter(container, stream, key, group)

    def _enter(
        self, container: av.container.InputContainer, stream: av.VideoStream, key: int, group: list[int]
    ) -> None:
        with _failing():
            container.seek(key, stream=stream, backward=True)
            self.play(container, stream, group, drain=self._drain)

    def play(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        wanted: list[int],
        *,
        drain: bool = False,
    ) -> None:
        """Decode on from where the file stands until every wanted picture is found.

        With `drain` the decoder is emptied once it has been given the last one, instead of being given more until
        that one's turn to be shown has come.
        """
        context = stream.codec_context
        skip = context.name in _SKIPPABLE and not self._job.index.counted
        todo = self.todo.intersection(wanted)
        unfed = set(todo)
        with _failing():
            for packet in container.demux(stream):
                self._job.check_time()
                context.skip_frame = "NONREF" if skip and packet.pts not in todo else "DEFAULT"
                self._take_wanted(packet.decode(), todo)
                unfed.discard(packet.pts)
                if todo and not unfed and drain and packet.size:
                    self._take_wanted(context.decode(None), todo, drained=True)
                if not todo or (drain and not unfed):
                    return

    def _take_wanted(self, frames: list[av.VideoFrame], todo: set[int], *, drained: bool = False) -> None:
        for frame in frames:
            self._number += 1
            tick = self._number if self._job.index.counted else frame.pts
            # Of an interlaced picture the decoder may have been given one field only.
            if tick in todo and not frame.is_corrupt and not (drained and frame.interlaced_frame):
                self.take(tick, frame)
                todo.discard(tick)

    def take_images(self) -> None:
        import av

        files = clip_files.images(self._job.path)
        for number in self._job.wanted:
            self._job.check_time()
            with _failing(), av.open(f"file:{files[number]}", metadata_errors="ignore") as container:
                self.take(number, next(container.decode(video=0)))
