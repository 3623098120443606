"""What is in each demo clip: motions, camera, look and file format drawn from the clip's own seed, and labels.

Nothing here renders. A split differs from the others in seed, in camera sector and, for single actions, in the
phase of the motion at which its clips begin.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vstar_fast.demo.encode import suffix
from vstar_fast.demo.motions import BLEND_S, LABELS, ONE_WAY, load
from vstar_fast.demo.skeleton import Floats, Poses, about, join, mix, move, multiply, rotate_y, yaw_between

SECTORS, SECTOR_DEG, GAP_DEG = 24, 15.0, 1.5
"""The camera's circle: sector index mod 4 says which band (`BANDS`) may look from there."""
BANDS = ("warm", "train", "dev", "test")
SETS = ("actions", "routines", "warm")
FPS = (24, 25, 30)
SIZES = ((128, 128), (128, 128), (112, 112), (120, 120), (144, 112), (112, 144), (136, 128))
ODD_SIZES = ((127, 113), (113, 127), (121, 121))
CODEC_SHARES = {"h264": 0.82, "hevc": 0.06, "vp9": 0.07, "av1": 0.05}
ODD_SHARE, TURNED_SHARE = 0.05, 0.04

SWAY_DEG_PER_POINT = 4.0
"""Side-to-side sway of the trunk for each point of execution below 10 (see `labels.score`)."""
SWAY_HZ = 1.4
ROUTINE_S = (3.0, 7.0)
TEMPO = (1.05, 1.4)
MIN_STRETCH_S = 1.1
COUNTED_SHARE, FROM_FLOOR_SHARE = 0.6, 0.15
WHOLE = {"spin": (0.9, 4.2), "getup_facedown": (0.2, 2.9), "getup_faceup": (0.2, 3.65)}
"""Seconds of a recording between which the action itself happens, where that is not the whole of it."""
COUNTED = ("jump", "kick", "punch", "spinkick", "backflip")


@dataclass(frozen=True)
class Segment:
    """`motion` from `start_s` of its recording for `seconds` of the clip, at `tempo` times its speed."""

    motion: str
    start_s: float
    seconds: float
    tempo: float
    repeats: int | None = None
    """How often the action is done, for an action whose repetitions are to be counted."""


@dataclass(frozen=True)
class Clip:
    """Everything that decides a clip's pixels and labels; angles in degrees, `size` (width, height)."""

    id: str
    file: str
    kind: str
    split: str
    band: str
    seed: int
    segments: tuple[Segment, ...]
    execution: int
    azimuth_deg: float
    elevation_deg: float
    fov_deg: float
    zoom: float
    fps: int
    size: tuple[int, int]
    codec: str
    rotation_deg: int

    @property
    def seconds(self) -> float:
        """Planned length; the file has `frames` / `fps`."""
        return sum(s.seconds for s in self.segments) + BLEND_S * (len(self.segments) - 1)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return round(self.seconds * self.fps)


def clip_seed(seed: int, kind: str, band: str, index: int) -> int:
    """One seed a clip, never shared between sets, splits or build seeds."""
    return ((seed * len(SETS) + SETS.index(kind)) * len(BANDS) + BANDS.index(band)) * 100_000 + index


def plan(kind: str, counts: Mapping[str, int], seed: int) -> list[Clip]:
    """The clips of one set; `counts` maps each split to its number of clips."""
    clips = []
    for split, count in counts.items():
        band = "warm" if kind == "warm" else split
        order = np.random.default_rng(clip_seed(seed, kind, band, 99_999)).permutation(count)
        clips += [_plan_clip(kind, split, band, index, int(order[index]), seed) for index in range(count)]
    return clips


