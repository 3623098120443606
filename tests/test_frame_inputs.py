"""Where clips come from (files, image folders, tar shards, URLs), and which pictures a sampling takes."""

from __future__ import annotations

import contextlib
import http.server
import io
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from test_frames import here, number, numbered, write
from vstar_fast import clip_files, torchvision_compat
from vstar_fast.clip_errors import Unusable
from vstar_fast.config import FramesConfig
from vstar_fast.errors import DataError
from vstar_fast.frames import FrameRequest, Frames, FrameSource, Geometry, ModelSize, Sampling, normalise
from vstar_fast.frames.geometry import plan
from vstar_fast.frames.index import Index
from vstar_fast.frames.sampling import pick
from vstar_fast.records import Rejected


def read(path: Path | str, count: int = 8, **values: Any) -> Frames | Rejected:
    source = FrameSource(here(count))
    try:
        return source.read([FrameRequest(str(path), values.pop("sampling", Sampling(count=count)), **values)])[0]
    finally:
        source.close()


def numbers(found: Frames | Rejected) -> list[int]:
    assert isinstance(found, Frames), found
    return [number(x) for x in found.data]


# -- inputs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "a.mp4", [numbered(i) for i in range(40)])


def test_a_folder_of_numbered_images(tmp_path: Path) -> None:
    for i in range(12):
        with av.open(str(tmp_path / f"{i}.png"), "w", format="image2", options={"update": "1"}) as file:
            stream: Any = file.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 160, 32, "rgb24"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
            file.mux(stream.encode())
    (tmp_path / "notes.txt").write_text("not a picture")
    found = read(tmp_path, 6)
    assert numbers(found) == [1, 3, 5, 7, 9, 11]
    assert isinstance(found, Frames)
    assert found.times_s == pytest.approx([k / 25 for k in (1, 3, 5, 7, 9, 11)]) and found.duration_s == 12 / 25
    assert numbers(read(tmp_path, 2, start_s=0.08, end_s=0.4)) == [4, 8]
    before = clip_files.content_key(str(tmp_path))
    (tmp_path / "11.png").unlink()
    assert clip_files.content_key(str(tmp_path)) != before


def test_a_damaged_image_of_a_folder_is_a_record(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"not a picture")
    found = read(tmp_path, 3)
    assert isinstance(found, Rejected) and found.reason == "truncated"


