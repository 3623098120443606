"""Stage 1, video files -> frames: exact presentation times, and one bad file never stops the others."""

from __future__ import annotations

import bisect
import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from vstar_fast import backends
from vstar_fast.config import FramesConfig
from vstar_fast.errors import BackendError, DataError
from vstar_fast.records import FrameBatch, Frames, LabeledVideo, Rejected

if TYPE_CHECKING:
    import av

REASONS = (
    "missing_file",
    "unreadable",
    "empty_file",
    "not_a_video",
    "no_video_stream",
    "truncated",
    "too_long",
    "window_outside",
    "decode_error",
)
"""Every reason this stage gives in a `Rejected` record."""

# FFmpeg would also play text (as terminal art) and playlists that point at other files.
_NOT_VIDEO = frozenset({"tty", "hls", "applehttp", "concat", "dash", "sdp", "ffmetadata", "lavfi"})
# Unneeded pictures that nothing refers to may be skipped; exact for these decoders only.
_SKIPPABLE = frozenset({"h264", "hevc"})
# Packets that tell where a clip starts: no codec puts more of them before the picture that is shown first.
_HEAD = 32
_SEEK_AFTER_S = 10.0
_MAGIC = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (0, b"RIFF"), (0, b"OggS"), (0, b"FLV\x01"), (0, b"\x00\x00\x01\xba"))


class _Unusable(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Index(NamedTuple):
    """When each picture of a clip is shown, in ticks of `base` seconds; `zero` is the start of the clip."""

    ticks: list[int]
    keys: list[int]
    zero: int
    end: int
    base: Fraction
    counted: bool
    """The file has no time stamps: ticks are picture numbers."""


def read(
    videos: Iterable[LabeledVideo],
    config: FramesConfig,
    *,
    workers: int = 2,
    max_duration_s: float = 3600.0,
) -> Iterator[Frames | Rejected]:
    """Frames of each video, in order: `config.count` segment centres of its window, or why there are none.

    `Frames.data` is uint8 `[F, H, W, 3]` RGB, upright, at the size of the video; `times_s` count from the
    start of the window. A picture stands for the time it is on screen, so a clip with fewer pictures than
    `config.count` repeats them. Each worker decodes one video; at most `workers + 1` results wait.
    Raises BackendError at once when the decoder asked for is not installed.
    """
    name = "pyav" if config.backend == "auto" else config.backend
    if name not in DECODERS:
        raise BackendError(f"frames has no decoder {name!r}; it has: {', '.join(sorted(DECODERS))}")
    backends.require(name, "frames")
    return _ordered(videos, partial(_read_one, count=config.count, decoder=name, limit_s=max_duration_s), workers)


def to_batch(frames: Sequence[Frames], videos: Iterable[LabeledVideo], device: str = "cpu") -> FrameBatch:
    """Frames of several clips on `device`, each beside its video (found by id)."""
    by_id = {video.id: video for video in videos}
    missing = [f.video_id for f in frames if f.video_id not in by_id]
    if missing:
        raise DataError(f"frames of {missing[0]!r} belong to no video of this batch")
    data = [f.data.to(device, non_blocking=True) for f in frames]
    return FrameBatch(data, [f.times_s for f in frames], [by_id[f.video_id] for f in frames])


def _ordered(
    videos: Iterable[LabeledVideo], job: Callable[[LabeledVideo], Frames | Rejected], workers: int
) -> Iterator[Frames | Rejected]:
    workers = max(1, workers)
    waiting: deque[Future[Frames | Rejected]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="frames") as pool:
        try:
            for video in videos:
                waiting.append(pool.submit(job, video))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _read_one(video: LabeledVideo, *, count: int, decoder: str, limit_s: float) -> Frames | Rejected:
    try:
        frames = _frames(video, count, decoder, limit_s)
    except _Unusable as error:
        return Rejected("frames", video.id, error.reason, f"{video.path}: {error}")
    except OSError as error:
        return Rejected("frames", video.id, "unreadable", f"{video.path}: {error.strerror or error}")
    except Exception as error:  # one of a million clips must not end the run; the record says what happened
        return Rejected("frames", video.id, "decode_error", f"{video.path}: {type(error).__name__}: {error}")
    backends.ran("frames", decoder)
    return frames


def _frames(video: LabeledVideo, count: int, decoder: str, limit_s: float) -> Frames:
    _check_file(video.path)
    with _open(video.path) as container:
        index = _scan(container, video, limit_s)
        picked, start, duration_s = _pick(index, video, count, limit_s)
        pictures = DECODERS[decoder](container, video.path, index, sorted(set(picked)))
    missing = [tick for tick in picked if tick not in pictures]
    if missing:
        at_s = float((missing[0] - index.zero) * index.base)
        raise _Unusable("truncated", f"the picture at {at_s:.3f} s does not decode; the file is damaged or cut off")
    data = torch.stack([pictures[tick] for tick in picked])
    times_s = tuple(float(max(Fraction(0), (tick - start) * index.base)) for tick in picked)
    height_px, width_px = data.shape[1:3]
    return Frames(video.id, data, times_s, height_px, width_px, duration_s, decoder)


def _check_file(path: str) -> None:
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _Unusable("missing_file", "no such file") from None
    if not stat.S_ISREG(info.st_mode):
        raise _Unusable("not_a_video", "is not a regular file")
    if info.st_size == 0:
        raise _Unusable("empty_file", "has 0 bytes")


def _open(path: str) -> av.container.InputContainer:
    import av

    try:
        container = av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        with open(path, "rb") as file:
            head = file.read(16)
        if any(head[at : at + len(magic)] == magic for at, magic in _MAGIC):
            raise _Unusable("truncated", "starts like a video, but its index is missing or damaged") from error
        raise _Unusable("not_a_video", "no known video format") from error
    kinds = set(container.format.name.split(","))
    if kinds & _NOT_VIDEO:
        container.close()
        raise _Unusable("not_a_video", f"is a {container.format.long_name}, not a video")
    return container


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    import av

    covers = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        raise _Unusable("no_video_stream", "holds no moving pictures")
    stream = streams[0]
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _scan(container: av.container.InputContainer, video: LabeledVideo, limit_s: float) -> _Index:
    """Presentation times from the packets, without decoding; of a cut-out window, only those around it."""
    import av

    stream = _video_stream(container)
    if video.start_s is None and video.end_s is None and container.duration is not None:
        _check_length(container.duration / av.time_base, limit_s)
    try:
        packets = _packets(container, stream, head=_HEAD)
        if not packets:
            raise _Unusable("truncated", "the video stream holds no pictures")
        if any(pts is None for pts, *_ in packets):
            return _count(video.path)
        zero = min(pts for pts, *_ in packets)
        packets = _needed_packets(container, stream, video, zero, packets)
    except av.FFmpegError as error:
        raise _Unusable("truncated", f"breaks off while it is read: {error}") from error
    if any(pts is None for pts, *_ in packets):
        return _count(video.path)
    last, length = max((pts, duration or 0) for pts, duration, _ in packets)
    index = _Index(
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


_Packet = tuple[Any, int | None, bool]
"""Presentation time, duration (ticks) and whether decoding can start here."""


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, head: int = 0, until: float | None = None
) -> list[_Packet]:
    """Shown packets from where the file stands: the next `head`, those before tick `until`, or all."""
    found: list[_Packet] = []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise _Unusable("truncated", "ends in the middle of a picture")
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
    head: list[_Packet],
) -> list[_Packet]:
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
    with _open(video.path) as again:
        return _packets(again, _video_stream(again), until=until)


