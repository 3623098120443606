"""What files may hold: edit lists, open groups, ten bits, interlaced pictures; every backend is exact on all of it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from test_frames import CORNERS, NAMES, OPTIONS, clips, corners, here, number, numbered, patches, to_rgb, write
from vstar_fast import backends
from vstar_fast.cache import Cache
from vstar_fast.frames import FrameRequest, Frames, FrameSource, Sampling
from vstar_fast.records import Rejected

__all__ = ["clips"]


def installed(name: str) -> bool:
    """Whether a backend is here and its libraries load."""
    if not backends.available(name).ok:
        return False
    if name == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, RuntimeError, OSError):
            return False
    return True


EIGHT = Sampling()
BACKENDS = [
    "pyav",
    pytest.param("torchcodec", marks=pytest.mark.skipif(not installed("torchcodec"), reason="torchcodec is not here")),
]


def read(path: Path, backend: str = "pyav", sampling: Sampling = EIGHT, **values: Any) -> Frames:
    source = FrameSource(here(sampling.count, backend))
    (found,) = source.read([FrameRequest(str(path), sampling, **values)])
    source.close()
    assert isinstance(found, Frames), found
    assert found.backend == backend or (backend == "torchcodec" and found.backend == "pyav")
    return found


def numbers(found: Frames) -> list[int]:
    return [number(x) for x in found.data]


def at(*indices: int) -> Sampling:
    return Sampling("indices", at=indices)


def played(path: Path) -> list[tuple[int, float]]:
    """What a player shows: the number and the second of every picture, decoded from the start by PyAV alone."""
    with av.open(str(path)) as file:
        shown = [
            (number(torch.from_numpy(frame.to_ndarray(format="rgb24"))), frame.time) for frame in file.decode(video=0)
        ]
    return [(n, t - shown[0][1]) for n, t in shown]


def by_program(path: Path) -> list[int]:
    """The numbers that the ffmpeg program gives out."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    return [number(x) for x in torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 32, 160, 3)]


# -- edit lists --------------------------------------------------------------------------------------


def edit(path: Path, *entries: tuple[int, int]) -> None:
    """Replace the edit list of an MP4: (duration in ticks of the film, first tick of the medium) of each part."""
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") - 4
    size, _, _, count = struct.unpack_from(">I4sII", data, start)
    assert count == len(entries) == 1 and size == 28
    struct.pack_into(">II", data, start + 16, *entries[0])
    path.write_bytes(data)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """40 pictures at 24 a second, of which a player shows a part."""
    folder = tmp_path_factory.mktemp("edited")
    whole = write(folder / "whole.mp4", [numbered(i) for i in range(40)], gop=20)
    with av.open(str(whole)) as file:
        tick = round(1 / 24 / float(file.streams.video[0].time_base or 0))
        first = min(p.pts for p in file.demux(video=0) if p.pts is not None)
        assert first == 0  # of the medium it is the delay of two pictures, which the file's own edit list takes away
    data = whole.read_bytes()
    (movie_scale,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    made = {}
    for name, skipped, shown in (("front", 5, 35), ("middle", 7, 20), ("end", 0, 11), ("key", 20, 20)):
        made[name] = folder / f"{name}.mp4"
        shutil.copy(whole, made[name])
        edit(made[name], (round(shown / 24 * movie_scale), (2 + skipped) * tick))
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "first", "count"), [("front", 5, 35), ("middle", 7, 20), ("end", 0, 11), ("key", 20, 20)]
)
def test_an_edit_list_shows_what_a_player_shows(
    edited: dict[str, Path], name: str, first: int, count: int, backend: str
) -> None:
    shown = played(edited[name])
    assert [n for n, _ in shown] == list(range(first, first + count))
    found = read(edited[name], backend, at(*range(count)))
    assert numbers(found) == [n for n, _ in shown]
    assert found.times_s == pytest.approx([t for _, t in shown], abs=2e-3)
    assert found.duration_s == pytest.approx(count / 24, abs=2e-3)
    assert numbers(read(edited[name], backend, at(count - 1, 0, count // 2))) == [
        first + count - 1, first, first + count // 2,
    ]  # fmt: skip
    source = FrameSource(here(1, backend))
    (past,) = source.read([FrameRequest(str(edited[name]), at(count))])
    assert isinstance(past, Rejected) and past.reason == "index_outside"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not here")
@pytest.mark.parametrize("name", ["front", "middle", "end", "key"])
def test_an_edit_list_shows_what_the_ffmpeg_program_shows(edited: dict[str, Path], name: str) -> None:
    program = by_program(edited[name])
    assert numbers(read(edited[name], sampling=at(*range(len(program))))) == program


# -- groups of pictures, depths, rates -----------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_open_groups_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, container: str, backend: str
) -> None:
    option = {"libx264": "x264-params", "libx265": "x265-params"}[codec]
    open_gop = "open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0" + (
        ":log-level=none" if codec == "libx265" else ""
    )
    monkeypatch.setitem(OPTIONS, codec, {"preset": "fast", "crf": "12", option: open_gop})
    path = write(tmp_path / f"a.{container}", [numbered(i) for i in range(60)], codec, gop=10)
    assert numbers(read(path, backend, at(*range(60)))) == list(range(60))
    for few in ((29, 11, 10, 9), (19,), (58, 59), (30, 28)):
        assert numbers(read(path, backend, at(*few))) == list(few)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("libx264", "yuv420p10le"), ("libx265", "yuv420p10le"), ("libsvtav1", "yuv420p10le"), ("libx264", "yuv422p10le")],
)
def test_ten_bits_are_the_same_pictures_as_eight(tmp_path: Path, codec: str, pix_fmt: str, backend: str) -> None:
    pictures = [numbered(i) for i in range(20)]
    ten = read(write(tmp_path / "ten.mkv", pictures, codec, pix_fmt=pix_fmt), backend, Sampling(count=4))
    eight = read(write(tmp_path / "eight.mkv", pictures, codec), backend, Sampling(count=4))
    assert numbers(ten) == numbers(eight) == [2, 7, 12, 17]
    assert (ten.data.float() - eight.data.float()).abs().mean() < 3