def shard(path: Path, clip: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in (("a/1.mp4", clip.read_bytes()), ("empty.mp4", b""), ("text.mp4", b"words" * 99)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_members_of_a_shard_without_unpacking(clip: Path, tmp_path: Path) -> None:
    path = shard(tmp_path / "0001.tar", clip)
    assert numbers(read(f"{path}::a/1.mp4")) == numbers(read(clip))
    assert clip_files.content_key(f"{path}::a/1.mp4") == clip_files.content_key(str(clip))
    assert clip_files.read_bytes(f"{path}::a/1.mp4") == clip.read_bytes()
    for member, reason in (("b.mp4", "missing_file"), ("empty.mp4", "empty_file"), ("text.mp4", "not_a_video")):
        found = read(f"{path}::{member}")
        assert isinstance(found, Rejected) and found.reason == reason and member in found.detail
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_and_missing_shards(clip: Path, tmp_path: Path) -> None:
    path = shard(tmp_path / "cut.tar", clip)
    path.write_bytes(b"x" * 2000)
    found = read(f"{path}::a/1.mp4")
    assert isinstance(found, Rejected) and found.reason == "truncated" and "cut.tar" in found.detail
    gone = read(f"{tmp_path}/none.tar::a.mp4")
    assert isinstance(gone, Rejected) and gone.reason in ("missing_file", "unreadable")


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("fault", ["cut behind a member", "cut in a header", "zeroed checksum", "text in a header"])
def test_members_behind_damage_are_not_left_out_in_silence(tmp_path: Path, fault: str) -> None:
    path = tar_of(tmp_path / "s.tar", {f"{i}.mp4": b"x" * 512 for i in range(4)})
    data = bytearray(path.read_bytes())
    if fault.startswith("cut"):
        data = data[: 2048 if "behind" in fault else 2048 + 100]
    else:
        data[2048 + 148 : 2048 + 156] = b"\0" * 8 if "zeroed" in fault else b"notanoct"
    path.write_bytes(data)
    with pytest.raises(Unusable, match=r"s\.tar is no whole, uncompressed tar.*2048") as caught:
        clip_files.members(str(path))
    assert caught.value.reason == "truncated"


def test_images_of_one_number_have_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["1.png", "01.png", "0.png", "001.png"]
    for listed in (names, names[::-1]):
        monkeypatch.setattr(clip_files.os, "listdir", lambda _, listed=listed: list(listed))
        found = [Path(p).name for p in clip_files.images(str(tmp_path))]
        assert found == ["0.png", "001.png", "01.png", "1.png"]


def test_an_image_that_changes_in_a_folder_changes_its_key(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"before")
    key = clip_files.content_key(str(tmp_path))
    with open(tmp_path / "2.png", "r+b") as file:
        file.write(b"afterwards")
    assert clip_files.content_key(str(tmp_path)) != key


def test_urls_through_fsspec(clip: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/clips/a.mp4", clip.read_bytes())
    memory.pipe("/clips/s.tar", shard(tmp_path / "s.tar", clip).read_bytes())
    assert numbers(read("memory://clips/a.mp4")) == numbers(read(clip))
    assert numbers(read("memory://clips/s.tar::a/1.mp4", 4)) == numbers(read(clip, 4))
    assert clip_files.content_key("memory://clips/a.mp4") == clip_files.content_key(str(clip))
    missing, odd = read("memory://clips/none.mp4"), read("nosuch://x/a.mp4")
    assert isinstance(missing, Rejected) and missing.reason == "missing_file"
    assert isinstance(odd, Rejected) and odd.reason == "unreadable" and "nosuch" in odd.detail


class _Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder; `ranges` off as some servers have it."""

    folder: Path
    ranges = True

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        first, last = 0, len(data) - 1
        if asked and self.ranges:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            first, last = int(low), min(last, int(high or last))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_: Any) -> None:
        pass


class _Short(_Handler):
    """Ends in the middle of an answer, without a word, or says nothing at all."""

    def _serve(self, body: bool) -> None:
        if "silent" in self.path:
            time.sleep(3)
        if "refused" in self.path:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        if body:
            self.wfile.write(b"x" * 10)
        self.close_connection = True


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["short.mp4", "silent.mp4", "short.tar::a.mp4"])
def test_a_web_server_that_breaks_off_or_is_silent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(clip_files, "SILENT_S", 0.5)
    with serving(_Short) as url:
        began = time.monotonic()
        with pytest.raises((OSError, Unusable)):
            clip_files.content_key(f"{url}/{name}")
        assert time.monotonic() - began < 2.5


def test_a_web_server_that_refuses_is_not_a_missing_file() -> None:
    pytest.importorskip("aiohttp")
    with serving(_Short) as url:
        found = read(f"{url}/refused.mp4")
    assert isinstance(found, Rejected) and found.reason == "unreadable" and "503" in found.detail


@pytest.fixture(params=[True, False], ids=["ranges", "no-ranges"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of a folder on this machine."""
    handler = type("Handler", (_Handler,), {"folder": tmp_path, "ranges": request.param})
    with serving(handler) as url:
        yield url, tmp_path


@pytest.mark.parametrize("isolate", [True, False])
def test_urls_of_a_web_server(clip: Path, site: tuple[str, Path], isolate: bool) -> None:
    pytest.importorskip("aiohttp")
    url, folder = site
    shutil.copy(clip, folder / "a.mp4")
    shard(folder / "s.tar", clip)
    (folder / "text.mp4").write_bytes(b"just words\n" * 99)
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[:-300])
    source = FrameSource(FramesConfig(8, isolate=isolate))
    names = ("a.mp4", "s.tar::a/1.mp4", "none.mp4", "text.mp4", "cut.mp4")
    found = source.read([FrameRequest(f"{url}/{name}") for name in names])
    source.close()
    expected = numbers(read(clip))
    assert numbers(found[0]) == expected and numbers(found[1]) == expected
    assert [f.reason for f in found[2:] if isinstance(f, Rejected)] == ["missing_file", "not_a_video", "truncated"]
    assert clip_files.content_key(f"{url}/a.mp4") == clip_files.content_key(str(clip))


@pytest.mark.parametrize("name", ["a.mov", "a.gif", "a.mkv", "a.avi"])
def test_containers(tmp_path: Path, name: str) -> None:
    if name == "a.gif":
        with av.open(str(tmp_path / name), "w") as file:
            stream: Any = file.add_stream("gif", rate=10)
            stream.width, stream.height, stream.pix_fmt = 160, 32, "gray"
            for i in range(10):
                frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24").reformat(format="gray")
                frame.pts = i
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    else:
        write(tmp_path / name, [numbered(i) for i in range(10)], "mpeg4" if name == "a.avi" else "libx264")
    assert numbers(read(tmp_path / name, 2)) == [2, 7]


def test_five_minutes_with_a_key_picture_every_ten_seconds(tmp_path: Path) -> None:
    distinct = [numbered(i) for i in range(1024)]
    path = write(tmp_path / "long.mp4", [distinct[i % 1024] for i in range(7500)], fps=25, gop=250)
    centres = [int((2 * k + 1) * 7500 / 16) for k in range(8)]
    found = read(path)
    assert numbers(found) == [n % 1024 for n in centres]
    assert isinstance(found, Frames) and found.times_s == pytest.approx([n / 25 for n in centres])


# -- sampling ----------------------------------------------------------------------------------------


def index_of(ticks: list[int], last: int) -> Index:
    return Index(ticks, ticks[:1], ticks[0], ticks[-1] + last, Fraction(1, 1000), False)


@st.composite
def clips(draw: st.DrawFn) -> Index:
    gaps = draw(st.lists(st.integers(1, 300), min_size=0, max_size=60))
    ticks = [draw(st.integers(-500, 5000))]
    for gap in gaps:
        ticks.append(ticks[-1] + gap)
    return index_of(ticks, draw(st.integers(1, 300)))


def shown(index: Index, at: Fraction) -> int:
    """The definition: the last picture that appears at or before `at`."""
    return max([t for t in index.ticks if t <= at], default=index.ticks[0])


@given(clips(), st.integers(1, 40))
def test_centres_against_their_definition(index: Index, count: int) -> None:
    picked = pick(index, FrameRequest("", Sampling(count=count)))
    length = Fraction(index.end - index.zero)
    assert picked.ticks == [shown(index, index.zero + length * (2 * k + 1) / (2 * count)) for k in range(count)]
    assert picked.duration_s == pytest.approx(float(length) / 1000)


@given(clips(), st.integers(1, 40))
def test_both_ends_against_linspace(index: Index, count: int) -> None:
    picked = pick(index, FrameRequest("", Sampling("ends", count)))
    last = len(index.ticks) - 1
    assert picked.ticks == [index.ticks[k * last // max(1, count - 1)] for k in range(count)]
    assert picked.ticks[0] == index.ticks[0] and (count == 1 or picked.ticks[-1] == index.ticks[-1])


@given(clips(), st.integers(1, 40), st.sampled_from([0.5, 1.0, 2.0, 10.0, 25.0]))
def test_frames_a_second_against_their_definition(index: Index, cap: int, fps: float) -> None:
    ticks = pick(index, FrameRequest("", Sampling("fps", cap, fps))).ticks
    length, step = Fraction(index.end - index.zero), Fraction(1000) / Fraction(fps)
    count = -(-length // step)
    if count > cap:
        count, step = cap, length / cap
    assert ticks == [shown(index, index.zero + k * step) for k in range(count)]


@given(clips(), st.data())
def test_seconds_and_indices_against_their_definition(index: Index, data: st.DataObject) -> None:
    length_ms = index.end - index.zero
    at_ms = data.draw(st.lists(st.integers(0, length_ms - 1), min_size=1, max_size=12))
    by_second = pick(index, FrameRequest("", Sampling("seconds", at=tuple(t / 1000 for t in at_ms))))
    assert by_second.ticks == [shown(index, Fraction(index.zero + t)) for t in at_ms]
    asked = data.draw(st.lists(st.integers(0, len(index.ticks) - 1), min_size=1, max_size=12))
    by_number = pick(index, FrameRequest("", Sampling("indices", at=tuple(asked))))
    assert by_number.ticks == [index.ticks[n] for n in asked]


@given(clips(), st.floats(0, 20), st.floats(0.001, 20), st.integers(1, 12))
def test_a_window_shows_nothing_outside_it(index: Index, start_s: float, length_s: float, count: int) -> None:
    request = FrameRequest("", Sampling(count=count), start_s=start_s, end_s=start_s + length_s)
    zero = index.zero + Fraction(start_s).limit_denominator(1_000_000) * 1000
    if zero >= index.end:
        with pytest.raises(Unusable, match="past the end"):
            pick(index, request)
        return
    picked = pick(index, request)
    end = index.zero + Fraction(start_s + length_s).limit_denominator(1_000_000) * 1000
    inside = [t for t in index.ticks if zero <= t < end]
    assert len(picked.ticks) == count and picked.ticks == sorted(picked.ticks)
    assert set(picked.ticks) <= set(inside or [shown(index, zero)])
    assert all(0 <= t <= picked.duration_s for t in picked.times_s(index))


@pytest.mark.parametrize(
    "sampling",
    [Sampling("indices", at=(0, 10)), Sampling("indices", at=(-1,)), Sampling("seconds", at=(-0.1,))]
    + [Sampling("seconds", at=(0.5, 1.0))],
)
def test_a_picture_that_is_not_there_is_an_error(sampling: Sampling) -> None:
    with pytest.raises(Unusable, match="was asked for"):
        pick(index_of([100 * i for i in range(10)], 100), FrameRequest("", sampling))


def test_seconds_and_indices_in_any_order() -> None:
    index = index_of([100 * i for i in range(10)], 100)
    assert pick(index, FrameRequest("", Sampling("seconds", at=(0.95, 0.0, 0.31)))).ticks == [900, 0, 300]
    window = FrameRequest("", Sampling("indices", at=(2, 0)), start_s=0.5, end_s=0.8)
    assert pick(index, window).ticks == [700, 500]


@pytest.mark.parametrize("ends", [(-1.0, None), (1.5, 1.0), (0.0, -1.0), (float("nan"), None), (float("inf"), None)])
def test_a_window_that_is_none_is_an_error(ends: tuple[float, float | None]) -> None:
    with pytest.raises(Unusable, match="no part of a clip lies between start_s"):
        pick(index_of([100 * i for i in range(10)], 100), FrameRequest("", start_s=ends[0], end_s=ends[1]))


def test_a_window_without_end_and_a_path_object() -> None:
    index = index_of([100 * i for i in range(10)], 100)
    assert pick(index, FrameRequest("", end_s=float("inf"))) == pick(index, FrameRequest(""))
    assert FrameRequest(Path("clips") / "a.mp4").name == "clips/a.mp4"  # type: ignore[arg-type]


def test_a_geometry_without_pixels() -> None:
    with pytest.raises(DataError, match="crop .* of at least 1 x 1"):
        Geometry(crop=(0, 5))
    with pytest.raises(DataError, match="width >= 0, got -3"):
        Geometry("shortest", 16, -3)
    for odd in ({"height": 2.5}, {"height": 16, "width": 16.0}, {"height": 16, "width": 16, "crop": (1.5, 2)}):
        with pytest.raises(DataError, match="whole numbers"):
            Geometry("exact", **odd)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"policy": "middle"}, "'middle' is not one of"),
        ({"count": 0}, "count >= 1"),
        ({"count": 2.5}, "whole count"),
        ({"count": float("nan")}, "whole count"),
        ({"count": float("inf")}, "whole count"),
        ({"count": "8"}, "whole count"),
        ({"policy": "fps"}, "fps >= 1e-06"),
        ({"policy": "fps", "fps": 1e-9}, "fps >= 1e-06"),
        ({"policy": "seconds", "at": (float("nan"),)}, "finite values"),
        ({"policy": "indices"}, "at least one value"),
        ({"policy": "indices", "at": (0.5,)}, "must be whole"),
    ],
)
def test_a_sampling_that_makes_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Sampling(**values)


def test_a_whole_count_may_come_as_a_float(clip: Path) -> None:
    assert numbers(read(clip, sampling=Sampling(count=2.0))) == numbers(read(clip, 2))  # type: ignore[arg-type]


# -- geometry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        (Geometry(), (1080, 1920)),
        (Geometry("shortest", 224), (224, 398)),
        (Geometry("shortest", 224, 300), (168, 298)),
        (Geometry("exact", 384, 384), (384, 384)),
        (Geometry("budget", least=3136, most=100352, factor=28), (224, 420)),
        (Geometry("exact", 384, 384, pad=True), (216, 384)),
        (Geometry("exact", 4000, 4000, shrink_only=True), (1080, 1920)),
    ],
)
def test_sizes(geometry: Geometry, size: tuple[int, int]) -> None:
    assert plan(geometry, 1080, 1920).size == size


