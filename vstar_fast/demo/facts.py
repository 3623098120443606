"""Checkable facts about a clip, computed from its own kinematics, and a short caption that states them.

Thresholds are in metres, seconds, metres a second and degrees for the unscaled figure (1.6 m tall).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vstar_fast.demo.skeleton import Floats, Poses, Skeleton, forward, yaw_between

Bools = NDArray[np.bool_]

PHRASES: dict[str, str] = {
    "rises_face_down": "gets up from lying face down",
    "rises_face_up": "gets up from lying face up",
    "stays_low": "stays low on the floor",
    "upside_down": "goes upside down",
    "hands_on_floor": "the hands touch the floor",
    "spins": "turns all the way around",
    "level_trunk": "the upper body tips level",
    "airborne": "both feet leave the floor",
    "leg_high": "one leg swings up high",
    "tucked": "the knees pull in to the chest",
    "drops_low": "drops down to the floor",
    "turns_left": "turns to the left",
    "turns_right": "turns to the right",
    "arm_thrust": "one arm shoots out straight",
    "arms_overhead": "both arms go overhead",
    "arm_overhead": "one arm goes overhead",
    "knee_high": "the knees lift high",
    "upright": "stays upright on the feet",
    "moves_fast": "moving fast across the floor",
    "moves_forward": "moving forward",
    "moves_backward": "moving backward",
    "moves_sideways": "moving sideways",
    "in_place": "staying in place",
}
"""Fact -> its words in a caption, most telling first; the last five say how the person travels."""
MAX_WORDS = 20
_TRAVEL = ("moves_fast", "moves_forward", "moves_backward", "moves_sideways", "in_place")
_HIDDEN_BY = {
    "arm_overhead": {"arms_overhead"},
    "drops_low": {"upside_down"},
    "upside_down": {"rises_face_up"},
    "level_trunk": {"upside_down", "rises_face_down"},
    "upright": {"spins", "turns_left", "turns_right"},
}
"""Fact -> facts beside which a caption leaves it out, as they say more."""


def facts(poses: Poses, fps: float) -> tuple[str, ...]:
    """Names from `PHRASES` that hold for a track of T poses at `fps`, in the order of the table."""
    body = forward(poses)
    seen = _levels(body, fps) | _limbs(body, fps) | _travel(body, len(poses) / fps)
    if "upside_down" not in seen and not any(name.startswith("rises") for name in seen):
        seen |= _turning(poses)
    if not seen & {"upside_down", "airborne", "drops_low", "stays_low", "rises_face_down", "rises_face_up"}:
        seen.add("upright")
    return tuple(name for name in PHRASES if name in seen)


def caption(names: Sequence[str]) -> str:
    """One sentence of at most `MAX_WORDS` words: the most telling facts (1 to 3) and how the person travels."""
    told = [name for name in PHRASES if name in names and not _HIDDEN_BY.get(name, set()) & set(names)]
    main = [name for name in told if name not in _TRAVEL]
    travel = [name for name in told if name in _TRAVEL][:1]
    for count in (3, 2, 1):
        sentence = _sentence(main[:count], travel)
        if len(sentence.split()) <= MAX_WORDS:
            break
    return sentence


def _sentence(main: Sequence[str], travel: Sequence[str]) -> str:
    own = [PHRASES[name] for name in main if not _has_subject(name)]
    other = [PHRASES[name] for name in main if _has_subject(name)]
    parts = ["The person " + " and ".join(own), *other] if own else other
    text = ", ".join([*parts, *(PHRASES[name] for name in travel)])
    return text[:1].upper() + text[1:] + "."


def trunk_up(body: Skeleton) -> Floats:
    """Height component [T] of the direction from hips to neck: 1 upright, 0 level, -1 head down."""
    trunk = body.at("neck") - body.at("root")
    return trunk[:, 1] / np.linalg.norm(trunk, axis=1)


def _has_subject(name: str) -> bool:
    return PHRASES[name].split()[0] in ("both", "one", "the")


def _lasts(mask: Bools, fps: float, seconds: float) -> bool:
    """Whether `mask` [T] holds without a break for `seconds`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False]))))
    runs = edges[1::2] - edges[::2]
    return bool(len(runs) and runs.max() >= seconds * fps)


