"""Readers of one clip timed in turns: wall, CPU seconds of this process and its children, and memory of a fresh one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import vstar_fast.bench.decode_rivals as rivals
from vstar_fast.bench.runner import Bench

MIB = float(1 << 20)


class Turn(NamedTuple):
    """Seconds of one call."""

    wall: float
    cpu: float


class Reader(NamedTuple):
    """A way to take a clip's pictures; `exact`: the share it gets right; `name` as `peak_mib` knows it."""

    name: str
    take: Callable[[], Any]
    exact: float


def cpu_s() -> float:
    """CPU seconds so far, of this process and of children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


SLOW_S = 12.0
"""A reader whose call takes longer has one turn."""


def race(readers: Mapping[str, Callable[[], Any]], quick: bool, budget_s: float = 20.0) -> dict[str, list[Turn]]:
    """Each reader's turns; who begins changes, so that what else the machine does falls on all alike."""
    floor, budget, least = (0.0, 0.2, 2) if quick else (0.1, budget_s, 3)
    first = {name: _turn(take, 1) for name, take in readers.items()}  # warms up as well
    calls = {name: max(1, round(floor / max(turn.wall, 1e-4))) for name, turn in first.items()}
    names = [name for name, turn in first.items() if turn.wall <= SLOW_S]
    turns: dict[str, list[Turn]] = {name: [] if name in names else [turn] for name, turn in first.items()}
    began, done = time.perf_counter(), 0
    while names and (done < least or (done < 15 and time.perf_counter() - began < budget)):
        at = done % len(names)
        for name in names[at:] + names[:at]:
            turns[name].append(_turn(readers[name], calls[name]))
        done += 1
    return turns


def _turn(take: Callable[[], Any], calls: int) -> Turn:
    wall, cpu = time.perf_counter(), cpu_s()
    for _ in range(calls):
        take()
    return Turn((time.perf_counter() - wall) / calls, (cpu_s() - cpu) / calls)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch with one thread, so that a reader that uses it is not given more than the others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ratio(turns: dict[str, list[Turn]], subject: str, baseline: str, metric: str) -> float:
    """How many times less the subject takes, as the median over turns that lie side by side."""
    mine, theirs = ([getattr(t, metric) for t in turns[name]] for name in (subject, baseline))
    if len(mine) != len(theirs):
        return median(theirs) / max(median(mine), 1e-9)
    return median(b / max(s, 1e-9) for s, b in zip(mine, theirs, strict=True))


def rows(
    bench: Bench,
    case: str,
    turns: dict[str, list[Turn]],
    names: tuple[str, str],
    *,
    work: int = 1,
    shown: str = "",
    targets: Mapping[str, float] = {},
    backend: str = "pyav",
    threads: int = 1,
    metrics: tuple[str, ...] = ("wall", "cpu"),
) -> None:
    """Rows videos a second and CPU seconds a video of names[0] against names[1] (`shown` in their place)."""
    for metric in metrics:
        taken = median(getattr(t, metric) for t in turns[names[0]]) / work
        value, unit = (1 / taken, "videos/s") if metric == "wall" else (taken, "cpu-s/video")
        bench.add(
            case=case,
            subject=names[0],
            baseline=shown or names[1],
            metric=metric,
            value=value,
            unit=unit,
            ratio=ratio(turns, *names, metric),
            equal=True,
            target=targets.get(metric),
            backend=backend,
            threads=threads,
        )


def table(readers: list[Reader], turns: dict[str, list[Turn]], peaks: Mapping[str, float], frames: int) -> None:
    """Print what each reader does, side by side."""
    print(f"  {'':24}{'videos/s':>10}{'frames/s':>10}{'cpu-s/video':>13}{'peak MiB':>10}{'exact':>7}")
    for reader in readers:
        wall, cpu = (median(getattr(t, metric) for t in turns[reader.name]) for metric in ("wall", "cpu"))
        peak = f"{peaks[reader.name]:.0f}" if reader.name in peaks else "-"
        figures = f"{1 / wall:>10.2f}{frames / wall:>10.1f}{cpu:>13.4f}{peak:>10}"
        print(f"  {reader.name:24}{figures}{reader.exact:>7.0%}", flush=True)


def peak_mib(name: str, path: str, numbers: list[int], size: tuple[int, int]) -> float:
    """Memory in MiB that one read adds at its peak to a fresh process that has its libraries loaded.

    Of the ffmpeg program it is the program's.
    """
    asked = json.dumps([name, path, numbers, list(size)])
    code = "import sys; from vstar_fast.bench.decode_race import print_peak; print_peak(sys.argv[1])"
    paths = os.pathsep.join(p for p in sys.path if p)
    out = subprocess.run(
        [sys.executable, "-c", code, asked],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return float(out.stdout.split()[-1])


def print_peak(asked: str) -> None:
    """What `peak_mib` starts."""
    name, path, numbers, size = json.loads(asked)
    rivals.load(name)
    take = ours if name == "vstar-fast" else rivals.RIVALS[name][0]
    before, programs = _status("VmRSS"), [0]
    over = threading.Event()
    watch = threading.Thread(target=_watch_programs, args=(programs, over))
    watch.start()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    take(path, numbers, tuple(size))
    over.set()
    watch.join()
    print((max(programs) or _status("VmHWM") - before) / MIB)


def _watch_programs(found: list[int], over: threading.Event) -> None:
    """Peaks of the programs this process starts: their `ru_maxrss` would begin with that of this process."""
    me = Path("/proc/self/exe").resolve()
    while not over.wait(0.002):
        for listed in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError, StopIteration):  # it has just ended
                for pid in listed.read_text().split():
                    if Path(f"/proc/{pid}/exe").resolve() != me:
                        found.append(_status("VmHWM", pid))


def _status(field: str, pid: str = "self") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def ours(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """Our reader as a rival is called, in one process and without any cache."""
    from vstar_fast.config import FramesConfig
    from vstar_fast.frames import FrameRequest, FrameSource, Geometry, Sampling

    source = FrameSource(FramesConfig(len(numbers), "pyav", workers=1, isolate=False))
    request = FrameRequest(path, Sampling("indices", at=tuple(numbers)), Geometry("exact", *size, filter="area"))
    (found,) = source.read([request])
    source.close()
    return found
