"""Labels and meta of a demo clip, as manifest rows; all of them follow from the clip's own kinematics."""

from collections.abc import Sequence
from typing import Any

from vstar_fast.demo.clips import SWAY_DEG_PER_POINT, Clip
from vstar_fast.demo.facts import caption, facts
from vstar_fast.demo.motions import LABELS, label
from vstar_fast.demo.skeleton import Poses

DIFFICULTY: dict[str, float] = {
    "walk": 1.0,
    "run": 1.2,
    "getup_facedown": 1.3,
    "jump": 1.4,
    "punch": 1.5,
    "getup_faceup": 1.6,
    "kick": 1.8,
    "dance_b": 1.9,
    "dance_a": 2.1,
    "roll": 2.4,
    "spin": 2.6,
    "spinkick": 2.9,
    "cartwheel": 3.0,
    "backflip": 3.6,
}
"""Points of each action of a routine; repeating an action does not add to it."""
SCORE_TOLERANCE = 0.1
"""Share of the true score by which an answer may be off."""

Row = dict[str, Any]
Spans = Sequence[tuple[float, float]]


def score(motions: Sequence[str], execution: int) -> float:
    """Difficulty x execution, as in FineDiving: summed `DIFFICULTY` times a mark from 4 to 10.

    The mark is seen in the clip: 10 for a steady trunk, one less for every 4 degrees of side-to-side sway.
    """
    return round(sum(DIFFICULTY[motion] for motion in motions) * execution, 1)


def label_set() -> list[str]:
    """The closed set of action labels."""
    return [label(motion) for motion in LABELS]


def row(clip: Clip, poses: Poses, spans: Spans) -> Row:
    """Manifest row of a clip from its track and the (start, end) seconds of its segments."""
    seen = facts(poses, clip.fps)
    made = _routine_labels(clip, spans, seen) if clip.kind == "routines" else [_action_label(clip)]
    return {
        "id": clip.id,
        "path": clip.file,
        "split": clip.split,
        "duration_s": round(clip.frames / clip.fps, 4),
        "labels": made,
        "meta": _meta(clip, seen),
    }


def _action_label(clip: Clip) -> Row:
    value, *aliases = LABELS[clip.segments[0].motion]
    return {"kind": "class", "name": "action", "value": value, "set": "actions", "aliases": aliases}


def _routine_labels(clip: Clip, spans: Spans, seen: Sequence[str]) -> list[Row]:
    motions = [segment.motion for segment in clip.segments]
    names = [label(motion) for motion in motions]
    rows: list[Row] = [{"kind": "sequence", "name": "routine", "value": names, "set": "actions"}]
    for name, (start, end) in zip(names, spans, strict=True):
        rows.append({"kind": "interval", "name": "when", "event": name, "value": [round(start, 2), round(end, 2)]})
    rows += [
        {
            "kind": "number",
            "name": "repetitions",
            "event": label(s.motion),
            "value": s.repeats,
            "unit": "times",
        }
        for s in clip.segments
        if s.repeats is not None
    ]
    points = score(motions, clip.execution)
    rows.append(
        {
            "kind": "number",
            "name": "score",
            "value": points,
            "unit": "points",
            "rel_tolerance": SCORE_TOLERANCE,
        }
    )
    question = "Is the person upside down at any moment?"
    value = "yes" if "upside_down" in seen else "no"
    rows.append({"kind": "answer", "name": "upside_down", "question": question, "value": value})
    return rows


def _meta(clip: Clip, seen: Sequence[str]) -> Row:
    meta: Row = {
        "facts": list(seen),
        "caption": caption(seen),
        "motions": [segment.motion for segment in clip.segments],
        "start_s": [round(segment.start_s, 3) for segment in clip.segments],
        "tempo": [round(segment.tempo, 3) for segment in clip.segments],
        "fps": clip.fps,
        "frames": clip.frames,
        "codec": clip.codec,
        "width": clip.size[0],
        "height": clip.size[1],
        "rotation_deg": clip.rotation_deg,
        "seed": clip.seed,
        "band": clip.band,
        "azimuth_deg": clip.azimuth_deg,
        "elevation_deg": clip.elevation_deg,
    }
    if clip.kind == "routines":
        meta |= {"execution": clip.execution, "sway_deg": (10 - clip.execution) * SWAY_DEG_PER_POINT}
        meta["difficulty"] = round(sum(DIFFICULTY[motion] for motion in meta["motions"]), 1)
    return meta
