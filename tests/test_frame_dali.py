"""DALI: the same pictures as PyAV, on the CPU for VP8, VP9 and MJPEG and on a GPU for all; its traps put right."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from test_frames import CORNERS, corners, number, numbered, to_rgb, write
from vstar_fast import backends
from vstar_fast.cache import Cache
from vstar_fast.config import FramesConfig
from vstar_fast.frames import FrameRequest, Frames, FrameSource, Geometry, Sampling
from vstar_fast.frames.dali import BATCH, Batcher, Clip, to_709
from vstar_fast.frames.index import Index
from vstar_fast.frames.job import Look
from vstar_fast.frames.route import route
from vstar_fast.records import Rejected

pytestmark = pytest.mark.skipif(not backends.available("dali").ok, reason="needs DALI: .ci/run installs it")
gpu = pytest.mark.gpu


@functools.cache
def reader() -> FrameSource:
    """One graph for all tests: building it costs more than they do."""
    return FrameSource(FramesConfig(8, "dali", isolate=False, workers=1))


def read(paths: list[Path], **values: Any) -> list[Frames | Rejected]:
    return reader().read([FrameRequest(str(p), **values) for p in paths])


def good(path: Path, backend: str = "dali", **values: Any) -> Frames:
    (found,) = read([path], **values)
    assert isinstance(found, Frames), found
    assert found.backend == backend
    return found


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dali")
    pictures = [numbered(i, 48) for i in range(40)]
    pts = [20 * i for i in range(20)] + [400 + 180 * i for i in range(20)]
    return {
        "vp9.webm": write(folder / "vp9.webm", pictures, "libvpx-vp9"),
        "vp8.webm": write(folder / "vp8.webm", pictures, "libvpx"),
        "mjpeg.mkv": write(folder / "mjpeg.mkv", pictures, "mjpeg"),
        "vfr.webm": write(folder / "vfr.webm", pictures, "libvpx-vp9", pts=pts),
    }


def on_gpu(folder: Path) -> dict[str, Path]:
    pictures = [numbered(i, 144) for i in range(40)]
    codecs = {"h264.mp4": "libx264", "hevc.mp4": "libx265", "mpeg4.avi": "mpeg4", "vp9.webm": "libvpx-vp9"}
    return {name: write(folder / name, pictures, codec) for name, codec in codecs.items()}


@pytest.mark.parametrize("name", ["vp9.webm", "vp8.webm", "mjpeg.mkv", "vfr.webm"])
@pytest.mark.parametrize("policy", ["centres", "ends", "indices"])
def test_the_same_pictures_at_the_same_times_as_pyav(clips: dict[str, Path], name: str, policy: str) -> None:
    at = (39, 0, 7, 7, 22) if policy == "indices" else ()
    request = FrameRequest(str(clips[name]), Sampling(policy, at=at))
    expected = FrameSource(FramesConfig(8, "pyav", isolate=False)).read([request])[0]
    found = good(clips[name], sampling=request.sampling)
    assert isinstance(expected, Frames)
    assert [number(x) for x in found.data] == [number(x) for x in expected.data]
    assert found.times_s == expected.times_s and found.duration_s == expected.duration_s
    assert (found.data.float() - expected.data.float()).abs().mean() < 2


def test_geometry_is_the_same_as_everywhere(clips: dict[str, Path]) -> None:
    shape = Geometry("shortest", 24, crop=(24, 60))
    found = good(clips["vp9.webm"], geometry=shape)
    expected = FrameSource(FramesConfig(8, "pyav", isolate=False)).read(
        [FrameRequest(str(clips["vp9.webm"]), geometry=shape)]
    )[0]
    assert isinstance(expected, Frames)
    assert found.data.shape == (8, 24, 60, 3) == expected.data.shape and found.height_px == 48
    assert (found.data.float() - expected.data.float()).abs().mean() < 2


def flat(path: Path, codec: str, space: int, range_: ColorRange, yuv: list[tuple[int, int, int]]) -> Path:
    """Patches of given Y, U, V in 4:2:0, stored without a conversion and tagged."""
    planes = np.repeat(np.array(yuv, dtype=np.uint8), 64, axis=0)
    width = len(planes)
    luma = np.broadcast_to(planes[:, 0], (160, width)).reshape(-1)
    chroma = [np.broadcast_to(planes[::2, c], (80, width // 2)).reshape(-1) for c in (1, 2)]
    image = np.concatenate([luma, *chroma]).reshape(240, width)
    lossless = {"libvpx-vp9": {"lossless": "1", "cpu-used": "8"}, "libx264": {"qp": "0", "preset": "ultrafast"}}
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=8, options=lossless[codec])
        stream.width, stream.height, stream.pix_fmt = width, 160, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, range_
        for i in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="yuv420p")
            frame.colorspace, frame.color_range, frame.pts = space, range_, i
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


YUV = [(120, 90, 200), (16, 128, 128), (235, 128, 128), (80, 180, 100), (180, 60, 140)]


def check_colours(path: Path, space: int, full: bool) -> None:
    kr, kb = (0.2126, 0.0722) if space == 1 else (0.299, 0.114)
    picture = good(path, sampling=Sampling(count=1)).data[0].cpu()
    seen = picture[80, 32::64].float()
    expected = torch.tensor([to_rgb(*p, kr, kb, full) for p in YUV])
    assert (seen - expected).abs().max() <= 3, (seen, expected)


@pytest.mark.parametrize("space", [int(Colorspace.ITU709), int(Colorspace.ITU601), 2])
@pytest.mark.parametrize("full", [False, True])
def test_colours(tmp_path: Path, space: int, full: bool) -> None:
    range_ = ColorRange.JPEG if full else ColorRange.MPEG
    check_colours(flat(tmp_path / "c.webm", "libvpx-vp9", space, range_, YUV), space, full)


def test_the_matrix_of_709_undoes_601() -> None:
    yuv = torch.randint(60, 190, (200, 3)).tolist()
    wrong = torch.tensor([to_rgb(*p, 0.299, 0.114, False) for p in yuv]).round()
    inside = ((wrong > 0) & (wrong < 255)).all(-1)
    right = torch.tensor([to_rgb(*p, 0.2126, 0.0722, False) for p in yuv])
    found = to_709(wrong.to(torch.uint8).reshape(5, 40, 1, 3)).reshape(-1, 3)
    assert inside.sum() > 50 and (found[inside].float() - right[inside]).abs().max() <= 2


@pytest.mark.parametrize(("rotation", "expected"), [(None, "rgbw"), (90, "gwrb"), (180, "wbgr"), (-90, "brwg")])
def test_rotation(tmp_path: Path, rotation: int | None, expected: str) -> None:
    picture = np.repeat(np.repeat(CORNERS, 2, 0), 2, 1)
    path = write(tmp_path / "r.mov", [picture] * 3, "mjpeg", rotation=rotation)
    found = good(path, sampling=Sampling(count=1))
    assert "".join(corners(found.data[0])) == expected
    assert (found.height_px, found.width_px) == tuple(found.data.shape[1:3])


def test_one_bad_file_in_a_batch_fails_alone(clips: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(clips["vp9.webm"].read_bytes())
    data[len(data) // 3 :] = b"\x5a" * (len(data) - len(data) // 3)
    (tmp_path / "bad.webm").write_bytes(data)
    (tmp_path / "text.webm").write_text("no video")
    paths = [clips["vp9.webm"]] * 7 + [tmp_path / "bad.webm", tmp_path / "text.webm"] + [clips["vp9.webm"]] * 7
    found = read(paths)
    assert [i for i, f in enumerate(found) if isinstance(f, Rejected)] == [7, 8]
    assert all(f.reason in ("truncated", "not_a_video", "decode_error") for f in found if isinstance(f, Rejected))
    numbers = {tuple(number(x) for x in f.data) for f in found if isinstance(f, Frames)}
    assert numbers == {(2, 7, 12, 17, 22, 27, 32, 37)}


def test_a_batch_that_fails_is_tried_clip_by_clip() -> None:
    sizes = []

    def decode(clips: Any) -> list[torch.Tensor]:
        sizes.append(len(clips))
        if any(clip.numbers == [13] for clip in clips):
            raise RuntimeError("bad")
        return [torch.tensor(clip.numbers) for clip in clips]

    from concurrent.futures import ThreadPoolExecutor

    batcher = Batcher(decode)
    with ThreadPoolExecutor(BATCH) as pool:
        made = [Clip(np.zeros(1, np.uint8), [n], Look(), ("vp9", 8, 8)) for n in range(10, 10 + BATCH)]
        answers = [pool.submit(batcher.ask, clip) for clip in made]
    failed = [n for n, answer in enumerate(answers) if answer.exception()]
    batcher.close()
    assert failed == [3] and max(sizes) > 1
    assert all(a.result().item() == 10 + n for n, a in enumerate(answers) if n != 3)


def test_what_dali_fails_on_is_tried_on_pyav(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = FrameSource(FramesConfig(8, "dali", isolate=False))

    def fail(clip: Clip) -> None:
        raise RuntimeError("NVDEC says no")

    assert source.decoding.dali is not None
    monkeypatch.setattr(source.decoding.dali, "read", fail)
    (found,) = source.read([FrameRequest(str(clips["vp9.webm"]))])
    assert isinstance(found, Frames) and found.backend == "pyav" and source.counts()["fallback"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="NVDEC has H.264")
def test_a_codec_dali_lacks_goes_to_pyav(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [numbered(i) for i in range(8)])
    assert [number(x) for x in good(path, "pyav").data] == list(range(8))


def test_frames_and_looks_are_kept(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "v.webm"
    shutil.copy(clips["vp9.webm"], path)
    kept = {"frame_cache": Cache(tmp_path / "f", 1e9), "index_cache": Cache(tmp_path / "i", 1e9)}
    config = FramesConfig(8, "dali", isolate=False)
    first, second = (FrameSource(config, **kept).read([FrameRequest(str(path))])[0] for _ in range(2))
    assert isinstance(first, Frames) and isinstance(second, Frames)
    assert torch.equal(first.data.cpu(), second.data.cpu()) and first.times_s == second.times_s
    assert kept["index_cache"].info()["entries"] == 2


def index(codec: str, height: int = 1080, width: int = 1920, pix_fmt: str = "yuv420p", **values: Any) -> Index:
    from fractions import Fraction

    fields: dict[str, Any] = {"codec": codec, "height_px": height, "width_px": width, "pix_fmt": pix_fmt}
    return Index([0, 1], [0], 0, 2, Fraction(1, 25), False, **(fields | values))


@pytest.mark.parametrize(
    ("clip", "look", "card", "name", "words"),
    [
        (index("h264"), Look(), (9, 0), "dali", "NVDEC"),
        (index("h264", 360, 640), Look(), (9, 0), "pyav", "frames.gpu_pixels"),
        (index("h264", 4320, 7680), Look(), (9, 0), "pyav", "exceeds NVDEC's 4096"),
        (index("h264", pix_fmt="yuv420p10le"), Look(), (9, 0), "pyav", "yuv420p10le"),
        (index("hevc", pix_fmt="yuv420p10le"), Look(), (9, 0), "dali", "NVDEC"),
        (index("libdav1d"), Look(), (9, 0), "pyav", "no AV1"),
        (index("libdav1d"), Look(), (8, 9), "dali", "NVDEC"),
        (index("theora"), Look(), (9, 0), "pyav", "no theora"),
        (index("h264", edited=True), Look(), (9, 0), "pyav", "numbers"),
        (index("h264"), Look(colorspace=9), (9, 0), "pyav", "colour matrix 9"),
        (index("vp9"), Look(), None, "pyav", "more CPU time"),
        (index("h264"), Look(), None, "pyav", "on a CPU"),
    ],
)
def test_each_clip_is_routed_by_what_it_is(
    clip: Index, look: Look, card: tuple[int, int] | None, name: str, words: str
) -> None:
    choice = route(clip, look, asked="auto", gpu=card, least_pixels=900_000)
    assert choice.name == name and words in choice.reason


def test_the_threshold_is_the_size_from_which_dali_was_never_slower() -> None:
    from vstar_fast.bench.decode_gpu import Measured, threshold

    def rows(**ratios: tuple[float, float]) -> list[Measured]:
        return [
            Measured(int(n[1:]), batch, r) for n, pair in ratios.items() for batch, r in zip((1, 16), pair, strict=True)
        ]

    assert threshold(rows(p100=(0.5, 0.9), p400=(0.8, 1.3), p900=(2.0, 3.0))) == 400
    assert threshold(rows(p100=(2.0, 2.0), p400=(0.5, 0.6), p900=(2.0, 3.0))) == 900
    assert threshold(rows(p100=(0.2, 0.2), p400=(0.5, 0.6))) == 401


@pytest.mark.skipif(torch.cuda.is_available(), reason="the bench itself runs there")
def test_the_gpu_bench_measures_the_threshold_and_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU DALI hands H.264 to PyAV: what is timed is nothing, but every line of the bench runs."""
    from vstar_fast.bench import decode_gpu, runner

    monkeypatch.setattr(decode_gpu, "SIZES", ((64, 208), (96, 208)))
    monkeypatch.setattr(decode_gpu, "BATCHES", (1, 3))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(decode_gpu.rivals, "ON_GPU", {"PyAV once more": (decode_gpu.rivals.pyav_all, "av")})
    bench = runner.Bench("decode", quick=True)
    decode_gpu.on_gpu(bench, tmp_path, Cache(tmp_path / "i", 1e9), quick=True)
    printed = capsys.readouterr().out
    assert "set frames.gpu_pixels = " in printed and "not dali: DALI has no h264 on a CPU" in printed
    assert all(row.equal for row in bench.rows) and {row.subject for row in bench.rows} == {"DALI", "auto"}


