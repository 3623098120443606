"""What happens when in a video: moments with sentences, and annotated segments, as labels of the whole clip."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vstar_fast.labels.checks import is_finite
from vstar_fast.readers.rows import Bad
from vstar_fast.readers.sets import label_key

_CODED = re.compile(r"\s*(\S+)\s+([\d.]+)\s+([\d.]+)\s*")
_TIMES = (("segment",), ("timestamp",), ("start", "end"), ("start_s", "end_s"), ("start_time", "end_time"))
_NAMES = ("label", "class", "action", "event", "sentence", "caption", "name")


class Found(NamedTuple):
    """Labels, and what had to be left out of the row, in words."""

    labels: list[dict[str, Any]]
    left_out: list[str]


class _Segment(NamedTuple):
    event: str
    start_s: float
    end_s: float


def moments(timestamps: Any, sentences: Any, start_s: Any) -> Found:
    """Intervals of `timestamps`, each with its sentence (ActivityNet Captions)."""
    if not isinstance(timestamps, list) or not isinstance(sentences, list) or len(timestamps) != len(sentences):
        raise Bad("wrong_type", "timestamps and sentences must be lists of one length")
    rows = [{"segment": t, "sentence": s} for t, s in zip(timestamps, sentences, strict=True)]
    return _intervals(rows, start_s, "moment")


def are(given: Any) -> bool:
    """Whether a value of such a column is segments: `actions` may as well be a list of names."""
    if isinstance(given, str):
        return all(_CODED.fullmatch(x) for x in given.split(";") if x.strip())
    return isinstance(given, (list, tuple)) and all(isinstance(x, dict) for x in given)


def annotated(given: Any, start_s: Any, name_of: Callable[[Any], str]) -> Found:
    """Intervals of annotated segments (ActivityNet, COIN, Charades), and a class where all have one label.

    `given`: objects with `segment` and `label`, or `c092 11.90 21.20;c147 0.00 12.60`.
    """
    rows = _coded(given) if isinstance(given, str) else given
    if not isinstance(rows, (list, tuple)):
        raise Bad("wrong_type", f"annotations must be a list, got {str(given)[:60]!r}")
    if not rows:
        raise Bad("no_label", "annotations is empty")
    named = [_named(row, name_of) for row in rows]
    events = {row["label"] for row in named}
    found = _intervals(named, start_s, "when")
    whole = [{"kind": "class", "name": "action", "value": event} for event in events if len(events) == 1]
    return Found(whole + found.labels, found.left_out)


def _named(row: Any, name_of: Callable[[Any], str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise Bad("wrong_type", f"an annotation must be an object, got {str(row)[:60]!r}")
    event = next((row[x] for x in _NAMES if x in row), None)
    if event is None:
        raise Bad("no_label", f"an annotation has no label (looked for {', '.join(_NAMES)}): {str(row)[:80]}")
    named = name_of(event)
    if not isinstance(named, str):
        raise Bad("wrong_type", f"the label of an annotation must be a string, got {str(named)[:60]!r}")
    return {**row, "label": named}


def _coded(text: str) -> list[dict[str, Any]]:
    parts = [x for x in text.split(";") if x.strip()]
    found = [_CODED.fullmatch(x) for x in parts]
    if not all(found):
        raise Bad("wrong_type", f"actions must read like `c092 11.90 21.20;c147 0.00 12.60`, got {text[:60]!r}")
    return [{"label": x[1], "start": float(x[2]), "end": float(x[3])} for x in found if x]


def _intervals(rows: Sequence[Mapping[str, Any]], start_s: Any, name: str) -> Found:
    """An interval of every event that happens once: of others no question could say which is meant."""
    labels, left_out = [], []
    segments = [_segment(row, start_s if is_finite(start_s) else 0.0) for row in rows]
    often = Counter(label_key(x.event) for x in segments if isinstance(x, _Segment))
    for x in segments:
        if isinstance(x, str):
            left_out.append(x)
        elif often[label_key(x.event)] > 1:
            left_out.append(f"{x.event!r} happens {often[label_key(x.event)]} times, so `when` has no one answer")
        else:
            labels.append({"kind": "interval", "name": name, "value": [x.start_s, x.end_s], "event": x.event})
    return Found(labels, list(dict.fromkeys(left_out)))


def _segment(row: Mapping[str, Any], zero: float) -> _Segment | str:
    """The segment from the start of the clip, or why it cannot be used."""
    event = next((row[x] for x in _NAMES if x in row), None)
    keys = next((k for k in _TIMES if all(x in row for x in k)), None)
    times = None if keys is None else row[keys[0]] if len(keys) == 1 else [row[x] for x in keys]
    if not isinstance(event, str) or not any(c.isalnum() for c in event):
        return f"the event {event!r} has no letter or digit"
    if not isinstance(times, (list, tuple)) or len(times) != 2 or not all(is_finite(x) for x in times):
        return f"{event[:60]!r} needs a start and an end in seconds, got {str(times)[:60]}"
    start, end = (round(float(x) - zero, 6) for x in times)
    if not start < end or end <= 0:
        return f"{event[:60]!r} needs 0 <= start < end, got {times[0]} to {times[1]}"
    return _Segment(event, max(start, 0.0), end)