def test_interlaced_pictures_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last picture of a group is taken out of the decoder early, and never an interlaced one."""
    monkeypatch.setitem(OPTIONS, "libx264", {"preset": "fast", "qp": "8", "x264-params": "tff=1:bframes=3"})
    path = write(tmp_path / "a.mkv", [numbered(i) for i in range(40)], gop=20)
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    for few in ((7, 31), (19, 20), (0, 39), tuple(range(40))):
        assert numbers(read(path, sampling=at(*few))) == list(few)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_backend_is_exact_on_every_clip(clips: dict[str, Path], tmp_path: Path, name: str, backend: str) -> None:
    every = read(clips[name], backend, at(*range(40)))
    assert (every.backend == "pyav") == (backend == "pyav" or name in ("h264.ts", "mpeg4.avi", "bare.h264"))
    assert numbers(every) == list(range(40))
    assert every.times_s == pytest.approx([k / 24 for k in range(40)], abs=2e-3)
    source = FrameSource(here(8, backend), index_cache=Cache(tmp_path, 1e9))
    for few in ((39, 3, 3, 21), (0,), (38, 39), tuple(range(0, 40, 7))):  # the first time without an index
        (found,) = source.read([FrameRequest(str(clips[name]), at(*few))])
        assert isinstance(found, Frames) and numbers(found) == list(few)
    source.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.mp4", "libx265"), ("a.webm", "libvpx-vp9")])
def test_variable_rate(tmp_path: Path, name: str, codec: str, backend: str) -> None:
    rng = np.random.default_rng(1)
    pts = np.concatenate([[0], rng.integers(5, 200, 39)]).cumsum().tolist()
    path = write(tmp_path / name, [numbered(i) for i in range(40)], codec, pts=pts)
    found = read(path, backend, at(*range(40)))
    assert numbers(found) == list(range(40))
    assert found.times_s == pytest.approx([t / 1000 for t in pts], abs=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rotation", "expected"), [(None, "rgbw"), (90, "gwrb"), (180, "wbgr"), (-90, "brwg")])
def test_rotation_in_every_backend(tmp_path: Path, rotation: int | None, expected: str, backend: str) -> None:
    path = write(tmp_path / "r.mp4", [CORNERS] * 3, rotation=rotation)
    found = read(path, backend, Sampling(count=1))
    assert "".join(corners(found.data[0])) == expected
    assert (found.height_px, found.width_px) == tuple(found.data.shape[1:3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("space", [Colorspace.ITU709, Colorspace.ITU601, None])
@pytest.mark.parametrize("full", [False, True])
def test_colours_in_every_backend(tmp_path: Path, space: Colorspace | None, full: bool, backend: str) -> None:
    yuv = [(120, 90, 200), (16, 128, 128), (235, 128, 128), (80, 180, 100), (180, 60, 140)]
    range_ = ColorRange.JPEG if full else ColorRange.MPEG
    path = patches(tmp_path / "c.mkv", 2 if space is None else int(space), range_, yuv)
    seen = read(path, backend, Sampling(count=1)).data[0][16, 16::32].float()
    kr, kb = (0.2126, 0.0722) if space == Colorspace.ITU709 else (0.299, 0.114)
    assert (seen - torch.tensor([to_rgb(*p, kr, kb, full) for p in yuv])).abs().max() <= 3


def test_a_rate_that_is_no_whole_number(tmp_path: Path) -> None:
    """30000/1001 a second: each picture is asked for by the middle of the time it is shown."""
    path = tmp_path / "ntsc.mp4"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=Fraction(30000, 1001), options=OPTIONS["libx264"])
        stream.width, stream.height, stream.pix_fmt = 160, 32, "yuv420p"
        for i in range(90):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        file.mux(stream.encode())
    middles = tuple((i + 0.5) * 1001 / 30000 for i in (0, 29, 30, 59, 89))
    assert numbers(read(path, sampling=Sampling("seconds", at=middles))) == [0, 29, 30, 59, 89]
    assert numbers(read(path, sampling=Sampling("fps", 99, fps=30000 / 1001))) == list(range(90))
