"""Copies to a GPU: begun ahead, from pinned memory, behind nothing."""

import contextlib
import types

import pytest
import torch

import families
from vstar_fast import models
from vstar_fast.models import transfer
from vstar_fast.models.transfer import Uploads


class Clip(torch.Tensor):
    """A tensor of the host that says what is done with it."""

    done: list[str] = []

    def pin_memory(self):
        self.done.append("pin")
        return self

    def to(self, device, non_blocking=False):
        self.done.append(f"to {device}, {'not ' if non_blocking else ''}waited for")
        found = torch.zeros(len(self)).as_subclass(There)
        found.device_, found.done = device, self.done
        return found


class There(torch.Tensor):
    """What arrived."""

    def record_stream(self, stream):
        self.done.append(f"used on {stream.name}")


@pytest.fixture
def streams(monkeypatch):
    """Streams that write down who waits for whom."""
    done = []
    own = types.SimpleNamespace(name="main", wait_stream=lambda other: done.append(f"main behind {other.name}"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: types.SimpleNamespace(name="copies"))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: own)
    monkeypatch.setattr(Clip, "done", done)
    return done


def clip():
    return torch.zeros(3).as_subclass(Clip)


def test_a_copy_is_begun_once_and_waited_for_by_the_gpu_alone(streams):
    uploads, first, second = Uploads(torch.device("cuda", 0)), clip(), clip()
    uploads.ahead([first])
    uploads.ahead([first])
    sent = ["pin", "to cuda:0, not waited for"]
    assert streams == sent
    assert isinstance(uploads.take(first), There)
    assert streams == [*sent, "main behind copies", "used on main"]
    uploads.take(second)
    assert streams[4:] == [*sent, "main behind copies", "used on main"]
    uploads.take(first)  # taken before, so it is copied again
    assert streams.count("pin") == 3


def test_what_is_not_taken_is_let_go(streams, monkeypatch):
    monkeypatch.setattr(transfer, "MOST_AHEAD", 2)
    uploads, clips = Uploads(torch.device("cuda", 0)), [clip() for _ in range(3)]
    uploads.ahead(clips)
    uploads.take(clips[2])
    assert streams.count("pin") == 3
    uploads.take(clips[0])
    assert streams.count("pin") == 4


def test_on_a_cpu_nothing_is_copied():
    uploads, tensor = Uploads(torch.device("cpu")), torch.ones(3)
    uploads.ahead([tensor])
    assert uploads.take(tensor) is tensor and uploads._stream is None


@pytest.mark.gpu
def test_on_a_gpu():
    uploads, tensor = Uploads(torch.device("cuda", 0)), torch.randn(1 << 20)
    uploads.ahead([tensor])
    found = uploads.take(tensor)
    assert found.is_cuda and torch.equal(found.cpu(), tensor)


def test_the_engine_announces_videos_before_it_needs_them(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from vstar_fast.engine import Request, Scheduler, Settings

    lm = models.load(str(families.write("video_llava", tmp_path / "model")))
    data = [torch.randint(0, 255, (4, 28, 28, 3), dtype=torch.uint8) for _ in range(3)]
    videos = lm.encode(SimpleNamespace(data=data, times_s=[(0.0, 1.0, 2.0, 3.0)] * 3))
    announced = []
    monkeypatch.setattr(lm, "expect", announced.append)
    head, tail = lm.split("which colour")
    asked = [Request(head, tail, video, (1, 2), Settings(max_new_tokens=3)) for video in videos]
    assert len(list(Scheduler(lm, max_rows=2).run(asked))) == 3
    assert any(found is videos[1] for found in announced) and any(found is videos[2] for found in announced)
    assert not any(found is videos[0] for found in announced)
