"""Frames of clips: ours against others' readers, all exact or named with the share they get right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import vstar_fast.bench.decode_rivals as rivals
from vstar_fast.bench.decode_clips import Clip, long_real, number, real, synthetic
from vstar_fast.bench.decode_race import Reader, cpu_s, one_thread, peak_mib, race, rows, table
from vstar_fast.bench.runner import Bench

from vstar_fast.cache import Cache
from vstar_fast.config import FramesConfig
from vstar_fast.frames import FrameRequest, Frames, FrameSource, Geometry, Sampling
from vstar_fast.frames.geometry import plan
from vstar_fast.paths import cache_dir

SMALL = Geometry("shortest", rivals.SIDE, filter="area")
OURS, COLD = "vstar-fast", "vstar-fast, first read"
# Ratios wanted, by rival and metric: of short clips at 32 frames, of long ones at 8, and of all.
SHORT = {"torchcodec": {"wall": 1.2}}
LONG = {"torchcodec": {"wall": 1.15, "cpu": 1 / 0.75}, "PyAV, whole": {"wall": 6.0}}
ALL = {"decord2": {"wall": 0.97}}
WARM = 15.0
WORKERS = 1.8


def run(bench: Bench, quick: bool) -> None:
    """Every clip and count against every reader that is installed; workers; the cache; DALI on a GPU."""
    folder = cache_dir() / "bench-clips"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as kept:
        indices = Cache(Path(kept) / "index", 1e9)
        if bench.device == "cuda":
            from vstar_fast.bench.decode_gpu import on_gpu

            on_gpu(bench, folder, indices, quick)
        clips = _clips(folder, quick, short=bench.device == "cuda")
        for clip in clips:
            for count in (8,) if quick else (8, 32):
                _against_rivals(bench, clip, count, indices, quick, memory=clip is clips[0] if quick else count == 32)
        _workers(bench, clips[0], quick)
        for clip in clips[:1] if quick else clips[:2]:
            _cache(bench, clip, Path(kept), quick)


def _clips(folder: Path, quick: bool, short: bool) -> list[Clip]:
    """Those to read on the CPU; only `short` ones where a GPU is what counts."""
    if quick:
        return [
            synthetic(folder, "quick-h264.mp4", "libx264", 4, 240, 320, 50),
            synthetic(folder, "quick-vp9.webm", "libvpx-vp9", 2, 240, 320, 50),
        ]
    made = [
        synthetic(folder, "short-576p.mp4", "libx264", 10, 576, 720, 250),
        synthetic(folder, "short-1080p.mp4", "libx264", 2, 1080, 1920, 250),
    ]
    if short:
        return made
    found = real(folder)
    long = [synthetic(folder, "long-720p.mp4", "libx264", 300, 720, 1280, 250)]
    return made + found + long + long_real(folder, found, 300, 720, 1280, 250)


def source_of(indices: Cache | None, workers: int = 1, backend: str = "pyav", **values: Any) -> FrameSource:
    """A reader of ours, in this process where nothing else is said, so that all its CPU time is counted."""
    kept = {name: values.pop(name) for name in ("frame_cache",) if name in values}
    config = FramesConfig(8, backend, workers=workers, **({"isolate": False} | values))
    return FrameSource(config, index_cache=indices, **kept)


def _against_rivals(bench: Bench, clip: Clip, count: int, indices: Cache, quick: bool, *, memory: bool) -> None:
    source, cold = source_of(indices), source_of(None)
    request = FrameRequest(clip.path, Sampling(count=count), SMALL)
    first = one(source, request)
    wanted = numbers_of(clip, len(source.probe(clip.path).ticks), count)
    size = plan(SMALL, first.height_px, first.width_px).size
    truth = None if clip.numbered else _around(clip, wanted, size)
    readers = [
        Reader(OURS, lambda: one(source, request), _right(first.data.numpy(), wanted, truth)),
        Reader(COLD, lambda: one(cold, request), _right(one(cold, request).data.numpy(), wanted, truth)),
        *_rivals(clip, wanted, size, truth),
    ]
    case = f"{clip.name}, {count} frames"
    if readers[0].exact < 1 or readers[1].exact < 1:
        bench.add(case=case, subject=OURS, baseline="the right pictures", metric="exact", value=readers[0].exact,
                  unit="share", ratio=None, equal=False)  # fmt: skip
        return
    with one_thread():
        turns = race({r.name: r.take for r in readers}, quick)
    measured = [r.name for r in readers if r.name != COLD and memory]
    peaks = {name: peak_mib(name, clip.path, wanted, size) for name in measured}
    long = "long" in clip.name
    for r in readers[1:]:
        targets = (LONG if long and count == 8 else {} if long or count == 8 else SHORT).get(r.name, {})
        shown = f"{r.name} (exact {r.exact:.0%})"
        rows(bench, case, turns, (OURS, r.name), shown=shown, targets=targets | ALL.get(r.name, {}))
        if r.name in peaks:
            bench.add(case=case, subject=OURS, baseline=shown, metric="peak", value=peaks[OURS], unit="MiB",
                      ratio=peaks[r.name] / peaks[OURS], equal=True, backend="pyav", threads=1)  # fmt: skip
    table(readers, turns, peaks, count)
    source.close()
    cold.close()


def _rivals(clip: Clip, wanted: list[int], size: tuple[int, int], truth: dict[int, Any] | None) -> Iterator[Reader]:
    for name, take in rivals.installed().items():
        try:
            share = _right(take(clip.path, wanted, size), wanted, truth)
        except Exception as error:  # a rival that cannot read a clip is a line, not the end of the bench
            print(f"{clip.name}: {name} fails: {type(error).__name__}: {str(error)[:100]}")
            continue
        yield Reader(name, lambda take=take: take(clip.path, wanted, size), share)  # type: ignore[misc]


def numbers_of(clip: Clip, held: int, count: int) -> list[int]:
    """Segment centres of a clip of constant rate, from their definition."""
    total = clip.pictures or held
    return [int((2 * k + 1) * total / (2 * count)) for k in range(count)]


NEAR = 4


def _around(clip: Clip, wanted: list[int], size: tuple[int, int]) -> dict[int, Any]:
    """Real footage, played from its start by PyAV: the pictures wanted and those beside them, by number."""
    total = rivals.held(clip.path)
    near = sorted({m for n in wanted for m in range(max(0, n - NEAR), min(total, n + NEAR + 1))})
    return dict(zip(near, rivals.pyav_all(clip.path, near, size).astype(np.float32), strict=True))


def _right(pictures: Any, wanted: list[int], truth: dict[int, Any] | None) -> float:
    """Share of pictures that are those wanted: that say so, or that none beside the right one looks more like."""
    if len(pictures) != len(wanted):
        return 0.0
    if truth is None:
        return sum(number(p) == n for p, n in zip(pictures, wanted, strict=True)) / len(wanted)
    right = 0
    for picture, n in zip(pictures, wanted, strict=True):
        off = {m: float(np.abs(picture - truth[m]).mean()) for m in range(n - NEAR, n + NEAR + 1) if m in truth}
        right += off[n] <= min(off.values())
    return right / len(wanted)


def one(source: FrameSource, request: FrameRequest) -> Frames:
    """A clip's frames. Raises RuntimeError with the reason where there are none."""
    (found,) = source.read([request])
    if not isinstance(found, Frames):
        raise RuntimeError(found.detail)
    return found


