"""Frames: which pictures come back, when they are shown, how they look, and what bad files give."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from vstar_fast import backends, clip_files, frames
from vstar_fast.config import FramesConfig
from vstar_fast.errors import BackendError, DataError
from vstar_fast.frames import index, picture
from vstar_fast.records import Frames, Label, LabeledVideo, Rejected

BITS, BLOCK = 10, 16
X264 = {"preset": "ultrafast", "bf": "2", "b-adapt": "0", "qp": "12"}
OPTIONS: dict[str, dict[str, str]] = {
    "libx264": X264,
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "20", "svtav1-params": "fast-decode=1"},
    "mpeg4": {"bf": "2", "qscale": "2"},
    "mjpeg": {},
}


def numbered(n: int, height: int = 32) -> np.ndarray:
    """A picture that says `n`: one white or black block a bit."""
    bits = [(n >> b) & 1 for b in range(BITS)]
    row = np.repeat(np.array(bits, dtype=np.uint8) * 255, BLOCK)
    return np.broadcast_to(row[None, :, None], (height, BITS * BLOCK, 3)).copy()


def number(picture: torch.Tensor) -> int:
    """The number a picture says."""
    middle = picture[picture.shape[0] // 2, BLOCK // 2 :: BLOCK].float().mean(-1)
    return sum(1 << b for b in range(BITS) if middle[b] > 128)


def write(
    path: Path,
    pictures: Sequence[np.ndarray],
    codec: str = "libx264",
    *,
    fps: int = 24,
    pts: Sequence[int] | None = None,
    gop: int = 12,
    container: dict[str, str] | None = None,
    rotation: int | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Encode pictures; `pts` in 1/1000 s for a variable frame rate."""
    with contextlib.closing(av.open(str(path), "w", options=container or {})) as file:
        stream: Any = file.add_stream(codec, rate=fps, options=OPTIONS.get(codec, {}))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.gop_size = "yuvj420p" if codec == "mjpeg" else pix_fmt, gop
        if pts is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, fps) if pts is None else Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def video(path: Path | str, id: str = "v", **values: Any) -> LabeledVideo:
    return LabeledVideo(id, str(path), (Label("class", "action", "jump"),), **values)


def here(count: int = 8, backend: str = "auto", **values: Any) -> FramesConfig:
    """Settings that decode in this process, so that a test can look in."""
    return FramesConfig(count, backend, isolate=False, **values)


def read_one(path: Path | str, count: int = 8, backend: str = "auto", **values: Any) -> Frames:
    (found,) = frames.read([video(path, **values)], here(count, backend), workers=1)
    assert isinstance(found, Frames), found
    return found


