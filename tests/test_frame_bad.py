"""Files that are damaged in any way: frames or one record, never a crash, a hang or memory that grows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from test_frames import NAMES, clips, here, write
from vstar_fast.clip_errors import REASONS, REMEDIES
from vstar_fast.config import FramesConfig
from vstar_fast.frames import FrameRequest, Frames, FrameSource
from vstar_fast.frames import worker_pool as processes
from vstar_fast.records import Rejected

__all__ = ["clips"]

HANG_S = 10.0
ENDLESS = ("h264.ts", "bare.h264")
"""Formats that promise no length: nobody can tell what is missing at their end."""


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed."""
    bad = bytearray(data)
    for _ in range(int(rng.integers(1, 20))):
        bad[int(rng.integers(len(bad)))] = int(rng.integers(256))
    return bytes(bad)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, len(data)))]


def lose(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece from the middle gone."""
    a, b = sorted(int(x) for x in rng.integers(0, len(data), 2))
    return data[:a] + data[b:]


def double(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece there twice."""
    a, b = sorted(int(x) for x in rng.integers(0, len(data), 2))
    return data[:b] + data[a:]


def blank(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece of zeros, as a disk leaves it after a crash."""
    a, b = sorted(int(x) for x in rng.integers(0, len(data), 2))
    return data[:a] + bytes(b - a) + data[b:]


def resize(data: bytes, rng: np.random.Generator) -> bytes:
    """A length or count in a header set to an extreme."""
    bad, where = bytearray(data), int(rng.integers(0, max(1, min(2000, len(data) - 4))))
    bad[where : where + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"][int(rng.integers(3))]
    return bytes(bad)


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (flip, cut, lose, double, blank, resize)


def check(found: Frames | Rejected, path: Path) -> None:
    """Frames, or a record that names file, reason and remedy."""
    if isinstance(found, Rejected):
        assert found.reason in REASONS and found.reason not in ("too_slow", "decoder_crashed"), found
        assert str(path) in found.detail and REMEDIES[found.reason] in found.detail
    else:
        assert len(found.data) == len(found.times_s) == 8


@pytest.mark.parametrize("rounds", [12, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_give_frames_or_a_record(clips: dict[str, Path], tmp_path: Path, name: str, rounds: int) -> None:
    """In a process of its own, so that a crash would be one more record, and is a failure here."""
    data, rng = clips[name].read_bytes(), np.random.default_rng([rounds, *name.encode()])
    source = FrameSource(FramesConfig(4, "pyav", workers=1, limit_s=HANG_S))
    for i in range(rounds):
        path = tmp_path / f"{i}-{name}"
        path.write_bytes(MUTATIONS[i % len(MUTATIONS)](data, rng) or b"\0")
        (found,) = source.read([FrameRequest(str(path))])
        check(found, path)
        path.unlink()
    source.close()


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_twenty_random_bytes(clips: dict[str, Path], tmp_path: Path, name: str) -> None:
    data, rng = clips[name].read_bytes(), np.random.default_rng(len(name))
    source = FrameSource(here(4, "pyav"))
    (whole,) = source.read([FrameRequest(str(clips[name]))])
    assert isinstance(whole, Frames)
    for where in rng.integers(1, len(data), 20):
        path = tmp_path / name
        path.write_bytes(data[:where])
        (found,) = source.read([FrameRequest(str(path))])
        check(found, path)
        if isinstance(found, Frames) and name not in ENDLESS:
            # What follows the pictures was cut off, or so little that a header may be wrong by as much.
            assert found.duration_s >= 0.95 * whole.duration_s - 2 / 24, where
            assert found.duration_s < whole.duration_s or torch.equal(found.data, whole.data)
    source.close()


def worker_kib() -> int:
    """Memory of the idle workers of this process."""
    pids = [w._process.pid for w in processes.workers()._idle.queue]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 for pid in pids)


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.parametrize("rounds", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("isolate", [True, False])
def test_memory_and_open_files_stay_flat(tmp_path: Path, rounds: int, isolate: bool) -> None:
    """Good, damaged and missing files in turn; what is read is dropped."""
    rng = np.random.default_rng(0)
    good = write(tmp_path / "a.mp4", [rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(8)])
    (tmp_path / "b.mp4").write_bytes(good.read_bytes()[:-500])
    requests = [FrameRequest(str(p)) for p in (good, tmp_path / "b.mp4", tmp_path / "none.mp4")]
    source = FrameSource(FramesConfig(8, "pyav", workers=1, isolate=isolate))
    for _ in range(max(50, rounds // 10)):
        source.read(requests)
    files, memory = len(os.listdir("/proc/self/fd")), resident_kib() + worker_kib()
    for _ in range(rounds):
        assert [isinstance(f, Frames) for f in source.read(requests)] == [True, False, False]
    assert len(os.listdir("/proc/self/fd")) <= files
    assert resident_kib() + worker_kib() - memory < 20_000
    source.close()