@pytest.mark.parametrize(
    ("geometry", "picture"),
    [
        (Geometry("shortest", 336), (16, 16_000)),
        (Geometry("shortest", 336, filter="area"), (16_000, 16)),
        (Geometry("shortest", 20_000, pad=True), (480, 640)),
        (Geometry(pad=True), (40, 20_000)),
    ],
)
def test_no_frame_is_made_larger_than_8k(geometry: Geometry, picture: tuple[int, int]) -> None:
    with pytest.raises(Unusable, match=rf"its {picture[1]} x {picture[0]} pixels would become \d+ x \d+") as error:
        plan(geometry, *picture)
    assert error.value.reason == "too_large"


def test_what_is_asked_for_by_numbers_or_as_large_in_the_file_is_given() -> None:
    assert plan(Geometry("exact", 10_000, 10_000), 480, 640).size == (10_000, 10_000)
    assert plan(Geometry(), 10_000, 10_000).size == (10_000, 10_000)
    assert plan(Geometry("shortest", 9_000), 10_000, 10_000).size == (9_000, 9_000)
    assert plan(Geometry("shortest", 336, 1_000), 16, 16_000).size == (1, 1_000)


@pytest.mark.parametrize("filter", ["area", "bilinear"])
def test_a_long_clip_asked_for_by_its_shorter_side_is_a_record(tmp_path: Path, filter: str) -> None:
    for n in range(2):
        Image.new("RGB", (16_000, 16), (80 * n, 0, 0)).save(tmp_path / f"{n}.png")
    found = read(tmp_path, 2, geometry=Geometry("shortest", 336, filter=filter))
    assert isinstance(found, Rejected) and found.reason == "too_large"
    assert "its 16000 x 16 pixels would become 336000 x 336" in found.detail and "smaller frames" in found.detail


