"""Stage clocks and progress: what is booked where, and what is printed when."""

import gzip
import io
import json
import resource
import time

import numpy as np
import pytest

from vstar_fast import profiling, progress
from vstar_fast.errors import BackendError, ConfigError
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress, clock


class Time:
    """A clock that tests move by hand."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        for module in (profiling.time, progress.time):
            for name in ("perf_counter", "monotonic", "process_time"):
                monkeypatch.setattr(module, name, lambda: self.now)

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def hand(monkeypatch):
    return Time(monkeypatch)


def test_inner_stages_are_booked_on_their_own(hand):
    p = Profiler()
    hand.pass_(5)
    with p.stage("generate", cycle=0):
        hand.pass_(1)
        p.count("tokens", 30)
        with p.stage("encode"):
            hand.pass_(2)
            p.count("videos")
        hand.pass_(4)
        p.count("tokens", 20)
    hand.pass_(7)
    with p.stage("encode"):
        hand.pass_(0.5)
    p.count("tokens", 1000)  # outside any stage: nobody's
    found = p.stages()
    assert {k: (v["seconds"], v["calls"], v["items"]) for k, v in found.items()} == {
        "generate": (5.0, 1, {"tokens": 50}),
        "encode": (2.5, 2, {"videos": 1}),
    }
    assert found["generate"]["per_second"] == {"tokens": 10.0} and found["encode"]["per_second"] == {"videos": 0.4}
    assert found["generate"]["cpu_seconds"] == 5.0


def test_a_stage_that_raises_is_booked_and_closed(hand):
    p = Profiler()
    with pytest.raises(ValueError), p.stage("a"), p.stage("b"):
        hand.pass_(3)
        raise ValueError
    with p.stage("c"):
        hand.pass_(1)
    assert {k: v["seconds"] for k, v in p.stages().items()} == {"a": 0.0, "b": 3.0, "c": 1.0}


def test_a_running_stage_counts_up_to_now(hand):
    p = Profiler()
    with p.stage("a"):
        hand.pass_(2)
        assert p.stages()["a"]["seconds"] == 2.0
        hand.pass_(1)
    assert p.stages()["a"]["seconds"] == 3.0


def test_merge_goes_on_from_an_interrupted_run(hand):
    first = Profiler()
    with first.stage("generate"):
        hand.pass_(3)
        first.count("tokens", 10)
    stored = json.loads(json.dumps(first.stages()))
    stored["generate"]["peak_mib"] = 1e6
    second = Profiler()
    second.merge(stored)
    with second.stage("generate"):
        hand.pass_(1)
        second.count("tokens", 30)
    with second.stage("evaluate"):
        hand.pass_(4)
    stages = second.stages()
    assert {name: stage["seconds"] for name, stage in stages.items()} == {"generate": 4.0, "evaluate": 4.0}
    made = stages["generate"]
    assert made["items"] == {"tokens": 40} and made["calls"] == 2 and made["peak_mib"] == 1e6
    assert second.fresh().stages() == {}


def test_cpu_time_is_the_process_s():
    p = Profiler()
    with p.stage("work"):
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    with p.stage("sleep"):
        time.sleep(0.05)
    found = p.stages()
    assert found["work"]["cpu_seconds"] >= 0.049
    assert found["sleep"]["cpu_seconds"] < 0.03 and found["sleep"]["seconds"] >= 0.049


def test_peak_memory_belongs_to_its_stage():
    p = Profiler()
    with p.stage("outer"):
        with p.stage("large"):
            block = np.ones(64 << 17)  # 64 MiB
            del block
        with p.stage("small"):
            pass
    found = p.stages()
    resettable = found["small"]["peak_mib"] < found["large"]["peak_mib"]
    if resettable:
        assert found["large"]["peak_mib"] - found["small"]["peak_mib"] > 55
    assert found["outer"]["peak_mib"] >= found["large"]["peak_mib"]


def test_peak_memory_without_proc(monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr("builtins.open", fail)
    used = profiling.peak_mib()
    profiling.reset_peaks()
    monkeypatch.undo()
    assert used == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, rel=0.05)


def test_torch_traces_hold_the_stages(tmp_path):
    import torch

    p = Profiler("torch", tmp_path / "traces")
    for _ in range(2):
        with p.stage("fine tune", cycle=1), p.stage("encode"):
            torch.ones(8, 8) @ torch.ones(8, 8)
    files = sorted((tmp_path / "traces").iterdir())
    assert [f.name for f in files] == ["fine_tune-cycle1.000.json.gz", "fine_tune-cycle1.001.json.gz"]
    events = json.loads(gzip.decompress(files[0].read_bytes()))["traceEvents"]
    times = {e["name"]: (e["ts"], e["ts"] + e["dur"]) for e in events if "dur" in e}
    outer, inner, product = times["fine tune-cycle1"], times["encode"], times["aten::mm"]
    assert outer[0] <= inner[0] <= product[0] and product[1] <= inner[1] <= outer[1]


def test_kinds_that_cannot_be_had(monkeypatch):
    import torch

    with pytest.raises(ConfigError, match="'perf' is not one of off, nvtx, torch"):
        Profiler("perf")
    with pytest.raises(ConfigError, match="needs a folder"):
        Profiler("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="--profile torch"):
        Profiler("nvtx")


@pytest.mark.gpu
def test_nvtx_and_gpu_memory():
    import torch

    p = Profiler("nvtx")
    with p.stage("large"):
        torch.ones(64 << 20, dtype=torch.uint8, device="cuda")
    with p.stage("small"):
        torch.ones(1, device="cuda")
    found = p.stages()
    assert found["large"]["gpu_peak_mib"] - found["small"]["gpu_peak_mib"] > 60


# -- progress ------------------------------------------------------------------------------------------


def test_plain_lines_come_seldom(hand):
    err = io.StringIO()
    with Progress(err=err) as p, p.task("generate", 100) as bar:
        for _ in range(100):
            hand.pass_(0.25)
            bar.advance()
    assert err.getvalue().splitlines() == [
        "generate: 40/100, 4.0/s, 15.0 s left",
        "generate: 80/100, 4.0/s, 5.0 s left",
        "generate: 100/100, 4.0/s, done in 25.0 s",
    ]


def test_steps_show_the_loss(hand):
    err = io.StringIO()
    bar = Progress(err=err).task("finetune")
    hand.pass_(12)
    bar.step(6, 10, 1.23456)
    hand.pass_(1)
    bar.close()
    bar.close()
    assert err.getvalue().splitlines() == [
        "finetune: 6/10, 0.5/s, loss 1.235, 8.0 s left",
        "finetune: 6/10, 0.5/s, loss 1.235, done in 13.0 s",
    ]


def test_json_lines(hand):
    out, err = io.StringIO(), io.StringIO()
    p = Progress(json=True, out=out, err=err)
    bar = p.task("clips", 4)
    hand.pass_(2)
    bar.update(1, 4)
    hand.pass_(0.5)
    bar.advance()
    hand.pass_(0.5)
    bar.close()
    p.note("ready")
    assert [json.loads(x) for x in out.getvalue().splitlines()] == [
        {"event": "progress", "task": "clips", "done": 1, "total": 4, "seconds": 2.0, "rate": 0.5},
        {"event": "done", "task": "clips", "done": 2, "total": 4, "seconds": 3.0, "rate": 0.67},
        {"event": "note", "text": "ready"},
    ]
    assert err.getvalue() == ""


def test_quiet_says_nothing(hand):
    out, err = io.StringIO(), io.StringIO()
    p = Progress(quiet=True, out=out, err=err)
    with p.task("a", 1) as bar:
        hand.pass_(60)
        bar.advance()
    p.note("x")
    p.event("y")
    assert out.getvalue() == err.getvalue() == ""


def test_a_task_with_nothing_to_do_is_not_worth_a_line(hand):
    err = io.StringIO()
    Progress(err=err).task("rationalize", 0).close()
    assert err.getvalue() == ""


def test_bars_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    err = Terminal()
    with Progress(err=err) as p:
        with p.task("generate", 3) as bar:
            bar.advance(2)
            assert p._rich is not None
            (task,) = p._rich.tasks
            assert (task.completed, task.total) == (2, 3)
            assert p._rich.get_time is not None
        p.note("a [bracket] stays")
        assert task.completed == task.total == 2
    text = err.getvalue()
    assert "generate" in text and "2/2" in text and "a [bracket] stays" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3600, "1 h 00 min"),
        (7860, "2 h 11 min"),
    ],
)
def test_clock(seconds, words):
    assert clock(seconds) == words
