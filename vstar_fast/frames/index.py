"""When each picture of a clip is shown: read from the packets without decoding, exact for every container."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from vstar_fast import clip_files
from vstar_fast.clip_errors import Unusable
from vstar_fast.frames.request import FrameRequest

if TYPE_CHECKING:
    import av

# FFmpeg would also play text (as terminal art) and playlists that point at other files.
_NOT_VIDEO = frozenset({"tty", "hls", "applehttp", "concat", "dash", "sdp", "ffmetadata", "lavfi"})
# Packets that tell where a clip starts: no codec puts more of them before the picture that is shown first.
_HEAD = 32
_SEEK_AFTER_S = 10.0
WHOLE_BYTES = 64 << 20
"""Up to this size a file is indexed whole, once, even when only a window of it is wanted."""
_MAGIC = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (0, b"RIFF"), (0, b"OggS"), (0, b"FLV\x01"), (0, b"\x00\x00\x01\xba"))
IMAGES_FPS = 25
"""Pictures a second of a folder of images, which has no times of its own."""


class Index(NamedTuple):
    """When each picture of a clip is shown, in ticks of `base` seconds; `zero` is the start of the clip."""

    ticks: list[int]
    keys: list[int]
    zero: int
    end: int
    base: Fraction
    counted: bool
    """The file has no time stamps: ticks are picture numbers."""
    codec: str = ""
    height_px: int = 0
    """Stored size, before rotation."""
    width_px: int = 0
    pix_fmt: str = ""
    whole: bool = True
    """All of the file is in it, not just what surrounds a window."""
    edited: bool = False
    """Some pictures are stored but not shown (edit list), so that picture numbers differ from decoder to decoder."""
    flaw: str = ""
    """Why there is nothing after `end` although the file promises more."""


@contextlib.contextmanager
def open_video(path: str) -> Iterator[av.container.InputContainer]:
    """The clip's container. Raises Unusable for what is no video; playlists are not followed."""
    import av

    with contextlib.ExitStack() as stack:
        plain = not clip_files.is_url(path) and not clip_files.is_member(path)
        source: Any = f"file:{path}" if plain else stack.enter_context(clip_files.opened(path))
        options = {"protocol_whitelist": "file" if plain else "none"}
        try:
            container = stack.enter_context(av.open(source, metadata_errors="ignore", options=options))
        except (av.error.InvalidDataError, av.error.EOFError) as error:
            _explain(path, error)
        if set(container.format.name.split(",")) & _NOT_VIDEO:
            raise Unusable("not_a_video", f"is a {container.format.long_name}, not a video")
        yield container


