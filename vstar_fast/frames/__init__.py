"""Stage 1, video files -> frames: exact presentation times, and one bad file never stops the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from vstar_fast.clip_errors import REASONS, Unusable
from vstar_fast.config import FramesConfig
from vstar_fast.errors import DataError
from vstar_fast.frames.geometry import ModelSize, normalise
from vstar_fast.frames.request import NATIVE, FrameRequest, Geometry, Sampling
from vstar_fast.frames.source import FrameSource
from vstar_fast.records import FrameBatch, Frames, LabeledVideo, Rejected

__all__ = [
    "NATIVE",
    "REASONS",
    "FrameError",
    "FrameRequest",
    "FrameSource",
    "Frames",
    "FramesConfig",
    "Geometry",
    "ModelSize",
    "Sampling",
    "Unusable",
    "normalise",
    "read",
    "request_of",
    "to_batch",
]

FrameError = Rejected
"""What stands in place of the frames of a clip that has none: stage `frames`, the clip's id, a reason, the detail."""


def read(
    videos: Iterable[LabeledVideo],
    config: FramesConfig,
    *,
    workers: int = 2,
    max_duration_s: float = 3600.0,
) -> Iterator[Frames | Rejected]:
    """Frames of each video as `config` samples its window, in order, or why there are none.

    `Frames.data` is uint8 `[F, H, W, 3]` RGB, upright, at the size of the video; `times_s` count from the
    start of the window. A picture stands for the time it is on screen, so a clip with fewer pictures than
    `config.count` repeats them. Each worker decodes one video; at most `workers + 1` results wait.
    Raises BackendError at once when the decoder asked for is not installed.
    """
    source = FrameSource(dataclasses.replace(config, workers=max(1, workers)))
    requests = (request_of(video, config, max_duration_s) for video in videos)
    return _closing(source, requests, max(1, workers))


def _closing(source: FrameSource, requests: Iterable[FrameRequest], prefetch: int) -> Iterator[Frames | Rejected]:
    try:
        yield from source.stream(requests, prefetch)
    finally:
        source.close()


def request_of(video: LabeledVideo, config: FramesConfig, max_duration_s: float = 3600.0) -> FrameRequest:
    """What `config` asks of a video's window."""
    sampling = Sampling(config.policy, config.count, config.fps)
    return FrameRequest(
        video.path, sampling, start_s=video.start_s, end_s=video.end_s, id=video.id, max_duration_s=max_duration_s
    )


def to_batch(frames: Sequence[Frames], videos: Iterable[LabeledVideo], device: str | None = "cpu") -> FrameBatch:
    """Frames of several clips on `device` (None: where they are), each beside its video (found by id)."""
    by_id = {video.id: video for video in videos}
    missing = [f.video_id for f in frames if f.video_id not in by_id]
    if missing:
        raise DataError(f"frames of {missing[0]!r} belong to no video of this batch")
    data = [f.data if device is None else f.data.to(device, non_blocking=True) for f in frames]
    return FrameBatch(data, [f.times_s for f in frames], [by_id[f.video_id] for f in frames])