def test_a_long_clip_is_not_given_to_a_models_resize(tmp_path: Path) -> None:
    torchvision_compat.ensure()
    from vstar_fast.models.vstar_demo.processing import VStarDemoVideoProcessor

    for n in range(2):
        Image.new("RGB", (8_000, 16), (80 * n, 0, 0)).save(tmp_path / f"{n}.png")
    processor = VStarDemoVideoProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    source = FrameSource(here(2), model_size=ModelSize(processor))
    (found,) = source.read([FrameRequest(str(tmp_path))])
    assert isinstance(found, Rejected) and found.reason == "too_large"
    assert "of its 8000 x 16 pixels one side is more than 200 times the other" in found.detail
    assert source.counts()["error:too_large"] == 1


@pytest.mark.parametrize("filter", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({"shape": "shortest", "height": 16}, (16, 80)),
        ({"shape": "exact", "height": 20, "width": 60}, (20, 60)),
        ({"shape": "shortest", "height": 24, "crop": (24, 48)}, (24, 48)),
        ({"shape": "exact", "height": 64, "width": 64, "pad": True}, (64, 64)),
    ],
)
def test_frames_come_at_the_size_asked_for(
    clip: Path, filter: str, values: dict[str, Any], shape: tuple[int, int]
) -> None:
    found = read(clip, 3, geometry=Geometry(**values, filter=filter))
    assert isinstance(found, Frames) and found.data.shape == (3, *shape, 3)
    assert (found.height_px, found.width_px) == (32, 160)
    exact = read(clip, 3, geometry=Geometry(**values))
    assert isinstance(exact, Frames) and (found.data.float() - exact.data.float()).abs().mean() < 8