def refused(path: Path | str, max_duration_s: float = 3600.0, **values: Any) -> Rejected:
    (found,) = frames.read([video(path, **values)], here(4), workers=1, max_duration_s=max_duration_s)
    assert isinstance(found, Rejected), found
    assert (found.stage, found.id) == ("frames", "v")
    assert found.reason in frames.REASONS
    assert str(path) in found.detail
    return found


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 40 numbered pictures at 24 fps in several codecs and containers."""
    folder = tmp_path_factory.mktemp("clips")
    pictures = [numbered(i) for i in range(40)]
    kinds = {
        "h264.mp4": "libx264",
        "h264.mkv": "libx264",
        "h264.ts": "libx264",
        "hevc.mp4": "libx265",
        "vp9.webm": "libvpx-vp9",
        "av1.mp4": "libsvtav1",
        "mpeg4.avi": "mpeg4",
        "mjpeg.mkv": "mjpeg",
    }
    made = {name: write(folder / name, pictures, codec) for name, codec in kinds.items()}
    with av.open(str(made["h264.mp4"])) as file, open(folder / "bare.h264", "wb") as bare:
        stream = file.streams.video[0]
        annexb = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in file.demux(stream):
            for out in annexb.filter(packet if packet.size else None):
                bare.write(bytes(out))
    return made | {"bare.h264": folder / "bare.h264"}


NAMES = (
    "h264.mp4",
    "h264.mkv",
    "h264.ts",
    "hevc.mp4",
    "vp9.webm",
    "av1.mp4",
    "mpeg4.avi",
    "mjpeg.mkv",
    "bare.h264",
)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_at_segment_centres(clips: dict[str, Path], name: str) -> None:
    found = read_one(clips[name], count=8)
    # 40 pictures in 8 segments of 5: the centre is half-way through the third.
    assert [number(x) for x in found.data] == [2, 7, 12, 17, 22, 27, 32, 37]
    assert found.times_s == pytest.approx([k / 24 for k in (2, 7, 12, 17, 22, 27, 32, 37)], abs=2e-3)
    assert found.duration_s == pytest.approx(40 / 24, abs=2e-3)
    assert (found.height_px, found.width_px, found.backend) == (32, 160, "pyav")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3, 40, 57])
def test_any_count(clips: dict[str, Path], name: str, count: int) -> None:
    expected = [int((2 * k + 1) * 40 / (2 * count)) for k in range(count)]
    assert [number(x) for x in read_one(clips[name], count).data] == expected


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "hevc.mp4", "vp9.webm", "mpeg4.avi"])
def test_window(clips: dict[str, Path], name: str) -> None:
    # Pictures 12 (0.5 s) to 29 (1.25 s, not included): 6 segments of 3.
    found = read_one(clips[name], count=6, start_s=0.5, end_s=1.25)
    assert [number(x) for x in found.data] == [13, 16, 19, 22, 25, 28]
    assert found.times_s == pytest.approx([(k - 12) / 24 for k in (13, 16, 19, 22, 25, 28)], abs=2e-3)
    assert found.duration_s == pytest.approx(0.75)


def test_window_open_at_one_end(clips: dict[str, Path]) -> None:
    assert [number(x) for x in read_one(clips["h264.mp4"], 2, start_s=1.0).data] == [28, 36]
    assert [number(x) for x in read_one(clips["h264.mp4"], 2, end_s=1.0).data] == [6, 18]
    late = read_one(clips["h264.mp4"], 2, start_s=1.5, end_s=99.0)
    assert [number(x) for x in late.data] == [37, 39] and late.duration_s == pytest.approx(4 / 24)


def test_window_between_two_pictures_shows_the_earlier(clips: dict[str, Path]) -> None:
    found = read_one(clips["h264.mp4"], 3, start_s=10.2 / 24, end_s=10.8 / 24)
    assert [number(x) for x in found.data] == [10, 10, 10]
    assert found.times_s == (0.0, 0.0, 0.0)


def test_window_of_a_long_clip_decodes_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "long.mp4", [numbered(i) for i in range(960)], fps=24, gop=48)
    fed: list[int] = []
    scan = index._packets
    monkeypatch.setattr(index, "_packets", lambda *a, **k: fed.append(len((found := scan(*a, **k))[0])) or found)
    monkeypatch.setattr(index, "WHOLE_BYTES", 1000)
    assert [number(x) for x in read_one(path, 4, start_s=30.0, end_s=32.0).data] == [726, 738, 750, 762]
    assert sum(fed) < 32 + 120
    assert [number(x) for x in read_one(path, 4).data] == [120, 360, 600, 840]


def test_variable_frame_rate(tmp_path: Path) -> None:
    # Pictures 0..9 last 20 ms each, 10..18 180 ms each; the file gives the last one 41 ms: 1.861 s in all.
    pts = [20 * i for i in range(10)] + [200 + 180 * i for i in range(10)]
    path = write(tmp_path / "vfr.mkv", [numbered(i) for i in range(20)], pts=pts)
    found = read_one(path, count=10)
    assert found.duration_s == pytest.approx(1.861)
    centres_ms = [186.1 * (k + 0.5) for k in range(10)]
    expected = [max(i for i in range(20) if pts[i] <= c) for c in centres_ms]
    assert [number(x) for x in found.data] == expected
    assert found.times_s == pytest.approx([pts[i] / 1000 for i in expected], abs=1e-6)


def test_late_start_counts_from_the_first_picture(tmp_path: Path) -> None:
    pts = [5000 + 40 * i for i in range(10)]
    path = write(tmp_path / "late.mkv", [numbered(i) for i in range(10)], pts=pts)
    found = read_one(path, count=5)
    assert [number(x) for x in found.data] == [1, 3, 5, 7, 9]
    assert found.times_s == pytest.approx([0.04, 0.12, 0.2, 0.28, 0.36])


def test_one_picture(tmp_path: Path) -> None:
    found = read_one(write(tmp_path / "one.mp4", [numbered(5)]), count=4)
    assert [number(x) for x in found.data] == [5, 5, 5, 5]
    assert found.times_s == (0.0,) * 4
    assert found.duration_s == pytest.approx(1 / 24)


CORNERS = np.zeros((64, 96, 3), dtype=np.uint8)
CORNERS[:32, :48], CORNERS[:32, 48:] = (255, 0, 0), (0, 255, 0)
CORNERS[32:, :48], CORNERS[32:, 48:] = (0, 0, 255), (255, 255, 255)


def corners(picture: torch.Tensor) -> list[str]:
    h, w = picture.shape[:2]
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (True,) * 3: "w"}
    points = [(h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4)]
    return [names[tuple(bool(v > 128) for v in picture[p])] for p in points]


@pytest.mark.parametrize(
    ("rotation", "expected", "size"),
    [
        (None, "rgbw", (64, 96)),
        (90, "gwrb", (96, 64)),  # counter-clockwise
        (180, "wbgr", (64, 96)),
        (-90, "brwg", (96, 64)),
    ],
)
def test_rotation(tmp_path: Path, rotation: int | None, expected: str, size: tuple[int, int]) -> None:
    found = read_one(write(tmp_path / "r.mp4", [CORNERS] * 3, rotation=rotation), count=1)
    assert "".join(corners(found.data[0])) == expected
    assert (found.height_px, found.width_px) == size == tuple(found.data.shape[1:3])


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [((1, 0, 0, 1), "rgbw"), ((-1, 0, 0, 1), "grwb"), ((1, 0, 0, -1), "bwrg"), ((0, 1, 1, 0), "rbgw")],
)
def test_mirrored(matrix: tuple[int, int, int, int], expected: str) -> None:
    a, b, c, d = (v << 16 for v in matrix)

    matrix_bytes = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], dtype="=i4").tobytes()
    how = picture.turn(matrix_bytes)
    assert "".join(corners(torch.from_numpy(picture.turned(CORNERS, how).copy()))) == expected
    assert "".join(corners(picture.turned(torch.from_numpy(CORNERS)[None], how)[0])) == expected


def test_odd_size(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 53, dtype=np.uint8)[None, :, None], (37, 53, 3)).copy()
    path = write(tmp_path / "odd.mkv", [ramp] * 2, "libx264", pix_fmt="yuv444p")
    found = read_one(path, count=1)
    assert found.data.shape == (1, 37, 53, 3)
    assert (found.data[0].int() - torch.from_numpy(ramp).int()).abs().max() <= 8


def patches(path: Path, space: int, range_: ColorRange, yuv: list[tuple[int, int, int]]) -> Path:
    """Flat patches of given Y, U, V, stored without a conversion and tagged with matrix and range."""
    planes = np.repeat(np.array(yuv, dtype=np.uint8), 32, axis=0)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=8, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = len(planes), 32, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, range_
        for i in range(2):
            image = np.stack([np.broadcast_to(planes[:, c], (32, len(planes))) for c in range(3)])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="yuv444p")
            frame.colorspace, frame.color_range, frame.pts = space, range_, i
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def to_rgb(y: int, u: int, v: int, kr: float, kb: float, full: bool) -> list[float]:
    """The definition: ITU-R BT.601/709 with their range."""
    luma = y / 255 if full else (y - 16) / 219
    cb, cr = ((u - 128) / 255, (v - 128) / 255) if full else ((u - 128) / 224, (v - 128) / 224)
    r, b = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return [min(255.0, max(0.0, 255 * x)) for x in (r, g, b)]


@pytest.mark.parametrize(
    ("space", "kr", "kb"),
    [(Colorspace.ITU709, 0.2126, 0.0722), (Colorspace.ITU601, 0.299, 0.114), (None, 0.299, 0.114)],
)
@pytest.mark.parametrize("full", [False, True])
def test_colours(tmp_path: Path, space: Colorspace | None, kr: float, kb: float, full: bool) -> None:
    yuv = [(120, 90, 200), (16, 128, 128), (235, 128, 128), (80, 180, 100), (180, 60, 140)]
    tag = 2 if space is None else int(space)
    path = patches(tmp_path / "c.mkv", tag, ColorRange.JPEG if full else ColorRange.MPEG, yuv)
    picture = read_one(path, count=1).data[0]
    seen = picture[16, 16::32].float()
    expected = torch.tensor([to_rgb(*p, kr, kb, full) for p in yuv])
    assert (seen - expected).abs().max() <= 3, (seen, expected)


def test_alpha_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "alpha.mov"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("png", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgba"
        picture = np.full((16, 16, 4), (200, 100, 50, 7), dtype=np.uint8)
        for i in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert read_one(path, count=1).data[0, 8, 8].tolist() == [200, 100, 50]


# -- bad files ---------------------------------------------------------------------------------------


def test_missing_empty_and_not_a_video(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.mp4").reason == "missing_file"
    assert refused(tmp_path).reason == "not_a_video"
    for name, data, reason in [
        ("empty.mp4", b"", "empty_file"),
        ("text.mp4", b"just words\n" * 99, "not_a_video"),
        ("notes.txt", b"FFmpeg plays text as terminal art\n" * 99, "not_a_video"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not_a_video"),
        ("noise.mp4", np.random.default_rng(0).bytes(5000), "not_a_video"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert refused(tmp_path / name).reason == reason, name


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert refused(path).reason == "no_video_stream"


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "hevc.mp4", "vp9.webm", "mpeg4.avi"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_cut_off(clips: dict[str, Path], tmp_path: Path, name: str, share: float) -> None:
    whole = clips[name].read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refused(path).reason == "truncated"


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_cut_off_with_the_index_in_front(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "front.mp4", [numbered(i) for i in range(40)], container={"movflags": "faststart"})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refused(path).reason == "truncated"


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "front.mp4", [numbered(i) for i in range(40)], container={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 8
    data[start + (len(data) - start) // 3 :] = b"\xff" * (len(data) - start - (len(data) - start) // 3)
    path.write_bytes(data)
    found = refused(path)
    assert found.reason == "truncated" and "does not decode" in found.detail


def test_too_long_and_the_window_that_helps(clips: dict[str, Path]) -> None:
    found = refused(clips["h264.mp4"], max_duration_s=1.0)
    assert found.reason == "too_long" and "1.7 s" in found.detail and "start_s/end_s" in found.detail
    assert refused(clips["bare.h264"], max_duration_s=1.0).reason == "too_long"
    config = FramesConfig(1)
    (cut,) = frames.read([video(clips["h264.mp4"], start_s=0.5, end_s=1.0)], config, max_duration_s=1.0)
    assert isinstance(cut, Frames)


def test_window_outside(clips: dict[str, Path]) -> None:
    found = refused(clips["h264.mp4"], start_s=2.0, end_s=3.0)
    assert found.reason == "window_outside" and "1.67 s" in found.detail


def test_failing_disk(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(clip_files, "check", fail)
    found = refused(clips["h264.mp4"])
    assert found.reason == "unreadable" and "Input/output error" in found.detail


def test_order_is_kept_around_bad_files(clips: dict[str, Path], tmp_path: Path) -> None:
    backends.reset_report()
    paths = [clips["h264.mp4"], tmp_path / "no.mp4", clips["vp9.webm"], tmp_path / "no2.mp4", clips["mpeg4.avi"]] * 3
    asked = [video(p, id=f"v{i}") for i, p in enumerate(paths)]
    found = list(frames.read(iter(asked), FramesConfig(2), workers=3))
    assert [f.video_id if isinstance(f, Frames) else f.id for f in found] == [v.id for v in asked]
    assert [isinstance(f, Frames) for f in found] == [True, False, True, False, True] * 3
    assert backends.report()["frames"] == {"pyav": 9}


def test_results_wait_for_the_consumer(clips: dict[str, Path]) -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for i in range(50):
            taken += 1
            yield video(clips["h264.mp4"], id=f"v{i}")

    found = frames.read(source(), FramesConfig(1), workers=2)
    next(found)
    next(found)
    assert taken <= 2 + 2 + 1
    found.close()  # type: ignore[attr-defined]
    assert taken <= 2 + 2 + 1


def test_missing_backend_says_how_to_get_it(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="no decoder 'magic'; it has: dali, pyav, torchcodec"):
        frames.read([video(clips["h264.mp4"])], FramesConfig(1, "magic"))
    missing = backends.Probe(False, "the Python module torchcodec is not installed", "run: pip install torchcodec")
    monkeypatch.setattr(backends, "available", lambda name: missing)
    with pytest.raises(BackendError, match="pip install torchcodec"):
        frames.read([video(clips["h264.mp4"])], FramesConfig(1, "torchcodec"))


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "hevc.mp4"])
def test_torchcodec_gives_the_same_pictures(clips: dict[str, Path], name: str) -> None:
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception as error:
        pytest.skip(f"torchcodec does not import here: {str(error).splitlines()[0]}")
    ours, theirs = (read_one(clips[name], 7, backend, start_s=0.3, end_s=1.5) for backend in ("pyav", "torchcodec"))
    assert ours.times_s == theirs.times_s and theirs.backend == "torchcodec"
    assert [number(x) for x in ours.data] == [number(x) for x in theirs.data]
    assert (ours.data.float() - theirs.data.float()).abs().mean() < 2


def test_batch_finds_videos_by_id(clips: dict[str, Path]) -> None:
    asked = [video(clips["h264.mp4"], id="a"), video(clips["vp9.webm"], id="b")]
    a, b = (f for f in frames.read(asked, FramesConfig(2)) if isinstance(f, Frames))
    batch = frames.to_batch([b, a], asked)
    assert [v.id for v in batch.videos] == ["b", "a"]
    assert batch.times_s == [b.times_s, a.times_s]
    assert torch.equal(batch.data[0], b.data) and torch.equal(batch.data[1], a.data)
    with pytest.raises(DataError, match="'b'"):
        frames.to_batch([a, b], asked[:1])