def many(source: FrameSource, request: FrameRequest, times: int) -> list[Frames]:
    """The same clip so many times over."""
    return [f for f in source.read([request] * times) if isinstance(f, Frames)]


def _same(found: list[Frames], others: list[Frames]) -> bool:
    return len(found) == len(others) and all((a.data == b.data).all() for a, b in zip(found, others, strict=True))


def _workers(bench: Bench, clip: Clip, quick: bool) -> None:
    """One and two files at a time: in processes of their own, as a run does it, and in threads of this one."""
    videos = 4 if quick else 16
    request = FrameRequest(clip.path, Sampling(count=8), SMALL)
    for isolate, kind in ((True, "processes"), (False, "threads")):
        sources = [FrameSource(FramesConfig(8, "pyav", workers=n, isolate=isolate)) for n in (1, 2)]
        takes: dict[str, Callable[[], list[Frames]]] = {
            f"{n} worker{'s' * (n > 1)}": lambda s=s: many(s, request, videos)  # type: ignore[misc]
            for n, s in zip((1, 2), sources, strict=True)
        }
        case = f"{videos} x {clip.name}, 8 frames, {kind}"
        if not _same(*(take() for take in takes.values())):
            raise RuntimeError(f"{case}: one worker and two give different pictures")
        turns = race(takes, quick)
        names, metrics = ("2 workers", "1 worker"), ("wall",) if isolate else ("wall", "cpu")
        rows(bench, case, turns, names, work=videos, targets={"wall": WORKERS}, threads=2, metrics=metrics)
        if isolate:
            _shares(case, sources[1], takes["2 workers"], videos)
        for source in sources:
            source.close()


def _shares(case: str, source: FrameSource, take: Callable[[], Any], videos: int) -> None:
    """Print the CPU time of the workers and that of this process, which is what they share and wait for."""
    before, began = source.counts()["decode_cpu_s"], cpu_s()
    take()
    ours, theirs = cpu_s() - began, source.counts()["decode_cpu_s"] - before
    print(f"{case}: {1e3 * theirs / videos:.2f} ms CPU a video in the workers, {1e3 * ours / videos:.2f} ms here")


def _cache(bench: Bench, clip: Clip, kept: Path, quick: bool) -> None:
    """Frames that are kept against decoding them, and what the first read of a file costs beside that."""
    folder = kept / clip.name
    indices, request = Cache(folder / "index", 1e9), FrameRequest(clip.path, Sampling(count=8), SMALL)
    warm = source_of(indices, frame_cache=Cache(folder / "frames", 1e9))
    decode, plain = source_of(indices), source_of(None)

    def first() -> list[Frames]:
        with tempfile.TemporaryDirectory() as empty:
            fresh = Cache(Path(empty) / "index", 1e9)
            return many(source_of(fresh, frame_cache=Cache(Path(empty) / "frames", 1e9)), request, 1)

    takes: dict[str, Callable[[], list[Frames]]] = {
        "frames kept": lambda: many(warm, request, 1),
        "index kept, decoded": lambda: many(decode, request, 1),
        "nothing kept, decoded": lambda: many(plain, request, 1),
        "cold: decoded and written": first,
    }
    results = [take() for take in takes.values()]
    if not all(_same(results[0], found) for found in results[1:]):
        raise RuntimeError(f"{clip.name}: the cache gives other pictures than the file")
    turns = race(takes, quick)
    case = f"{clip.name}, 8 frames, cache"
    for name in list(takes)[1:]:
        targets = {"cpu": WARM} if name == "index kept, decoded" else {}
        rows(bench, case, turns, ("frames kept", name), targets=targets, backend="cache")
    rows(bench, case, turns, ("cold: decoded and written", "nothing kept, decoded"))