def _count(path: str) -> _Index:
    """Index of a file without time stamps (a bare H.264 stream): pictures are counted."""
    with _open(path) as container:
        stream = _video_stream(container)
        total = sum(1 for _ in container.decode(stream))
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
    if not total:
        raise _Unusable("truncated", "no picture decodes")
    return _Index(list(range(total)), [0], 0, total, 1 / rate, True)


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
        raise _Unusable("too_long", f"lasts {duration_s:.1f} s, the limit is {limit_s:g} s; {advice}")


def _check_complete(container: av.container.InputContainer, stream: av.VideoStream, index: _Index) -> None:
    """Compare what is there with what the file's header promises."""
    promised_s = _promised_s(container, stream)
    # Some formats promise a length, some the time of the end.
    found_s = float(max(index.end, index.end - index.zero) * index.base)
    if promised_s and found_s < 0.95 * promised_s - 1.5 * float(_tick_length(stream) * index.base):
        raise _Unusable("truncated", f"has {found_s:.2f} s of pictures, its header promises {promised_s:.2f} s")


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


def _pick(index: _Index, video: LabeledVideo, count: int, limit_s: float) -> tuple[list[int], Fraction, float]:
    """Ticks of the pictures on screen at the segment centres, the window's first tick, and its seconds."""

    def tick(seconds: float) -> Fraction:
        return index.zero + Fraction(seconds).limit_denominator(1_000_000) / index.base

    start = tick(video.start_s or 0.0)
    end = Fraction(index.end) if video.end_s is None else min(Fraction(index.end), tick(video.end_s))
    if start >= end:
        clip_s = float((index.end - index.zero) * index.base)
        raise _Unusable("window_outside", f"start_s {video.start_s:g} is past the end of the clip ({clip_s:.2f} s)")
    duration_s = float((end - start) * index.base)
    _check_length(duration_s, limit_s)
    stop = max(bisect.bisect_left(index.ticks, end), 1)
    first = min(bisect.bisect_left(index.ticks, start), stop - 1)
    centres = (start + (end - start) * Fraction(2 * k + 1, 2 * count) for k in range(count))
    return [index.ticks[max(first, bisect.bisect_right(index.ticks, c) - 1)] for c in centres], start, duration_s


