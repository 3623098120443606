"""Which backend decodes a clip, and why."""

from __future__ import annotations

from typing import NamedTuple

from vstar_fast.backends import Choice
from vstar_fast.frames.index import Index
from vstar_fast.frames.job import Look


class _Nvdec(NamedTuple):
    """Largest side of a codec in NVDEC, and the pixel formats it takes."""

    side: int
    formats: tuple[str, ...]


_8 = ("yuv420p", "yuvj420p")
_10 = (*_8, "yuv420p10le")
# NVIDIA Video Decode Support Matrix and NVDEC application note 13.0: what every card since Volta has. AV1 is below.
_NVDEC = {
    "h264": _Nvdec(4096, _8),
    "hevc": _Nvdec(8192, _10),
    "vp8": _Nvdec(4096, _8),
    "vp9": _Nvdec(8192, _8),
    "libvpx-vp9": _Nvdec(8192, _8),
    "mpeg4": _Nvdec(2032, _8),
}
_AV1 = ("av1", "libdav1d", "libaom-av1")
_AV1_CARDS = frozenset({(8, 6), (8, 7), (8, 9), (10, 0), (10, 3), (12, 0)})
"""Compute capabilities with an AV1 decoder: not A100 (8.0), not Hopper (9.0)."""
ON_CPU = frozenset({"vp8", "vp9", "libvpx", "libvpx-vp9", "mjpeg"})
"""Codecs that DALI decodes without a GPU."""
_MATRICES = frozenset({1, 2, 5, 6})
"""BT.709, not stated, BT.601: what is put right after DALI."""


def obstacle(index: Index, look: Look, gpu: tuple[int, int] | None) -> str:
    """Why DALI cannot decode a clip exactly on this card (None: on the CPU); empty when it can."""
    if index.counted or index.edited or not index.whole:
        return "its picture numbers are not those of the file's packets"
    if look.colorspace not in _MATRICES:
        return f"colour matrix {look.colorspace}"
    if gpu is None:
        return "" if index.codec in ON_CPU else f"DALI has no {index.codec} on a CPU"
    if index.codec in _AV1:
        return "" if gpu in _AV1_CARDS and index.pix_fmt in _10 else "no AV1 in this card's NVDEC"
    limits = _NVDEC.get(index.codec)
    if limits is None:
        return f"NVDEC has no {index.codec}"
    if max(index.height_px, index.width_px) > limits.side:
        return f"a side exceeds NVDEC's {limits.side} for {index.codec}"
    return "" if index.pix_fmt in limits.formats else f"NVDEC has no {index.codec} in {index.pix_fmt}"


def route(index: Index, look: Look, *, asked: str, gpu: tuple[int, int] | None, least_pixels: int) -> Choice:
    """The backend of one clip; `asked` is `auto` or `dali`, `least_pixels` the picture size from which NVDEC pays.

    Reasons name the rule and not the clip, so that clips can be counted by them.
    """
    why_not = obstacle(index, look, gpu)
    if why_not:
        return Choice("pyav", f"not dali: {why_not}")
    if asked == "dali":
        return Choice("dali", "asked for by name")
    if gpu is None:
        return Choice("pyav", "not dali: without a GPU it takes more CPU time than PyAV")
    if index.height_px * index.width_px < least_pixels:
        return Choice("pyav", f"not dali: fewer pixels a picture than frames.gpu_pixels = {least_pixels}")
    return Choice("dali", f"NVDEC: at least frames.gpu_pixels = {least_pixels} pixels a picture")
