"""When each picture of a clip is shown: read from the packets without decoding, exact for every container."""

from __future__ import annotations

import bisect
import os
import stat
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from vstar_fast.records import LabeledVideo

if TYPE_CHECKING:
    import av

# FFmpeg would also play text (as terminal art) and playlists that point at other files.
_NOT_VIDEO = frozenset({"tty", "hls", "applehttp", "concat", "dash", "sdp", "ffmetadata", "lavfi"})
# Packets that tell where a clip starts: no codec puts more of them before the picture that is shown first.
_HEAD = 32
_SEEK_AFTER_S = 10.0
_MAGIC = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (0, b"RIFF"), (0, b"OggS"), (0, b"FLV\x01"), (0, b"\x00\x00\x01\xba"))


class Unusable(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Index(NamedTuple):
    """When each picture of a clip is shown, in ticks of `base` seconds; `zero` is the start of the clip."""

    ticks: list[int]
    keys: list[int]
    zero: int
    end: int
    base: Fraction
    counted: bool
    """The file has no time stamps: ticks are picture numbers."""


def check_file(path: str) -> None:
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Unusable("missing_file", "no such file") from None
    if not stat.S_ISREG(info.st_mode):
        raise Unusable("not_a_video", "is not a regular file")
    if info.st_size == 0:
        raise Unusable("empty_file", "has 0 bytes")


def open_video(path: str) -> av.container.InputContainer:
    import av

    try:
        container = av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        with open(path, "rb") as file:
            head = file.read(16)
        if any(head[at : at + len(magic)] == magic for at, magic in _MAGIC):
            raise Unusable("truncated", "starts like a video, but its index is missing or damaged") from error
        raise Unusable("not_a_video", "no known video format") from error
    kinds = set(container.format.name.split(","))
    if kinds & _NOT_VIDEO:
        container.close()
        raise Unusable("not_a_video", f"is a {container.format.long_name}, not a video")
    return container


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    import av

    covers = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        raise Unusable("no_video_stream", "holds no moving pictures")
    stream = streams[0]
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def scan(container: av.container.InputContainer, video: LabeledVideo, limit_s: float) -> Index:
    """Presentation times from the packets, without decoding; of a cut-out window, only those around it."""
    import av

    stream = video_stream(container)
    if video.start_s is None and video.end_s is None and container.duration is not None:
        _check_length(container.duration / av.time_base, limit_s)
    try:
        packets = _packets(container, stream, head=_HEAD)
        if not packets:
            raise Unusable("truncated", "the video stream holds no pictures")
        if any(pts is None for pts, *_ in packets):
            return _count(video.path)
        zero = min(pts for pts, *_ in packets)
        packets = _needed_packets(container, stream, video, zero, packets)
    except av.FFmpegError as error:
        raise Unusable("truncated", f"breaks off while it is read: {error}") from error
    if any(pts is None for pts, *_ in packets):
        return _count(video.path)
    last, length = max((pts, duration or 0) for pts, duration, _ in packets)
    index = Index(
        ticks=sorted({pts for pts, *_ in packets}),
        keys=sorted({pts for pts, _, key in packets if key}),
        zero=zero,
        end=last + (length or _tick_length(stream)),
        base=_base(stream),
        counted=False,
    )
    if video.end_s is None:
        _check_complete(container, stream, index)
    return index


Packet = tuple[Any, int | None, bool]
"""Presentation time, duration (ticks) and whether decoding can start here."""


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, head: int = 0, until: float | None = None
) -> list[Packet]:
    """Shown packets from where the file stands: the next `head`, those before tick `until`, or all."""
    found: list[Packet] = []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise Unusable("truncated", "ends in the middle of a picture")
        if packet.size and not packet.is_discard:
            found.append((packet.pts, packet.duration, packet.is_keyframe))
        if (head and len(found) >= head) or (until is not None and packet.dts is not None and packet.dts > until):
            break
    return found


def _needed_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    video: LabeledVideo,
    zero: int,
    head: list[Packet],
) -> list[Packet]:
    """The `head` and all that follow, up to the end of the window; of a late window only those around it."""
    base = float(_base(stream))
    start = zero + int((video.start_s or 0) / base)
    until = None if video.end_s is None else zero + video.end_s / base
    if until is None or not stream.index_entries or (start - zero) * base < _SEEK_AFTER_S:
        return head + _packets(container, stream, until=until)
    container.seek(start, stream=stream, backward=True)
    packets = _packets(container, stream, until=until)
    if packets and packets[0][0] is not None and packets[0][2] and packets[0][0] <= start:
        return packets
    with open_video(video.path) as again:
        return _packets(again, video_stream(again), until=until)


def _count(path: str) -> Index:
    """Index of a file without time stamps (a bare H.264 stream): pictures are counted."""
    with open_video(path) as container:
        stream = video_stream(container)
        total = sum(1 for _ in container.decode(stream))
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
    if not total:
        raise Unusable("truncated", "no picture decodes")
    return Index(list(range(total)), [0], 0, total, 1 / rate, True)


def _base(stream: av.VideoStream) -> Fraction:
    """Seconds a tick."""
    return stream.time_base or Fraction(1, 1000)


def _tick_length(stream: av.VideoStream) -> int:
    """How long one picture is shown where the file does not say."""
    rate = stream.guessed_rate or stream.average_rate or Fraction(25)
    return max(1, round(1 / (rate * _base(stream))))


def _check_length(duration_s: float, limit_s: float) -> None:
    if duration_s > limit_s:
        advice = "cut a window with start_s/end_s, or raise data.max_duration_s"
        raise Unusable("too_long", f"lasts {duration_s:.1f} s, the limit is {limit_s:g} s; {advice}")


def _check_complete(container: av.container.InputContainer, stream: av.VideoStream, index: Index) -> None:
    """Compare what is there with what the file's header promises."""
    promised_s = _promised_s(container, stream)
    # Some formats promise a length, some the time of the end.
    found_s = float(max(index.end, index.end - index.zero) * index.base)
    if promised_s and found_s < 0.95 * promised_s - 1.5 * float(_tick_length(stream) * index.base):
        raise Unusable("truncated", f"has {found_s:.2f} s of pictures, its header promises {promised_s:.2f} s")


def _promised_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    import av

    tag = stream.metadata.get("DURATION", "")
    if tag.count(":") == 2:
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if stream.duration:
        return float(stream.duration * _base(stream))
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def pick(index: Index, video: LabeledVideo, count: int, limit_s: float) -> tuple[list[int], Fraction, float]:
    """Ticks of the pictures on screen at the segment centres, the window's first tick, and its seconds."""

    def tick(seconds: float) -> Fraction:
        return index.zero + Fraction(seconds).limit_denominator(1_000_000) / index.base

    start = tick(video.start_s or 0.0)
    end = Fraction(index.end) if video.end_s is None else min(Fraction(index.end), tick(video.end_s))
    if start >= end:
        clip_s = float((index.end - index.zero) * index.base)
        raise Unusable("window_outside", f"start_s {video.start_s:g} is past the end of the clip ({clip_s:.2f} s)")
    duration_s = float((end - start) * index.base)
    _check_length(duration_s, limit_s)
    stop = max(bisect.bisect_left(index.ticks, end), 1)
    first = min(bisect.bisect_left(index.ticks, start), stop - 1)
    centres = (start + (end - start) * Fraction(2 * k + 1, 2 * count) for k in range(count))
    return [index.ticks[max(first, bisect.bisect_right(index.ticks, c) - 1)] for c in centres], start, duration_s
