"""Frames of clips: ours against others' readers, all exact or named with the share they get right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vstar_fast.bench.decode_rivals as rivals
from vstar_fast.bench.decode_clips import Clip, number, real, synthetic
from vstar_fast.bench.runner import Bench

from vstar_fast.cache import Cache
from vstar_fast.config import FramesConfig
from vstar_fast.frames import FrameRequest, Frames, FrameSource, Geometry, Sampling
from vstar_fast.frames.geometry import plan
from vstar_fast.paths import cache_dir

SMALL = Geometry("shortest", rivals.SIDE, filter="area")
# Ratios wanted of videos a second, by rival.
TARGETS = {"torchcodec": 1.2, "decord2": 0.97}
LONG_TARGETS = {"torchcodec": 1.15, "decord2": 0.97, "PyAV, whole": 6.0}


def run(bench: Bench, quick: bool) -> None:
    """Every clip and count against every reader that is installed; workers; the cache; DALI on a GPU."""
    folder = cache_dir() / "bench-clips"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as kept:
        indices = Cache(Path(kept) / "index", 1e9)
        clips = _clips(folder, quick)
        for clip in clips:
            for count in (8,) if quick else (8, 32):
                _against_rivals(bench, clip, count, indices)
        _workers(bench, clips[0], indices)
        _cache(bench, clips[0], indices, Path(kept))
        if bench.device == "cuda":
            _gpu(bench, folder, indices, quick)


def _clips(folder: Path, quick: bool) -> list[Clip]:
    if quick:
        return [
            synthetic(folder, "quick-h264.mp4", "libx264", 4, 240, 320, 50),
            synthetic(folder, "quick-vp9.webm", "libvpx-vp9", 2, 240, 320, 50),
        ]
    made = [
        synthetic(folder, "short-576p.mp4", "libx264", 10, 576, 720, 250),
        synthetic(folder, "short-1080p.mp4", "libx264", 2, 1080, 1920, 250),
        synthetic(folder, "long-720p.mp4", "libx264", 300, 720, 1280, 250),
    ]
    return made + real(folder)


def _source(indices: Cache, workers: int = 1, backend: str = "pyav", **kept: Any) -> FrameSource:
    return FrameSource(FramesConfig(8, backend, workers=workers, isolate=False), index_cache=indices, **kept)


def _against_rivals(bench: Bench, clip: Clip, count: int, indices: Cache) -> None:
    source = _source(indices)
    request = FrameRequest(clip.path, Sampling(count=count), SMALL)
    index = source.probe(clip.path)
    first = _frames(source, request)
    wanted = _numbers(clip, len(index.ticks), count)
    size = plan(SMALL, first.height_px, first.width_px).size
    for name, take in rivals.installed().items():
        try:
            share = _right(take(clip.path, wanted, size), wanted, clip, first)
        except Exception as error:  # a rival that cannot read a clip is a row, not the end of the bench
            print(f"{clip.name}: {name} fails: {type(error).__name__}: {str(error)[:100]}")
            continue
        targets = LONG_TARGETS if "long" in clip.name and count == 8 else TARGETS
        bench.compare(
            f"{clip.name}, {count} frames",
            lambda: _frames(source, request),
            lambda take=take: take(clip.path, wanted, size),  # type: ignore[misc]
            equal=lambda ours, _: _right(ours.data.numpy(), wanted, clip, first) == 1.0,
            names=("vstar-fast", f"{name} (exact {share:.0%})"),
            work=(1, "video"),
            target=targets.get(name),
            metric="wall",
            backend="pyav",
            threads=1,
        )
    source.close()


def _numbers(clip: Clip, held: int, count: int) -> list[int]:
    """Segment centres of a clip of constant rate, from their definition."""
    total = clip.pictures or held
    return [int((2 * k + 1) * total / (2 * count)) for k in range(count)]


def _right(pictures: Any, wanted: list[int], clip: Clip, first: Frames) -> float:
    """Share of pictures that are those wanted; of real footage, those that look like ours."""
    if len(pictures) != len(wanted):
        return 0.0
    if clip.numbered:
        return sum(number(p) == n for p, n in zip(pictures, wanted, strict=True)) / len(wanted)
    ours = first.data.numpy()
    near = [abs(a.astype(float) - b.astype(float)).mean() < 8 for a, b in zip(ours, pictures, strict=True)]
    return sum(near) / len(near)


def _frames(source: FrameSource, request: FrameRequest) -> Frames:
    (found,) = source.read([request])
    if not isinstance(found, Frames):
        raise RuntimeError(found.detail)
    return found


def _all(source: FrameSource, request: FrameRequest, times: int) -> list[Frames]:
    return [f for f in source.read([request] * times) if isinstance(f, Frames)]


def _same(many: list[Frames], others: list[Frames]) -> bool:
    return len(many) == len(others) and all((a.data == b.data).all() for a, b in zip(many, others, strict=True))


def _workers(bench: Bench, clip: Clip, indices: Cache) -> None:
    one, two = (_source(indices, workers) for workers in (1, 2))
    request = FrameRequest(clip.path, Sampling(count=8), SMALL)
    bench.compare(
        f"8 x {clip.name}, 8 frames",
        lambda: _all(two, request, 8),
        lambda: _all(one, request, 8),
        equal=_same,
        names=("2 workers", "1 worker"),
        work=(8, "video"),
        target=1.8,
        metric="wall",
        backend="pyav",
        threads=2,
    )


def _cache(bench: Bench, clip: Clip, indices: Cache, kept: Path) -> None:
    cold, warm = _source(indices), _source(indices, frame_cache=Cache(kept / "frames", 1e9))
    request = FrameRequest(clip.path, Sampling(count=8), SMALL)
    bench.compare(
        f"{clip.name}, 8 frames, warm cache",
        lambda: _all(warm, request, 1),
        lambda: _all(cold, request, 1),
        equal=_same,
        names=("cache on disk", "decode"),
        work=(1, "video"),
        target=15.0,
        metric="cpu",
        backend="cache",
        threads=1,
    )


# -- on a GPU ----------------------------------------------------------------------------------------


def _gpu(bench: Bench, folder: Path, indices: Cache, quick: bool) -> None:
    """DALI against PyAV on every core and torchcodec on NVDEC, by batch and picture size."""
    import os

    sizes = ((540, 960), (720, 1280), (1080, 1920))
    seconds = 2 if quick else 10
    cores = os.cpu_count() or 1
    for height, width in sizes:
        clip = synthetic(folder, f"gpu-{height}p-{seconds}s.mp4", "libx264", seconds, height, width, 250)
        request = FrameRequest(clip.path, Sampling(count=8), Geometry("shortest", rivals.SIDE))
        dali, pyav, auto = (_source(indices, cores, backend) for backend in ("dali", "pyav", "auto"))
        others: dict[str, Callable[[int], Any]] = {"PyAV": lambda n, s=pyav, r=request: _all(s, r, n)}  # type: ignore[misc]
        others |= _nvdec_rivals(clip, (height, width))
        for batch in (1, 16) if quick else (1, 16, 64):
            for name, other in others.items():
                for ours, source in (("DALI", dali), ("auto", auto)):
                    bench.compare(
                        f"{batch} x {height}p, 8 frames",
                        lambda s=source, r=request, n=batch: _all(s, r, n),  # type: ignore[misc]
                        lambda o=other, n=batch: o(n),  # type: ignore[misc]
                        equal=lambda found, _, c=clip: _exact(found, c),  # type: ignore[misc]
                        names=(ours, name),
                        work=(batch, "video"),
                        target=0.95 if ours == "auto" else None,
                        metric="wall",
                        backend="dali",
                        threads=cores,
                    )
        for source in (dali, pyav, auto):
            source.close()


def _exact(found: list[Frames], clip: Clip) -> bool:
    wanted = _numbers(clip, 0, 8)
    return bool(found) and all([number(p) for p in f.data.cpu().numpy()] == wanted for f in found)


def _nvdec_rivals(clip: Clip, stored: tuple[int, int]) -> dict[str, Callable[[int], Any]]:
    size = plan(Geometry("shortest", rivals.SIDE), *stored).size
    wanted = _numbers(clip, 0, 8)
    take = rivals.installed(cuda=True).get("torchcodec CUDA")
    if take is None:
        return {}
    return {"torchcodec CUDA": lambda n: [take(clip.path, wanted, size) for _ in range(n)]}
