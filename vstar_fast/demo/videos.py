"""Builds the demo video sets: encoded files plus a manifest, rendered once and kept in the user cache."""

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from vstar_fast.demo.clips import Clip, plan, track
from vstar_fast.demo.encode import encode
from vstar_fast.demo.labels import Row, label_set, row
from vstar_fast.demo.motions import LABELS, load
from vstar_fast.demo.render import Camera, random_look, render
from vstar_fast.demo.skeleton import Floats, Skeleton, forward
from vstar_fast.paths import cache_dir

FORMAT = 1
"""Goes up whenever the same seed gives other files or labels: finished sets are then rendered anew."""
COUNTS: dict[str, dict[str, int]] = {
    "actions": {"train": 150, "dev": 75, "test": 300},
    "routines": {"train": 30, "dev": 15, "test": 30},
}
FOLLOW_M = 0.6
"""Width of floor the person may cross before the camera starts to follow."""
FOLLOW_SMOOTH_S = 0.9
FILL = 0.9
"""Share of the picture's shorter side that the whole action may take."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DemoVideos:
    """Manifests of the two sets: `actions` (15 classes) and `routines` (chained actions, all label kinds)."""

    actions: Path
    routines: Path


def build(
    root: Path | None = None, *, seed: int = 0, workers: int | None = None, progress: Progress | None = None
) -> DemoVideos:
    """Render both sets under `root` (default: the user cache) unless they are there, and return their manifests.

    Same `seed`, same bytes. An interrupted build goes on where it stopped. `workers` processes are spawned
    (default: the CPUs of this process), so a script that calls this needs `if __name__ == "__main__":`;
    `workers=1` stays in this process. `progress(done, total)` is called after each clip.
    """
    total = sum(sum(counts.values()) for counts in COUNTS.values())
    made: dict[str, Path] = {}
    done = 0
    for kind, counts in COUNTS.items():
        shifted = None if progress is None else _shifted(progress, done, total)
        made[kind] = build_set(kind, counts, root, seed=seed, workers=workers, progress=shifted)
        done += sum(counts.values())
    return DemoVideos(**made)


def build_warm(
    root: Path | None = None,
    n: int = 600,
    seed: int = 0,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Manifest of `n` single-action clips, all in split `train`, whose seeds and cameras no other set uses."""
    return build_set("warm", {"train": n}, root, seed=seed, workers=workers, progress=progress)


def build_set(
    kind: str,
    counts: Mapping[str, int],
    root: Path | None = None,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Manifest of one set (`actions`, `routines` or `warm`) with `counts` clips a split."""
    root = cache_dir() / "demo" if root is None else root
    folder = root / f"{kind}-{_key(kind, counts, seed)}"
    manifest = folder / "manifest.jsonl"
    clips = plan(kind, counts, seed)
    if manifest.exists() and all((folder / clip.file).exists() for clip in clips):
        if progress is not None:
            progress(len(clips), len(clips))
        return manifest
    for split in counts:
        (folder / split).mkdir(parents=True, exist_ok=True)
    rows = _make_all(clips, folder, workers or len(os.sched_getaffinity(0)), progress)
    header = {"vstar_manifest": 1, "name": kind, "label_sets": {"actions": label_set()}}
    _write_lines(manifest, [header, *rows])
    return manifest


def _key(kind: str, counts: Mapping[str, int], seed: int) -> str:
    return sha256(json.dumps([FORMAT, kind, dict(counts), seed]).encode()).hexdigest()[:12]


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _write_lines(path: Path, rows: list[Row]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows), encoding="utf-8")
    os.replace(temporary, path)


def _make_all(clips: list[Clip], folder: Path, workers: int, progress: Progress | None) -> list[Row]:
    """Rows of all clips, in order; clips already rendered are only labelled."""
    for motion in LABELS:
        load(motion)  # downloaded here once, not by every worker at the same time
    if workers == 1:
        rows = []
        for clip in clips:
            rows.append(make(clip, folder))
            if progress is not None:
                progress(len(rows), len(clips))
        return rows
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(make, clip, folder) for clip in clips]
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if progress is not None:
                    progress(done, len(clips))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [job.result() for job in jobs]


def make(clip: Clip, folder: Path) -> Row:
    """Render one clip into `folder` unless its file is there, and return its manifest row."""
    poses, spans = track(clip)
    path = folder / clip.file
    if not path.exists():
        rng = np.random.default_rng((clip.seed, 1))
        look = random_look(rng)
        body = forward(poses, look.proportions)
        frames = render(body, camera(clip, body), look, clip.size)
        encode(frames, path, fps=clip.fps, size=clip.size, codec=clip.codec, rotation_deg=clip.rotation_deg)
    return row(clip, poses, spans)


def camera(clip: Clip, body: Skeleton) -> Camera:
    """A camera that keeps the whole body in the picture's central square for the whole clip."""
    points = body.points
    height = np.float32((points[..., 1].min() + points[..., 1].max()) / 2)
    target = _followed(body.at("root"), clip.fps)
    target[:, 1] = height
    view = Camera(target, clip.azimuth_deg, clip.elevation_deg, 0.0, clip.fov_deg)
    seen = view.view(points)
    focal = 1 / np.tan(np.radians(clip.fov_deg) / 2)
    reach = np.abs(seen[..., :2]).max(-1) + 0.08
    needed = float((reach * focal / FILL - seen[..., 2]).max())
    return replace(view, distance_m=max(needed, 2.5) * clip.zoom)


def _followed(root: Floats, fps: int) -> Floats:
    """Camera target [T, 3] over the root's path: its middle, moving along once the path is long."""
    low, high = root.min(0), root.max(0)
    middle = ((low + high) / 2).astype(np.float32)
    extent = float(np.linalg.norm((high - low)[[0, 2]]))
    if extent <= FOLLOW_M:
        return np.repeat(middle[None], len(root), 0)
    half = max(1, int(FOLLOW_SMOOTH_S * fps / 2))
    padded = np.pad(root, ((half, half), (0, 0)), mode="edge")
    kernel = np.ones(2 * half + 1) / (2 * half + 1)
    smooth = np.stack([np.convolve(padded[:, axis], kernel, "valid") for axis in range(3)], 1)
    return (middle + (smooth - middle) * (1 - FOLLOW_M / extent)).astype(np.float32)