def _explain(path: str, error: Exception) -> None:
    with clip_files.opened(path) as file:
        head = file.read(16)
    if any(head[at : at + len(magic)] == magic for at, magic in _MAGIC):
        raise Unusable("truncated", "starts like a video, but its index is missing or damaged") from error
    raise Unusable("not_a_video", "no known video format") from error


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of moving pictures (no cover art), set to decode in the calling thread."""
    import av

    covers = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        raise Unusable("no_video_stream", "holds no moving pictures")
    stream = streams[0]
    if stream.codec_context is None:
        raise Unusable("decode_error", "its pictures are in a format that FFmpeg has no decoder for")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def of_images(folder: str) -> Index:
    """Index of a folder of numbered images, 25 a second."""
    count = len(clip_files.images(folder))
    return Index(list(range(count)), list(range(count)), 0, count, Fraction(1, IMAGES_FPS), True, "images")


def scan(container: av.container.InputContainer, request: FrameRequest) -> Index:
    """Presentation times from the packets, without decoding; of a window of a large file, only those around it."""
    import av

    stream = video_stream(container)
    if request.start_s is None and request.end_s is None and container.duration is not None:
        check_length(container.duration / av.time_base, request.max_duration_s)
    if request.end_s is not None and container.size > WHOLE_BYTES:
        packets, flaw, whole = _window_packets(container, stream, request), "", False
    else:
        packets, flaw = _packets(container, stream)
        whole = True
    if not packets:
        raise Unusable("truncated", flaw or "the video stream holds no pictures")
    if any(packet.pts is None for packet in packets):
        return _count(request.path)
    return _index(container, stream, packets, flaw, whole)


class _Packet(NamedTuple):
    """Presentation time and duration in ticks, whether decoding can start here, and whether it is shown."""

    pts: Any
    duration: int
    key: bool
    shown: bool = True


def _index(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[_Packet], flaw: str, whole: bool
) -> Index:
    shown = [p for p in packets if p.shown]
    if not shown:
        raise Unusable("truncated", "no picture of the video stream is shown")
    last = max(shown, key=lambda p: (p.pts, p.duration))
    context = stream.codec_context
    index = Index(
        ticks=sorted({p.pts for p in shown}),
        keys=sorted({p.pts for p in packets if p.key}),
        zero=min(p.pts for p in shown),
        end=last.pts + (last.duration or _tick_length(stream)),
        base=_base(stream),
        counted=False,
        codec=context.name,
        height_px=context.height,
        width_px=context.width,
        pix_fmt=context.pix_fmt or "",
        whole=whole,
        edited=len(shown) < len(packets),
        flaw=flaw,
    )
    return index._replace(flaw=flaw or _shortfall(container, stream, index)) if whole else index


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, head: int = 0, until: float | None = None
) -> tuple[list[_Packet], str]:
    """Packets from where the file stands: the next `head`, those before tick `until`, or all; and where it breaks."""
    import av

    found: list[_Packet] = []
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                return found, "ends in the middle of a picture"
            if packet.size:
                found.append(_Packet(packet.pts, packet.duration or 0, packet.is_keyframe, not packet.is_discard))
            if (head and len(found) >= head) or (until is not None and packet.dts is not None and packet.dts > until):
                break
    except av.FFmpegError as error:
        return found, f"breaks off while it is read: {error}"
    return found, ""


def _window_packets(
    container: av.container.InputContainer, stream: av.VideoStream, request: FrameRequest
) -> list[_Packet]:
    """The head and all that follow, up to the end of the window; of a late window only those around it."""
    head = _whole(_packets(container, stream, head=_HEAD))
    shown = [p.pts for p in head if p.shown and p.pts is not None]
    if not shown or any(p.pts is None for p in head):
        return head
    base, zero = float(_base(stream)), min(shown)
    start = zero + int((request.start_s or 0) / base)
    until = zero + (request.end_s or 0) / base
    if not stream.index_entries or (start - zero) * base < _SEEK_AFTER_S:
        return head + _whole(_packets(container, stream, until=until))
    container.seek(start, stream=stream, backward=True)
    around = _whole(_packets(container, stream, until=until))
    if around and around[0].pts is not None and around[0].key and around[0].pts <= start:
        first = next(p for p in head if p.pts == zero)
        return [first, *around]
    with open_video(request.path) as again:
        return _whole(_packets(again, video_stream(again), until=until))


def _whole(found: tuple[list[_Packet], str]) -> list[_Packet]:
    packets, flaw = found
    if flaw:
        raise Unusable("truncated", flaw)
    return packets


def _count(path: str) -> Index:
    """Index of a file without time stamps (a bare H.264 stream): pictures are counted."""
    with open_video(path) as container:
        stream = video_stream(container)
        total = sum(1 for _ in container.decode(stream))
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
        context = stream.codec_context
        size = (context.height, context.width, context.pix_fmt or "")
    if not total:
        raise Unusable("truncated", "no picture decodes")
    return Index(list(range(total)), [0], 0, total, 1 / rate, True, context.name, *size)


def _base(stream: av.VideoStream) -> Fraction:
    """Seconds a tick."""
    return stream.time_base or Fraction(1, 1000)


def _tick_length(stream: av.VideoStream) -> int:
    """How long one picture is shown where the file does not say."""
    rate = stream.guessed_rate or stream.average_rate or Fraction(25)
    return max(1, round(1 / (rate * _base(stream))))


def check_length(duration_s: float, limit_s: float) -> None:
    """Raise Unusable for a clip or window longer than `limit_s`."""
    if duration_s > limit_s:
        raise Unusable("too_long", f"lasts {duration_s:.1f} s, the limit is {limit_s:g} s")


def check_whole(index: Index, request: FrameRequest) -> None:
    """Raise Unusable when the file breaks off before the end of what is asked for."""
    if index.flaw:
        end = None if request.end_s is None else index.zero + request.end_s / float(index.base)
        if end is None or end > index.end:
            raise Unusable("truncated", index.flaw)


def _shortfall(container: av.container.InputContainer, stream: av.VideoStream, index: Index) -> str:
    """What the file's header promises beyond what is there; empty when nothing is missing."""
    promised_s = _promised_s(container, stream)
    # Some formats promise a length, some the time of the end.
    found_s = float(max(index.end, index.end - index.zero) * index.base)
    if promised_s and found_s < 0.95 * promised_s - 1.5 * float(_tick_length(stream) * index.base):
        return f"has {found_s:.2f} s of pictures, its header promises {promised_s:.2f} s"
    return ""


def _promised_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    import av

    if container.format.name == "avi" and stream.frames:  # of one that is cut off FFmpeg guesses the duration
        return float(stream.frames * _tick_length(stream) * _base(stream))
    tag = stream.metadata.get("DURATION", "")
    if tag.count(":") == 2:
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if stream.duration:
        return float(stream.duration * _base(stream))
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None