def test_padding_keeps_the_picture_in_the_middle_of_black(clip: Path) -> None:
    found = read(clip, 1, geometry=Geometry("exact", 160, 160, pad=True))
    plain = read(clip, 1)
    assert isinstance(found, Frames) and isinstance(plain, Frames)
    assert torch.equal(found.data[:, 64:96], plain.data)
    assert not found.data[:, :64].any() and not found.data[:, 96:].any()


def test_normalised() -> None:
    data = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    found = normalise(data, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))
    assert found.shape == (1, 3, 1, 1) and found.flatten().tolist() == pytest.approx([-1.0, 2.0, 0.2])


# -- as data -----------------------------------------------------------------------------------------


def test_shards_folders_of_images_and_urls_are_data(clip: Path, tmp_path: Path) -> None:
    from vstar_fast import readers
    from vstar_fast.config import DataConfig

    members = {
        "1.mp4": clip.read_bytes(),
        "1.cls": b"jump",
        "2.mp4": clip.read_bytes(),
        "2.json": b'{"labels": [{"kind": "number", "name": "score", "value": 3}], "start_s": 0.5}',
        "3.mp4": clip.read_bytes(),
        "4.txt": b"no video",
        "5.mp4": clip.read_bytes(),
        "5.json": b"[1]",
        **{f"{i}.mp4": clip.read_bytes() for i in (6, 7, 8)},
        "6.cls": b"",
        "7.json": b"",
        "8.json": b"[" * 200_000,
    }
    tar_of(tmp_path / "0.tar", members)
    videos, rejected, _ = readers.read(DataConfig(str(tmp_path / "0.tar"), dev_fraction=0, test_fraction=0))
    assert [v.path for v in videos] == [f"{tmp_path}/0.tar::1.mp4", f"{tmp_path}/0.tar::2.mp4"]
    assert videos[0].labels[0].value == "jump" and videos[1].start_s == 0.5
    assert sorted(r.reason for r in rejected) == [*4 * ["bad_json"], "no_label", "not_video"]
    assert numbers(read(videos[0].path, 2)) == [10, 30]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    label = '"labels": [{"kind": "class", "name": "a", "value": "jump"}]'
    rows = [f'{{"id": "{i}", "path": "{p}", {label}}}' for i, p in enumerate(("images", "https://x.org/a.mp4"))]
    (tmp_path / "manifest.jsonl").write_text("\n".join(['{"vstar_manifest": 1, "name": "x"}', *rows]))
    found, _, _ = readers.read(DataConfig(str(tmp_path / "manifest.jsonl"), dev_fraction=0, test_fraction=0))
    assert [v.path for v in found] == [f"{tmp_path}/images", "https://x.org/a.mp4"]