# -- on a GPU only -----------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "mpeg4.avi", "vp9.webm"])
def test_nvdec_gives_exact_pictures_on_the_device(tmp_path: Path, name: str) -> None:
    path = on_gpu(tmp_path)[name]
    found = good(path)
    assert found.data.is_cuda
    assert [number(x.cpu()) for x in found.data] == [2, 7, 12, 17, 22, 27, 32, 37]


@gpu
@pytest.mark.parametrize("space", [1, 5, 2])
@pytest.mark.parametrize("full", [False, True])
def test_nvdec_colours(tmp_path: Path, space: int, full: bool) -> None:
    range_ = ColorRange.JPEG if full else ColorRange.MPEG
    check_colours(flat(tmp_path / "c.mp4", "libx264", space, range_, YUV), space, full)


@gpu
@pytest.mark.parametrize(("rotation", "expected"), [(None, "rgbw"), (90, "gwrb"), (180, "wbgr"), (-90, "brwg")])
def test_nvdec_rotation(tmp_path: Path, rotation: int | None, expected: str) -> None:
    picture = np.repeat(np.repeat(CORNERS, 3, 0), 3, 1)
    path = write(tmp_path / "r.mp4", [picture] * 3, rotation=rotation)
    assert "".join(corners(good(path, sampling=Sampling(count=1)).data[0].cpu())) == expected


@gpu
def test_no_frame_passes_through_the_host(tmp_path: Path) -> None:
    path = on_gpu(tmp_path)["h264.mp4"]
    good(path)
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as trace:
        found = good(path)
    copied = [e.key for e in trace.key_averages() if "HtoD" in e.key and e.device_time_total > 50]
    assert found.data.is_cuda and not copied, copied
