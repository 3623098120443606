"""torchcodec's exact mode, where it and FFmpeg's shared libraries are installed; asked for by time on screen."""

from __future__ import annotations

import bisect
import contextlib
from typing import Any

from vstar_fast import clip_files
from vstar_fast.clip_errors import Unusable
from vstar_fast.frames.index import open_video, video_stream
from vstar_fast.frames.job import Job, Pictures


def decode(job: Job) -> Pictures:
    """The wanted pictures. Raises Unusable when torchcodec's own clock does not show them."""
    from torchcodec.decoders import VideoDecoder

    with contextlib.ExitStack() as stack:
        number = video_stream(job.container or stack.enter_context(open_video(job.path))).index
    plain = not clip_files.is_url(job.path) and not clip_files.is_member(job.path)
    source: Any = job.path if plain else clip_files.read_bytes(job.path)
    decoder = VideoDecoder(source, stream_index=number, dimension_order="NHWC", num_ffmpeg_threads=1)
    index = job.index
    after = [*index.ticks[1:], index.end]
    middles = [(tick + after[bisect.bisect_left(index.ticks, tick)]) / 2 for tick in job.wanted]
    played = decoder.get_frames_played_at([float(m * index.base) for m in middles])
    # torchcodec keeps a time of its own for some containers; a picture of another time is no picture.
    shown = played.pts_seconds.tolist()
    off = [abs(float(t * index.base) - s) for t, s in zip(job.wanted, shown, strict=True)]
    if max(off) > 2e-3:
        raise Unusable("decode_error", f"torchcodec gives pictures {max(off):.3f} s off; set frames.backend to pyav")
    data = played.data.numpy()
    return Pictures(data, (), *data.shape[1:3])
