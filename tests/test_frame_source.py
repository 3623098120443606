"""FrameSource: isolation of bad files, time limits, caches, decode ahead of the consumer."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from vstar_fast.cache import Cache
from vstar_fast.config import FramesConfig
from vstar_fast.frames import FrameRequest, Frames, FrameSource, Geometry, Sampling, job, worker
from vstar_fast.frames import worker_pool as processes
from vstar_fast.frames.job import Task
from vstar_fast.records import Rejected


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    made = [str(tiny.write_clip(folder / f"{i}.mp4", (40 * i, 90, 200), frames=8 + i)) for i in range(4)]
    shutil.copy(made[0], folder / "bad.mp4")
    return [*made, str(folder / "bad.mp4")]


def source(**values: object) -> FrameSource:
    return FrameSource(FramesConfig(4, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [("hang", "too_slow", "was stopped; raise frames.limit_s"), ("crash", "decoder_crashed", "SIGSEGV")],
)
def test_a_file_that_stops_the_decoder_is_one_record(
    clips: list[str], monkeypatch: pytest.MonkeyPatch, fault: str, reason: str, words: str
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    reader = source(limit_s=1.5 if fault == "hang" else 30.0)
    reader.decoding._single = f"frame_faults:{fault}"
    for _ in range(2):
        found = reader.read([FrameRequest(p) for p in (*clips, clips[0])])
        assert [isinstance(f, Frames) for f in found] == [True] * 4 + [False, True]
        bad = found[4]
        assert isinstance(bad, Rejected) and bad.reason == reason and words in bad.detail and "bad.mp4" in bad.detail
    assert reader.counts()[f"error:{reason}"] == 2
    reader.close()


def test_a_decoder_that_hangs_ends_with_its_time_when_nobody_is_left(clips: list[str]) -> None:
    """The run was killed: what it would have stopped stops itself."""
    orphan = processes.Worker()
    request = FrameRequest(clips[-1])
    task = Task(request, "frame_faults:hang", job.probe(request), limit_s=0.1)
    worker.send(orphan._channel, task)
    orphan._channel.close()
    assert orphan._process.wait(30) == -signal.SIGALRM


def test_processes_and_threads_give_the_same(clips: list[str]) -> None:
    requests = [FrameRequest(p, start_s=0.25) for p in clips]
    there, here = source().read(requests), source(isolate=False).read(requests)
    for a, b in zip(there, here, strict=True):
        assert isinstance(a, Frames) and isinstance(b, Frames)
        assert a.times_s == b.times_s and torch.equal(a.data, b.data)


def test_a_time_limit_without_processes(clips: list[str]) -> None:
    (found,) = source(isolate=False, limit_s=1e-9).read([FrameRequest(clips[0])])
    assert isinstance(found, Rejected) and found.reason == "too_slow"


@pytest.mark.parametrize("slow", ["_probed", "choose"])
def test_a_time_limit_without_processes_holds_before_decoding(
    clips: list[str], monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    plain = getattr(job, slow)

    def late(*arguments: object) -> object:
        time.sleep(0.3)
        return plain(*arguments)

    monkeypatch.setattr(job, slow, late)
    reading = source(isolate=False, limit_s=0.25)
    reading.decoding._single = "frame_faults:fail"
    (found,) = reading.read([FrameRequest(clips[0])])
    assert isinstance(found, Rejected) and found.reason == "too_slow"


def test_a_time_limit_without_processes_holds_for_images(tmp_path: Path) -> None:
    for n in range(3):
        Image.new("RGB", (8, 8), (80 * n, 0, 0)).save(tmp_path / f"{n}.png")
    (found,) = source(isolate=False, limit_s=1e-9).read([FrameRequest(str(tmp_path))])
    assert isinstance(found, Rejected) and found.reason == "too_slow"


def test_threads_that_read_keep_to_themselves(clips: list[str]) -> None:
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        with contextlib.closing(source(isolate=False)) as reading:
            assert all(isinstance(f, Frames) for f in reading.read([FrameRequest(c) for c in clips[:4]]))
            found = [f.result() for f in [reading._pool.submit(torch.get_num_threads) for _ in range(4)]]
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(found) == {1}


def test_a_second_source_reads_from_the_cache(clips: list[str], tmp_path: Path) -> None:
    requests = [
        FrameRequest(clips[0]),
        FrameRequest(clips[0], start_s=0.5),
        FrameRequest(clips[0], Sampling("indices", at=(3, 3, 1))),
        FrameRequest(clips[0], geometry=Geometry("exact", 16, 20)),
        FrameRequest(clips[1]),
    ]
    kept = {"frame_cache": Cache(tmp_path / "f", 1e9), "index_cache": Cache(tmp_path / "i", 1e9)}
    first, second = (FrameSource(FramesConfig(4, isolate=False), **kept) for _ in range(2))
    cold, warm = first.read(requests), second.read(requests)
    assert first.counts()["decoded"] == 5 and "decoded" not in second.counts() and second.counts()["cached"] == 5
    for a, b in zip(cold, warm, strict=True):
        assert isinstance(a, Frames) and isinstance(b, Frames)
        assert torch.equal(a.data, b.data) and (a.times_s, a.height_px, a.duration_s) == (b.times_s, 32, b.duration_s)
    assert kept["index_cache"].info()["entries"] == 2
    short = second.read([FrameRequest(clips[0], max_duration_s=0.5)])[0]
    assert isinstance(short, Rejected) and short.reason == "too_long"


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    path = tiny.write_clip(tmp_path / "v.mp4", (200, 0, 0))
    reader = FrameSource(FramesConfig(4, isolate=False), frame_cache=Cache(tmp_path / "f", 1e9))
    before = reader.read([FrameRequest(str(path))])[0]
    time.sleep(0.01)
    tiny.write_clip(path, (0, 0, 200))
    after = reader.read([FrameRequest(str(path))])[0]
    assert isinstance(before, Frames) and isinstance(after, Frames)
    assert reader.counts()["decoded"] == 2 and not torch.equal(before.data, after.data)


def test_damaged_frames_are_decoded_again(clips: list[str], tmp_path: Path) -> None:
    kept = Cache(tmp_path / "f", 1e9)
    reader = FrameSource(FramesConfig(4, isolate=False), frame_cache=kept)
    first = reader.read([FrameRequest(clips[0])])[0]
    (path,) = (tmp_path / "f").rglob("*.vfc")
    path.write_bytes(path.read_bytes()[:-9] + b"damaged!!")
    again = reader.read([FrameRequest(clips[0])])[0]
    assert isinstance(first, Frames) and isinstance(again, Frames) and torch.equal(first.data, again.data)
    assert kept.counts["damaged"] == 1 and reader.counts()["decoded"] == 2


def test_decoding_ahead_takes_the_wait_away(clips: list[str]) -> None:
    reader = source(isolate=False, prefetch=2)
    requests = [FrameRequest(p) for p in clips]
    reader.ahead(requests)
    deadline = time.monotonic() + 10
    while not all(f.done() for f in reader._early.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(reader._early) == 2
    assert all(isinstance(f, Frames) for f in reader.read(requests[:2])) and "stalls" not in reader.counts()
    assert reader.counts()["decoded"] == 2 and not reader._early
    assert [f.video_id for f in reader.stream(requests) if isinstance(f, Frames)] == clips
    reader.close()


def test_a_path_is_read_from_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_clip, other = tmp_path / "here", tmp_path / "there"
    other.mkdir()
    tiny.write_clip(with_clip / "a.mp4", (200, 30, 30))
    reader = FrameSource(FramesConfig(workers=1))
    monkeypatch.chdir(other)
    (before,) = reader.read([FrameRequest(str(with_clip / "a.mp4"))])  # workers start here
    monkeypatch.chdir(with_clip)
    (found,) = reader.read([FrameRequest("a.mp4")])
    reader.close()
    assert isinstance(found, Frames) and isinstance(before, Frames)
    assert torch.equal(found.data, before.data) and found.video_id == "a.mp4"


def test_waiting_for_a_clip_is_counted_and_shown(clips: list[str]) -> None:
    from vstar_fast.report import _frames

    reader = source(isolate=False)
    assert all(isinstance(f, Frames) for f in reader.read([FrameRequest(p) for p in clips]))
    counted = reader.counts()
    reader.close()
    assert counted["stalls"] >= 1 and counted["stall_s"] >= 0
    shown = dict(_frames({**counted, "stall_s": 1.5, "route:pyav: not dali: AV1": 2, "error:truncated": 1}))
    assert (
        shown["times the model waited for a clip"] == f"{counted['stalls']:g}" and shown["seconds it waited"] == "1.5"
    )
    assert shown["routed to pyav: not dali: AV1"] == "2" and shown["not read: truncated"] == "1"


def test_what_torchcodec_cannot_give_pyav_gives(clips: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(job.DECODERS, "torchcodec", "frame_faults:fail")
    reader = source(isolate=False)
    reader.decoding._single = "torchcodec"
    found, missing = reader.read([FrameRequest(clips[0]), FrameRequest("none.mp4")])
    assert isinstance(found, Frames) and found.backend == "pyav" and reader.counts()["fallback"] == 1
    assert isinstance(missing, Rejected) and missing.reason == "missing_file"
    reader.close()


def test_the_route_of_a_file_says_why(clips: list[str], tmp_path: Path) -> None:
    auto, pyav = source(isolate=False), source(backend="pyav", isolate=False)
    choice = auto.route(clips[0])
    assert choice.name == ("pyav" if not torch.cuda.is_available() else choice.name) and choice.reason
    assert pyav.route(clips[0]) == ("pyav", "asked for by name")
    (tmp_path / "1.jpg").write_bytes(b"x")
    assert auto.route(str(tmp_path)) == ("pyav", "not dali: images")
    auto.close()
    pyav.close()
