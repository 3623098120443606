"""On a GPU: DALI against PyAV and others on NVDEC, from which picture size it pays, and what `auto` makes of it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import vstar_fast.bench.decode_rivals as rivals
from vstar_fast.bench.decode import many, numbers_of, source_of
from vstar_fast.bench.decode_clips import Clip, number, synthetic
from vstar_fast.bench.decode_race import race, ratio, rows
from vstar_fast.bench.runner import Bench

from vstar_fast.cache import Cache
from vstar_fast.frames import FrameRequest, Frames, Geometry, Sampling
from vstar_fast.frames.geometry import plan

SIZES = ((360, 640), (540, 960), (720, 1280), (1080, 1920))
BATCHES = (1, 16, 64)
BUDGET_S = 4.0
THREADS = 8
"""In which others on NVDEC, who take one clip a call, are asked for a batch."""
AUTO = 0.95
"""Of the better path, what `auto` must reach."""


class Measured(NamedTuple):
    """How many times faster DALI was than PyAV on clips of so many pixels a picture, at a batch."""

    pixels: int
    batch: int
    ratio: float


def on_gpu(bench: Bench, folder: Path, indices: Cache, quick: bool) -> None:
    """Exactness first; then each size and batch; then the threshold; then `auto` with that threshold."""
    seconds, batches = (2, BATCHES[:2]) if quick else (10, BATCHES)
    clips = [synthetic(folder, f"gpu-{h}p-{seconds}s.mp4", "libx264", seconds, h, w, 250) for h, w in SIZES]
    measured: list[Measured] = []
    for clip, size in zip(clips, SIZES, strict=True):
        measured += _paths(bench, clip, size, batches, indices)
    if not measured:
        return
    least = threshold(measured)
    print(f"set frames.gpu_pixels = {least} ({why(measured, least)})")
    for clip in clips:
        for batch in batches:
            _auto(bench, clip, batch, least, indices)


def threshold(measured: list[Measured]) -> int:
    """Pixels a picture from which DALI was not slower, averaged over batches; more than any seen where it never was."""
    sizes = sorted({m.pixels for m in measured})
    for at, pixels in enumerate(sizes):
        if all(mean(m.ratio for m in measured if m.pixels == p) >= 1 for p in sizes[at:]):
            return pixels
    return sizes[-1] + 1


def why(measured: list[Measured], least: int) -> str:
    """The ratios behind a threshold."""
    known = ", ".join(f"{m.pixels} x {m.batch}: {m.ratio:.2f}" for m in measured)
    return f"DALI's videos/s over PyAV's, by pixels a picture and clips a batch: {known}; from {least} on it pays"


def _request(clip: Clip) -> FrameRequest:
    return FrameRequest(clip.path, Sampling(count=8), Geometry("shortest", rivals.SIDE))


def _exact(found: list[Frames], clip: Clip, batch: int) -> bool:
    wanted = numbers_of(clip, 0, 8)
    return len(found) == batch and all([number(p) for p in f.data.cpu().numpy()] == wanted for f in found)


def _paths(
    bench: Bench, clip: Clip, size: tuple[int, int], batches: tuple[int, ...], indices: Cache
) -> Iterator[Measured]:
    cores = os.cpu_count() or 1
    dali, pyav = (source_of(indices, cores, backend, isolate=True) for backend in ("dali", "pyav"))
    for batch in batches:
        takes: dict[str, Callable[[], Any]] = {
            "DALI": functools.partial(many, dali, _request(clip), batch),
            "PyAV": functools.partial(many, pyav, _request(clip), batch),
            **_nvdec_rivals(clip, size, batch),
        }
        case = f"{batch} x {clip.name}, 8 frames"
        if not (_exact(takes["DALI"](), clip, batch) and _exact(takes["PyAV"](), clip, batch)):
            bench.add(case=case, subject="DALI", baseline="the right pictures", metric="exact", value=None,
                      unit="share", ratio=None, equal=False)  # fmt: skip
            continue
        turns = race(_synchronised(takes), bench.quick, BUDGET_S)
        for name in list(takes)[1:]:
            rows(bench, case, turns, ("DALI", name), work=batch, backend="dali", threads=cores)
        _engines(case, takes["DALI"])
        yield Measured(size[0] * size[1], batch, ratio(turns, "DALI", "PyAV", "wall"))
    dali.close()
    pyav.close()


def _auto(bench: Bench, clip: Clip, batch: int, least: int, indices: Cache) -> None:
    """`auto` against the better of both paths."""
    cores = os.cpu_count() or 1
    asked = ("auto", "dali", "pyav")
    sources = {b: source_of(indices, cores, b, isolate=True, gpu_pixels=least) for b in asked}
    takes: dict[str, Callable[[], Any]] = {}
    for name, source in sources.items():
        takes[name] = functools.partial(many, source, _request(clip), batch)
    if _exact(takes["auto"](), clip, batch):
        turns = race(_synchronised(takes), bench.quick, BUDGET_S)
        better = min(("dali", "pyav"), key=lambda name: ratio(turns, "auto", name, "wall"))
        print(f"{clip.name}: {sources['auto'].route(clip.path)}")
        case = f"{batch} x {clip.name}, 8 frames"
        rows(bench, case, turns, ("auto", better), work=batch, targets={"wall": AUTO}, backend="auto", threads=cores)
    for source in sources.values():
        source.close()


def _synchronised(takes: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """What is queued on the device is part of the time."""
    import torch

    def wait(take: Callable[[], Any]) -> None:
        take()
        torch.cuda.synchronize()

    return {name: functools.partial(wait, take) for name, take in takes.items()}


def _nvdec_rivals(clip: Clip, stored: tuple[int, int], batch: int) -> dict[str, Callable[[], Any]]:
    size, wanted = plan(Geometry("shortest", rivals.SIDE), *stored).size, numbers_of(clip, 0, 8)
    found: dict[str, Callable[[], Any]] = {}
    for name, take in rivals.installed(cuda=True).items():
        try:
            right = [number(p) for p in take(clip.path, wanted, size).cpu().numpy()] == wanted
        except Exception as error:  # one that does not run is a line, not the end of the bench
            print(f"{clip.name}: {name} fails: {type(error).__name__}: {str(error)[:100]}")
            continue
        shown = name if right else f"{name} (not exact)"
        found[shown] = lambda t=take: _batch(lambda: t(clip.path, wanted, size), batch)  # type: ignore[misc]
    return found


def _batch(take: Callable[[], Any], batch: int) -> list[Any]:
    with ThreadPoolExecutor(min(batch, THREADS)) as pool:
        return [done.result() for done in [pool.submit(take) for _ in range(batch)]]


def _engines(case: str, take: Callable[[], Any]) -> None:
    """Print how busy NVDEC is while DALI decodes, as nvidia-smi sees it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        print(f"{case}: no nvidia-smi here, NVDEC's use is not known")
        return
    with _sampled([program, "--query-gpu=utilization.decoder", "--format=csv,noheader,nounits"]) as seen:
        for _ in range(3):
            take()
    print(f"{case}: NVDEC busy {max(seen, default=0):.0f} % at most, {mean(seen or [0]):.0f} % on average")


@contextlib.contextmanager
def _sampled(command: list[str]) -> Iterator[list[float]]:
    """What a command prints, again and again until the block ends."""
    seen: list[float] = []
    over = threading.Event()

    def sample() -> None:
        while not over.is_set():
            out = subprocess.run(command, capture_output=True, text=True).stdout.split()
            seen.extend(float(word) for word in out if word.replace(".", "").isdigit())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