def _plan_clip(kind: str, split: str, band: str, index: int, place: int, seed: int) -> Clip:
    own = clip_seed(seed, kind, band, index)
    rng = np.random.default_rng(own)
    if kind == "routines":
        segments, execution = _routine(rng, band), int(rng.integers(4, 11))
    else:
        segments, execution = (_action(rng, band, tuple(LABELS)[place % len(LABELS)]),), 10
    codec, size, turn = _file_format(rng)
    sector = 4 * int(rng.integers(SECTORS // 4)) + BANDS.index(band)
    azimuth = sector * SECTOR_DEG + rng.uniform(GAP_DEG / 2, SECTOR_DEG - GAP_DEG / 2)
    return Clip(
        id=f"{kind}-{split}-{index:04d}",
        file=f"{split}/{index:04d}{suffix(codec)}",
        kind=kind,
        split=split,
        band=band,
        seed=own,
        segments=segments,
        execution=execution,
        azimuth_deg=round(float(azimuth), 2),
        elevation_deg=round(float(rng.uniform(3, 28)), 2),
        fov_deg=round(float(rng.uniform(28, 48)), 2),
        zoom=round(float(rng.uniform(1.0, 1.18)), 3),
        fps=int(rng.choice(FPS)),
        size=size,
        codec=codec,
        rotation_deg=turn,
    )


def _file_format(rng: np.random.Generator) -> tuple[str, tuple[int, int], int]:
    codec = str(rng.choice(list(CODEC_SHARES), p=list(CODEC_SHARES.values())))
    odd = rng.random() < ODD_SHARE and codec != "av1"
    sizes = ODD_SIZES if odd else SIZES
    size = sizes[int(rng.integers(len(sizes)))]
    turned = rng.random() < TURNED_SHARE and codec != "vp9"
    return codec, size, int(rng.choice((90, 270))) if turned else 0


def _phase(rng: np.random.Generator, band: str) -> float:
    """Start of a clip within its cycle, 0..1, in the quarter that belongs to the band."""
    return (BANDS.index(band) + float(rng.uniform(0.08, 0.92))) / len(BANDS)


def _action(rng: np.random.Generator, band: str, motion: str) -> Segment:
    """1.5 to 2.5 s that show the whole action where it is that short."""
    cycle = load(motion).seconds
    tempo = float(rng.uniform(1.15, 1.3) if cycle > 2.6 else rng.uniform(0.9, 1.15))
    shortest = min(max(1.5, 0.95 * cycle / tempo), 2.4)
    seconds = float(rng.uniform(shortest, 2.5))
    slack = max(cycle - seconds * tempo, 0.4) if motion in ONE_WAY else cycle
    return Segment(motion, _phase(rng, band) * slack, seconds, tempo)


def _routine(rng: np.random.Generator, band: str) -> tuple[Segment, ...]:
    """2 to 4 different actions in 3 to 7 s; in about six of ten, one is done 1 to 4 times to be counted."""
    counted, repeats = None, 1
    if rng.random() < COUNTED_SHARE:
        counted = str(rng.choice(COUNTED))
        fits = int((ROUTINE_S[1] - MIN_STRETCH_S - BLEND_S) * TEMPO[1] / load(counted).seconds)
        repeats = int(rng.integers(1, min(4, fits) + 1))
    while True:
        names = _routine_names(rng, counted)
        segments = tuple(_performance(rng, band, name, repeats, name == counted) for name in names)
        total = sum(s.seconds for s in segments) + BLEND_S * (len(segments) - 1)
        if ROUTINE_S[0] <= total <= ROUTINE_S[1]:
            return segments


def _routine_names(rng: np.random.Generator, counted: str | None) -> list[str]:
    # Crawling starts on the floor: blending into it from standing would look like a fall.
    pool = [motion for motion in LABELS if motion not in (*ONE_WAY, "crawl", counted)]
    names = [str(name) for name in rng.permutation(pool)[: int(rng.integers(2, 5))]]
    if rng.random() < FROM_FLOOR_SHARE:
        names[0] = str(rng.choice(ONE_WAY))
    if counted is not None:
        names[int(rng.integers(names[0] in ONE_WAY, len(names)))] = counted
    return names


def _performance(rng: np.random.Generator, band: str, motion: str, repeats: int, counted: bool) -> Segment:
    """One action of a routine: whole performances, or a stretch of a motion that has no beginning."""
    cycle = load(motion).seconds
    tempo = float(rng.uniform(*TEMPO))
    if counted:
        return Segment(motion, 0.0, (repeats * cycle - BLEND_S) / tempo, tempo, repeats)
    if motion in ("walk", "run", "dance_a", "dance_b"):
        return Segment(motion, _phase(rng, band) * cycle, float(rng.uniform(MIN_STRETCH_S, 1.8)), tempo)
    start, end = WHOLE.get(motion, (0.0, cycle - BLEND_S))
    return Segment(motion, start, (end - start) / tempo, tempo)


def track(clip: Clip) -> tuple[Poses, list[tuple[float, float]]]:
    """Poses [frames] of a clip and the (start, end) seconds of each segment, blends left out."""
    times = np.arange(clip.frames, dtype=np.float32) / np.float32(clip.fps)
    parts: list[Poses] = []
    spans: list[tuple[float, float]] = []
    yaw, offset, last, begin = 0.0, np.zeros(3, np.float32), None, 0.0
    for segment in clip.segments:
        motion = load(segment.motion)
        if last is not None:
            first = motion.sample(np.array([segment.start_s], np.float32))
            yaw, offset = _align(last, first)
            begin = spans[-1][1] + BLEND_S
            parts.append(_blend(last, move(first, yaw, offset), times, spans[-1][1], begin))
        end = begin + segment.seconds
        inside = times[(times >= begin) & (times < end)]
        own = np.append(inside - begin, np.float32(segment.seconds)).astype(np.float32)
        poses = move(motion.sample(np.float32(segment.start_s) + own * np.float32(segment.tempo)), yaw, offset)
        parts.append(poses[: len(inside)])
        last = poses[-2:]
        spans.append((begin, min(end, clip.frames / clip.fps)))
    return _sway(join(parts), times, clip.execution), spans


def _align(last: Poses, first: Poses) -> tuple[float, Floats]:
    """Turn and shift that put a motion's first pose where the running one ended, facing the same way."""
    yaw = yaw_between(first.turns[0, 0], last.turns[-1, 0])
    offset = last.root[-1] - rotate_y(first.root[0], yaw)
    return yaw, offset * np.array((1, 0, 1), np.float32)


def _blend(last: Poses, first: Poses, times: Floats, begin: float, end: float) -> Poses:
    """Poses between the end of one segment and the start of the next."""
    w = (times[(times >= begin) & (times < end)] - np.float32(begin)) / np.float32(end - begin)
    w = (w * w * (3 - 2 * w)).astype(np.float32)[:, None]
    root = last.root[-1:] + (first.root[:1] - last.root[-1:]) * w
    return Poses(root, mix(last.turns[-1:], first.turns[:1], w[:, None]))


def _sway(poses: Poses, times: Floats, execution: int) -> Poses:
    """Rock the trunk from side to side by as much as the execution lacks."""
    if execution == 10:
        return poses
    angle = np.radians((10 - execution) * SWAY_DEG_PER_POINT) * np.sin(2 * np.pi * SWAY_HZ * times[: len(poses)])
    turns = poses.turns.copy()
    turns[:, 1] = multiply(about(0, angle), turns[:, 1])
    return Poses(poses.root, turns)
