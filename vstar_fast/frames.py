"""Stage 1, video files -> frames: exact presentation times, and one bad file never stops the others."""

from __future__ import annotations

import bisect
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vstar_fast import backends
from vstar_fast.clip_index import Index, Unusable, check_file, open_video, pick, scan, video_stream
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

# Unneeded pictures that nothing refers to may be skipped; exact for these decoders only.
_SKIPPABLE = frozenset({"h264", "hevc"})


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
    except Unusable as error:
        return Rejected("frames", video.id, error.reason, f"{video.path}: {error}")
    except OSError as error:
        return Rejected("frames", video.id, "unreadable", f"{video.path}: {error.strerror or error}")
    except Exception as error:  # one of a million clips must not end the run; the record says what happened
        return Rejected("frames", video.id, "decode_error", f"{video.path}: {type(error).__name__}: {error}")
    backends.ran("frames", decoder)
    return frames


def _frames(video: LabeledVideo, count: int, decoder: str, limit_s: float) -> Frames:
    check_file(video.path)
    with open_video(video.path) as container:
        index = scan(container, video, limit_s)
        picked, start, duration_s = pick(index, video, count, limit_s)
        pictures = DECODERS[decoder](container, video.path, index, sorted(set(picked)))
    missing = [tick for tick in picked if tick not in pictures]
    if missing:
        at_s = float((missing[0] - index.zero) * index.base)
        raise Unusable("truncated", f"the picture at {at_s:.3f} s does not decode; the file is damaged or cut off")
    data = torch.stack([pictures[tick] for tick in picked])
    times_s = tuple(float(max(Fraction(0), (tick - start) * index.base)) for tick in picked)
    height_px, width_px = data.shape[1:3]
    return Frames(video.id, data, times_s, height_px, width_px, duration_s, decoder)


def _pyav(
    container: av.container.InputContainer, path: str, index: Index, wanted: list[int]
) -> dict[int, torch.Tensor]:
    """Pictures `[H, W, 3]` by tick, entering each group of pictures at its key picture."""
    import av

    found: dict[int, torch.Tensor] = {}
    stream = video_stream(container)
    if not index.counted:
        for key, group in _by_key(index, wanted).items():
            with contextlib.suppress(av.FFmpegError):
                container.seek(key, stream=stream, backward=True)
                _decode(container, stream, group, found)
    if len(found) < len(wanted):
        # Some formats cannot be entered exactly: play from the start.
        with open_video(path) as again, contextlib.suppress(av.FFmpegError):
            _decode(again, video_stream(again), wanted, found, counted=index.counted)
    return found


def _by_key(index: Index, wanted: list[int]) -> dict[int, list[int]]:
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
    container: av.container.InputContainer, path: str, index: Index, wanted: list[int]
) -> dict[int, torch.Tensor]:
    """Pictures `[H, W, 3]` by tick, through torchcodec's exact mode, asked for by time on screen."""
    from torchcodec.decoders import VideoDecoder

    stream = video_stream(container)
    decoder = VideoDecoder(path, stream_index=stream.index, dimension_order="NHWC", num_ffmpeg_threads=1)
    after = [*index.ticks[1:], index.end]
    middles = [(tick + after[bisect.bisect_left(index.ticks, tick)]) / 2 for tick in wanted]
    played = decoder.get_frames_played_at([float(m * index.base) for m in middles])
    # torchcodec keeps a time of its own for some containers; a picture of another time is no picture.
    off = [abs(float(t * index.base) - shown) for t, shown in zip(wanted, played.pts_seconds.tolist(), strict=True)]
    if max(off) > 2e-3:
        raise Unusable("decode_error", f"torchcodec gives pictures {max(off):.3f} s off; set frames.backend to pyav")
    return dict(zip(wanted, played.data, strict=True))


DECODERS: dict[str, Callable[[Any, str, Index, list[int]], dict[int, torch.Tensor]]] = {
    "pyav": _pyav,
    "torchcodec": _torchcodec,
}
"""Open file, its path, its index and ticks in order -> picture `[H, W, 3]` by tick."""
