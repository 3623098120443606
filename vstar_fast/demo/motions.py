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

from ..paths import cache_dir
from .fetch import fetch_wheel
from .skeleton import Floats, Poses, about, forward, join, mix, move, yaw_between

WHEEL = "pybullet-3.2.7-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEEL_SHA256 = "5d858abf7c12a21ef3ed351cf81dac1b5e486ec25c9ab59bfc84beb89034edff"
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
    "dance_a": ("step dance",),
    "dance_b": ("wave dance",),
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
        parts, yaw, offset = [], 0.0, np.zeros(3, np.float32)
        for k in range(int(cycle.max()) + 1):
            if np.any(cycle == k):
                parts.append(move(within[cycle == k], yaw, offset))
            offset = move(self.poses[:1], yaw, offset).root[0] * 0 + offset
            yaw, offset = _compose((yaw, offset), (self.step_yaw, self.step_offset))
        return join(parts)

    def _within(self, times_s: Floats) -> Poses:
        high = np.clip(np.searchsorted(self.times_s, times_s, side="right"), 1, len(self.times_s) - 1)
        low = high - 1
        span = self.times_s[high] - self.times_s[low]
        weight = ((times_s - self.times_s[low]) / span).astype(np.float32)[:, None]
        root = self.poses.root[low] + (self.poses.root[high] - self.poses.root[low]) * weight
        return Poses(root, mix(self.poses.turns[low], self.poses.turns[high], weight[:, None]))