def _levels(body: Skeleton, fps: float) -> set[str]:
    """Lying, low, upside down, airborne."""
    head, hips, up = body.at("head")[:, 1], body.at("root")[:, 1], trunk_up(body)
    low = head < 0.8
    down_s = (len(low) if low.all() else int(np.argmin(low))) / fps
    rises = bool(down_s > 0.9 and hips[0] < 0.45 and head[-1] > head[0] + 0.4)
    face_down = body.chest_turn[: max(2, int(0.12 * fps)), 1, 0].mean() < 0
    checks = {
        "rises_face_down": rises and face_down,
        "rises_face_up": rises and not face_down,
        "upside_down": _lasts(up < -0.55, fps, 0.1),
        "airborne": _lasts((body.points[:, :, 1].min(1) > 0.1) & (hips > 0.55), fps, 0.08),
        "level_trunk": _lasts((up < 0.3) & (up > -0.55) & (hips > 0.6), fps, 0.15),
        "stays_low": bool(low.mean() > 0.9 and not rises),
        "drops_low": bool(low.mean() <= 0.9 and not rises and _lasts((hips < 0.45) & low, fps, 0.15)),
    }
    return {name for name, holds in checks.items() if holds}


def _limbs(body: Skeleton, fps: float) -> set[str]:
    """Legs and arms."""
    up, hips, head = trunk_up(body), body.at("root")[:, 1], body.at("head")[:, 1]
    ankles, wrists, knees, shoulders = (
        np.stack([body.at(side + joint) for side in ("right_", "left_")], 1)
        for joint in ("ankle", "wrist", "knee", "shoulder")
    )
    folded = np.linalg.norm(knees - body.at("chest")[:, None], axis=2).max(1)
    over = wrists[:, :, 1] - head[:, None]
    standing = (up > 0.5) & (hips > 0.55)
    checks = {
        "leg_high": _lasts((ankles[:, :, 1].max(1) - hips > -0.15) & (up > -0.3) & (hips > 0.55), fps, 0.1),
        "knee_high": _lasts((knees[:, :, 1].max(1) - hips > -0.17) & standing, fps, 0.08),
        "tucked": _lasts(folded < 0.45, fps, 0.08),
        "hands_on_floor": _lasts((wrists[:, :, 1].min(1) < 0.15) & (hips > 0.5), fps, 0.15),
        "arms_overhead": _lasts((over.min(1) > 0.0) & standing, fps, 0.1),
        "arm_overhead": _lasts((over.max(1) > 0.05) & standing, fps, 0.15),
        "arm_thrust": _thrust(wrists - shoulders, standing, fps),
    }
    return {name for name, holds in checks.items() if holds}


def _thrust(reach: Floats, standing: Bools, fps: float) -> bool:
    """A straight arm at shoulder height that stretched there at more than 1.5 m/s; `reach` [T, 2, 3]."""
    length = np.linalg.norm(reach, axis=2)
    straight = (length > 0.48) & (np.abs(reach[:, :, 1]) < 0.2) & standing[:, None]
    quick = np.diff(length, axis=0, prepend=length[:1]) * fps > 1.5
    window = np.ones(max(1, round(0.15 * fps)))
    recent = np.stack([np.convolve(quick[:, arm], window)[: len(quick)] > 0 for arm in (0, 1)], 1)
    return bool((straight & recent).any())


def _turning(poses: Poses) -> set[str]:
    yaw = sum(yaw_between(a, b) for a, b in zip(poses.turns[:-1, 0], poses.turns[1:, 0], strict=True))
    degrees = np.degrees(yaw)
    if abs(degrees) > 300:
        return {"spins"}
    if abs(degrees) > 100:
        return {"turns_left" if degrees > 0 else "turns_right"}
    return set()


def _travel(body: Skeleton, seconds: float) -> set[str]:
    """Net way of the hips over the clip, seen from the facing direction at its start."""
    way = (body.at("root")[-1] - body.at("root")[0])[[0, 2]] / seconds
    speed = float(np.linalg.norm(way))
    if speed < (0.15 if body.at("head")[:, 1].max() < 0.8 else 0.3):
        return {"in_place"}
    if speed > 2.0:
        return {"moves_fast"}
    lying = body.at("head")[:, 1].max() < 0.8
    facing = (body.at("neck") - body.at("root"))[0] if lying else body.root_turn[0, :, 0]
    facing = facing[[0, 2]]
    along = float(way @ facing / max(np.linalg.norm(facing), 1e-6)) / speed
    if along > 0.6:
        return {"moves_forward"}
    return {"moves_backward" if along < -0.6 else "moves_sideways"}
