"""Writes frames to a video file with PyAV; the same frames and options always give the same bytes."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

from vstar_fast.errors import DataError

# x264's macroblock tree is not deterministic for widths such as 112, even with one thread.
_X264 = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "mbtree=0:rc-lookahead=0"}
CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", _X264),
    "hevc": (
        "libx265",
        "mp4",
        {"preset": "ultrafast", "crf": "22", "x265-params": "pools=none:frame-threads=1:log-level=none"},
    ),
    "vp9": (
        "libvpx-vp9",
        "webm",
        {"deadline": "realtime", "cpu-used": "8", "crf": "28", "b": "0", "threads": "1"},
    ),
    "av1": ("libsvtav1", "mp4", {"preset": "12", "crf": "30", "svtav1-params": "lp=1"}),
}
"""Codec -> (FFmpeg encoder, container, encoder options)."""


def suffix(codec: str) -> str:
    """File name ending of a codec's container, e.g. ".mp4"."""
    return "." + CODECS[codec][1]


def pixel_format(codec: str, size: tuple[int, int]) -> str:
    """`yuv420p`, or `yuv444p` where the codec cannot halve an odd width or height."""
    odd = size[0] % 2 or size[1] % 2
    if odd and codec == "av1":
        raise DataError(f"av1 needs an even width and height, got {size[0]}x{size[1]}")
    return "yuv444p" if odd and codec in ("h264", "hevc") else "yuv420p"


def encode(
    frames: Iterable[NDArray[np.uint8]],
    path: Path,
    *,
    fps: int,
    size: tuple[int, int],
    codec: str,
    rotation_deg: int,
) -> None:
    """Encode upright frames [H, W, 3] RGB of `size` (width, height) into `path`, by temporary name and rename.

    With `rotation_deg` (a multiple of 90) the stored pixels lie on their side, and a display matrix tells
    players to turn them counter-clockwise by that angle.
    """
    encoder, container, options = CODECS[codec]
    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 otherwise writes its settings to stderr
    turns = rotation_deg // 90 % 4
    stored = size[::-1] if turns % 2 else size
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Without bitexact, Matroska writes a random segment id.
        with av.open(str(temporary), "w", format=container, options={"fflags": "+bitexact"}) as output:
            stream = cast(av.VideoStream, output.add_stream(encoder, rate=fps, options=options))
            stream.width, stream.height = stored
            stream.pix_fmt = pixel_format(codec, stored)
            stream.codec_context.thread_count = 1
            if codec == "hevc":
                stream.codec_context.codec_tag = "hvc1"
            if turns:
                stream.set_display_rotation(rotation_deg)
            for image in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(image, -turns)), format="rgb24")
                output.mux(stream.encode(picture))
            output.mux(stream.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
