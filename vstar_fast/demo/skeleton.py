"""The DeepMimic humanoid: quaternions (w, x, y, z), joint tree and forward kinematics.

World axes: x is the start heading, y is up, z is the performer's right. Lengths in metres.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ROTATING = (
    "root",
    "chest",
    "neck",
    "right_hip",
    "right_knee",
    "right_ankle",
    "right_shoulder",
    "right_elbow",
    "left_hip",
    "left_knee",
    "left_ankle",
    "left_shoulder",
    "left_elbow",
)
"""Joints that turn, in the order of a motion file's columns."""
TIPS = ("right_wrist", "left_wrist", "head", "right_heel", "right_toe", "left_heel", "left_toe")
"""End points without a rotation of their own."""
JOINTS = {name: i for i, name in enumerate((*ROTATING, *TIPS))}
"""Column of every point in the position arrays."""

_ARM = (("elbow", (0.0, -0.274788, 0.0)), ("wrist", (0.0, -0.258947, 0.0)))
_TREE: dict[str, tuple[str, tuple[float, float, float], str]] = {
    "chest": ("root", (0.0, 0.236151, 0.0), "trunk"),
    "neck": ("chest", (0.0, 0.223894, 0.0), "trunk"),
    "head": ("neck", (0.01, 0.165, 0.0), "trunk"),
}
for _side, _z in (("right", 1.0), ("left", -1.0)):
    _TREE |= {
        f"{_side}_hip": ("root", (0.0, 0.0, 0.084887 * _z), "leg"),
        f"{_side}_knee": (f"{_side}_hip", (0.0, -0.421546, 0.0), "leg"),
        f"{_side}_ankle": (f"{_side}_knee", (0.0, -0.409870, 0.0), "leg"),
        f"{_side}_heel": (f"{_side}_ankle", (-0.035, -0.02, 0.0), "leg"),
        f"{_side}_toe": (f"{_side}_ankle", (0.125, -0.02, 0.0), "leg"),
        f"{_side}_shoulder": ("chest", (-0.02405, 0.2435, 0.18311 * _z), "trunk"),
        f"{_side}_elbow": (f"{_side}_shoulder", _ARM[0][1], "arm"),
        f"{_side}_wrist": (f"{_side}_elbow", _ARM[1][1], "arm"),
    }
"""child -> (parent, offset in the parent's frame, body part for `Proportions`); offsets from humanoid.urdf / 4."""


@dataclass(frozen=True)
class Proportions:
    """Factors on bone lengths; `leg` scales the root's path too, so that feet stay on the floor."""

    leg: float = 1.0
    trunk: float = 1.0
    arm: float = 1.0


@dataclass(frozen=True)
class Poses:
    """A pose a frame: `root` [T, 3] in metres, `turns` [T, 13, 4] local unit quaternions."""

    root: Floats
    turns: Floats

    def __len__(self) -> int:
        return len(self.root)

    def __getitem__(self, index: slice | NDArray[np.intp]) -> "Poses":
        return Poses(self.root[index], self.turns[index])


def join(parts: list[Poses]) -> Poses:
    """One track out of several, in order."""
    return Poses(np.concatenate([p.root for p in parts]), np.concatenate([p.turns for p in parts]))


def multiply(a: Floats, b: Floats) -> Floats:
    """Hamilton product of quaternions [..., 4]: the turn `b`, then `a`."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    parts = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return np.stack(parts, -1).astype(np.float32)


def about(axis: int, angle: NDArray[np.floating] | float) -> Floats:
    """Quaternions [..., 4] of a turn by `angle` radians about x (0), y (1) or z (2)."""
    half = np.asarray(angle, np.float32) / 2
    out = np.zeros((*half.shape, 4), np.float32)
    out[..., 0], out[..., 1 + axis] = np.cos(half), np.sin(half)
    return out


def mix(a: Floats, b: Floats, weight: Floats) -> Floats:
    """Normalised linear blend of quaternions [..., 4] along the shorter arc; `weight` broadcasts."""
    sign = np.where(np.sum(a * b, -1, keepdims=True) < 0, np.float32(-1), np.float32(1))
    out = a + (sign * b - a) * weight
    return out / np.linalg.norm(out, axis=-1, keepdims=True)


def yaw_between(a: Floats, b: Floats) -> float:
    """Turn about the vertical, in radians, that carries root rotation `a` [4] nearest to `b` [4]."""
    turn = multiply(b, a * np.array([1, -1, -1, -1], np.float32))
    yaw = float(2 * np.arctan2(turn[2], turn[0]))
    return (yaw + np.pi) % (2 * np.pi) - np.pi


def move(poses: Poses, yaw: float, offset: Floats) -> Poses:
    """Turn a track about the world's vertical axis by `yaw` radians, then shift it by `offset` [3]."""
    turns = poses.turns.copy()
    turns[:, 0] = multiply(about(1, yaw), turns[:, 0])
    return Poses(rotate_y(poses.root, yaw) + offset, turns)


def rotate_y(points: Floats, yaw: float) -> Floats:
    """Points [..., 3] turned about the world's vertical axis by `yaw` radians."""
    c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack((c * x + s * z, y, c * z - s * x), -1)


def matrices(q: Floats) -> Floats:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4]."""
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


@dataclass(frozen=True)
class Skeleton:
    """World state a frame: `points` [T, 20, 3] (columns: `JOINTS`), `root_turn`/`head_turn` [T, 3, 3]."""

    points: Floats
    root_turn: Floats
    chest_turn: Floats
    head_turn: Floats

    def at(self, joint: str) -> Floats:
        """Positions [T, 3] of one joint or end point."""
        return self.points[:, JOINTS[joint]]


def forward(poses: Poses, proportions: Proportions = Proportions()) -> Skeleton:
    """Forward kinematics of a track of T poses."""
    turns = {"root": matrices(poses.turns[:, 0])}
    points = {"root": poses.root * np.float32(proportions.leg)}
    for child in sorted(_TREE, key=_depth):
        parent, offset, part = _TREE[child]
        length = np.array(offset, np.float32) * np.float32(getattr(proportions, part))
        points[child] = points[parent] + turns[parent] @ length
        if child in ROTATING:
            turns[child] = turns[parent] @ matrices(poses.turns[:, JOINTS[child]])
    stacked = np.stack([points[name] for name in JOINTS], 1)
    return Skeleton(stacked, turns["root"], turns["chest"], turns["neck"])


def _depth(joint: str) -> int:
    return 0 if joint == "root" else 1 + _depth(_TREE[joint][0])
