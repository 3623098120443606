"""The 15 recorded human motions of the demo, taken from the pybullet wheel and sampled at any time.

The recordings come from DeepMimic (Peng et al., 2018) by way of pybullet 3.2.7 (zlib licence). The wheel is
only read: nothing of it is installed and it is deleted after its text files are in the user cache.
"""

import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vstar_fast.demo.fetch import fetch_wheel
from vstar_fast.demo.skeleton import (
    ROTATING,
    Floats,
    Poses,
    about,
    forward,
    join,
    mix,
    move,
    rotate_y,
    yaw_between,
)
from vstar_fast.errors import DataError
from vstar_fast.paths import cache_dir

WHEEL = "pybullet-3.2.7-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEEL_SHA256 = "5d858abf7c12a21ef3ed351cf81dac1b5e486ec25c9ab59bfc84beb89034edff"
SOLE_M = 0.035
"""Thickness below the lowest joint point: what keeps a foot above the floor."""
MIN_STEP_S = 1 / 60
BLEND_S = 0.25
"""Seconds in which one motion passes into the next, or a motion that does not close into itself."""

LABELS: dict[str, tuple[str, ...]] = {
    "walk": ("walk", "walking"),
    "run": ("run", "running"),
    "jump": ("jump", "jumping"),
    "backflip": ("backflip", "back flip"),
    "cartwheel": ("cartwheel", "cart wheel"),
    "kick": ("kick", "kicking"),
    "punch": ("punch", "punching"),
    "spinkick": ("spin kick", "spinning kick"),
    "roll": ("roll", "rolling"),
    "crawl": ("crawl", "crawling"),
    "dance_a": ("wave dance",),
    "dance_b": ("step dance",),
    "spin": ("spin", "spinning"),
    "getup_facedown": ("get up from the front",),
    "getup_faceup": ("get up from the back",),
}
"""Motion -> (label, aliases...)."""
ONE_WAY = ("getup_facedown", "getup_faceup")
"""Motions that end where they cannot begin again: past their end the last pose is held."""


def label(motion: str) -> str:
    """The human label of a motion, e.g. "spin kick"."""
    return LABELS[motion][0]


@dataclass(frozen=True)
class Motion:
    """One recording: `poses` [N] at `times_s` [N]; a cyclic one ends in its first pose, moved on."""

    name: str
    poses: Poses
    times_s: Floats
    step_yaw: float
    step_offset: Floats

    @property
    def seconds(self) -> float:
        """Length of one performance (one cycle)."""
        return float(self.times_s[-1])

    def sample(self, times_s: Floats) -> Poses:
        """Poses at `times_s` [T] (>= 0); cyclic motions go on over their end without a jump."""
        if self.name in ONE_WAY:
            return self._within(np.minimum(times_s, self.seconds))
        cycle = np.floor(times_s / self.seconds).astype(int)
        within = self._within(times_s - cycle * self.seconds)
        parts = []
        for k in np.unique(cycle):
            yaw, offset = self._after(int(k))
            parts.append(move(within[cycle == k], yaw, offset))
        return join(parts)

    def _after(self, cycles: int) -> tuple[float, Floats]:
        """Turn and shift that `cycles` whole cycles add up to."""
        yaw, offset = 0.0, np.zeros(3, np.float32)
        for _ in range(cycles):
            yaw, offset = yaw + self.step_yaw, offset + rotate_y(self.step_offset, yaw)
        return yaw, offset

    def _within(self, times_s: Floats) -> Poses:
        high = np.clip(np.searchsorted(self.times_s, times_s, side="right"), 1, len(self.times_s) - 1)
        low = high - 1
        span = self.times_s[high] - self.times_s[low]
        weight = ((times_s - self.times_s[low]) / span).astype(np.float32)[:, None]
        root = self.poses.root[low] + (self.poses.root[high] - self.poses.root[low]) * weight
        return Poses(root, mix(self.poses.turns[low], self.poses.turns[high], weight[:, None]))


@cache
def load(name: str) -> Motion:
    """One of the motions in `LABELS`, standing on the floor y = 0 and starting at x = z = 0."""
    if name not in LABELS:
        raise DataError(f"no motion {name!r}; choose one of {', '.join(LABELS)}")
    rows = np.array(json.loads(_file(name).read_text())["Frames"], np.float64)
    times_s = np.concatenate(([0.0], np.cumsum(rows[:-1, 0]))).astype(np.float32)
    poses = _grounded(_parse(rows))
    if name in ONE_WAY:
        return Motion(name, poses, times_s, 0.0, np.zeros(3, np.float32))
    return _closed(name, poses, times_s)


def _parse(rows: NDArray[np.float64]) -> Poses:
    """Columns of a motion file -> poses; knees and elbows are angles about z, the rest quaternions."""
    turns, column = [], 4
    for joint in ROTATING:
        if joint.endswith(("knee", "elbow")):
            turns.append(about(2, rows[:, column]))
            column += 1
        else:
            quaternion = rows[:, column : column + 4]
            turns.append((quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)).astype(np.float32))
            column += 4
    start = rows[0, 1:4] * (1, 0, 1)
    return Poses((rows[:, 1:4] - start).astype(np.float32), np.stack(turns, 1))


def _grounded(poses: Poses) -> Poses:
    """Shift a track vertically so that its lowest soles rest on the floor."""
    lowest = forward(poses).points[:, :, 1].min(1) - SOLE_M
    return Poses(poses.root - np.array((0, np.percentile(lowest, 12), 0), np.float32), poses.turns)


def _closed(name: str, poses: Poses, times_s: Floats) -> Motion:
    """A cyclic motion: the first pose, moved on, is put behind the last, as far off as the limbs are fast."""
    yaw = yaw_between(poses.turns[0, 0], poses.turns[-1, 0])
    offset = (poses.root[-1] - rotate_y(poses.root[0], yaw)) * np.array((1, 0, 1), np.float32)
    poses = join([poses, move(poses[:1], yaw, offset)])
    points = forward(poses).points
    steps = np.abs(np.diff(points, axis=0)).max((1, 2))
    speed = max(steps[0], steps[-2]) / (times_s[1] - times_s[0])
    seconds = np.clip(steps[-1] / speed, MIN_STEP_S, BLEND_S)
    return Motion(name, poses, np.append(times_s, times_s[-1] + seconds).astype(np.float32), yaw, offset)


def _file(name: str) -> Path:
    folder = cache_dir() / "motions" / f"pybullet-{WHEEL_SHA256[:12]}"
    if not folder.is_dir():
        _extract(folder)
    return folder / f"humanoid3d_{name}.txt"


def _extract(folder: Path) -> None:
    """Fetch the wheel into a temporary folder and keep the motion files only; safe to run twice at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".motions-", dir=folder.parent) as temporary:
        wheel = fetch_wheel(
            "pybullet==3.2.7",
            WHEEL,
            WHEEL_SHA256,
            Path(temporary),
            python_version="3.11",
            implementation="cp",
            abi="cp311",
            platforms=("manylinux2014_x86_64", "manylinux_2_17_x86_64"),
        )
        ready = Path(temporary) / "motions"
        ready.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in LABELS:
                file = f"humanoid3d_{name}.txt"
                (ready / file).write_bytes(archive.read(f"pybullet_data/data/motions/{file}"))
        try:
            os.replace(ready, folder)
        except OSError:
            if not folder.is_dir():
                raise