def _pyav(
    container: av.container.InputContainer, path: str, index: _Index, wanted: list[int]
) -> dict[int, torch.Tensor]:
    """Pictures `[H, W, 3]` by tick, entering each group of pictures at its key picture."""
    import av

    found: dict[int, torch.Tensor] = {}
    stream = _video_stream(container)
    if not index.counted:
        for key, group in _by_key(index, wanted).items():
            with contextlib.suppress(av.FFmpegError):
                container.seek(key, stream=stream, backward=True)
                _decode(container, stream, group, found)
    if len(found) < len(wanted):
        # Some formats cannot be entered exactly: play from the start.
        with _open(path) as again, contextlib.suppress(av.FFmpegError):
            _decode(again, _video_stream(again), wanted, found, counted=index.counted)
    return found


def _by_key(index: _Index, wanted: list[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for tick in wanted:
        at = bisect.bisect_right(index.keys, tick) - 1
        groups.setdefault(index.keys[at] if at >= 0 else index.zero, []).append(tick)
    return groups


def _decode(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    wanted: list[int],
    found: dict[int, torch.Tensor],
    counted: bool = False,
) -> None:
    """Decode on from where the file stands until every wanted picture is in `found`."""
    context = stream.codec_context
    skip = context.name in _SKIPPABLE and not counted
    todo = set(wanted) - found.keys()
    size = next(((x.shape[1], x.shape[0]) for x in found.values()), None)
    number = -1
    for packet in container.demux(stream):
        context.skip_frame = "NONREF" if skip and packet.pts not in todo else "DEFAULT"
        for frame in packet.decode():
            number += 1
            tick = number if counted else frame.pts
            if tick in todo and not frame.is_corrupt:
                found[tick] = _rgb(frame, size)
                size = size or (found[tick].shape[1], found[tick].shape[0])
                todo.discard(tick)
        if not todo:
            return


def _rgb(frame: av.VideoFrame, size: tuple[int, int] | None) -> torch.Tensor:
    """One picture as uint8 RGB `[H, W, 3]`, upright; scaled to `size` (W, H) where the file changes size.

    Matrix and range are those the file states; without a statement BT.601, as FFmpeg and torchcodec do.
    """
    picture = _upright(frame.to_ndarray(format="rgb24", threads=1), frame)
    if size is not None and (picture.shape[1], picture.shape[0]) != size:
        import av

        changed = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        picture = changed.to_ndarray(width=size[0], height=size[1], threads=1)
    return torch.from_numpy(np.ascontiguousarray(picture))


def _upright(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """`picture` turned and mirrored as the file's display matrix says (quarter turns and mirrors only)."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    # A point (x, y) of the stored picture is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype="=i4")[:5].tolist()
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _torchcodec(
    container: av.container.InputContainer, path: str, index: _Index, wanted: list[int]
) -> dict[int, torch.Tensor]:
    """Pictures `[H, W, 3]` by tick, through torchcodec's exact mode, asked for by time on screen."""
    from torchcodec.decoders import VideoDecoder

    stream = _video_stream(container)
    decoder = VideoDecoder(path, stream_index=stream.index, dimension_order="NHWC", num_ffmpeg_threads=1)
    after = [*index.ticks[1:], index.end]
    middles = [(tick + after[bisect.bisect_left(index.ticks, tick)]) / 2 for tick in wanted]
    played = decoder.get_frames_played_at([float(m * index.base) for m in middles])
    return dict(zip(wanted, played.data, strict=True))


DECODERS: dict[str, Callable[[Any, str, _Index, list[int]], dict[int, torch.Tensor]]] = {
    "pyav": _pyav,
    "torchcodec": _torchcodec,
}
"""Open file, its path, its index and ticks in order -> picture `[H, W, 3]` by tick."""
