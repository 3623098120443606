"""Checks of one row in the manifest's form: `LabeledVideo`, or `Rejected` with the reason."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vstar_fast import clip_files
from vstar_fast.errors import DataError
from vstar_fast.labels.checks import LABEL_KINDS, is_finite
from vstar_fast.readers.splits import SPLIT_NAMES
from vstar_fast.records import Label, LabeledVideo, Rejected

if TYPE_CHECKING:
    from vstar_fast.readers.sets import LabelSets
    from vstar_fast.readers.source import Source

REASONS = {
    "bad_json": "a line or file that is not JSON, or not an object",
    "bad_csv": "a line that cannot be split into the header's columns",
    "not_utf8": "text that is not UTF-8",
    "wrong_field": "a field no row may have",
    "wrong_type": "a field of another type than it must have",
    "missing_field": "a field every row must have",
    "wrong_split": "a split that is not train, dev or test by any usual name",
    "split_conflict": "a video that an earlier row, or a copy of it that is held out, has in another split",
    "no_label": "no label at all",
    "unknown_kind": "a label kind that does not exist",
    "bad_label": "a label whose value does not fit its kind",
    "empty_label_set": "a label from a set without labels",
    "not_in_label_set": "a label that its declared set does not have",
    "bad_window": "a window that is empty or lies outside the video",
    "too_long": "a clip longer than data.max_duration_s",
    "outside_root": "a path that leaves the data folder",
    "missing_file": "a file that is not there",
    "empty_file": "a file of 0 bytes",
    "not_video": "a file that is no video by its name",
    "unreadable_folder": "a folder that cannot be listed",
    "duplicate_id": "an id that is already taken",
    "duplicate_video": "a file and window that are already there",
}

_MARKS = r"<(?:video|image)>"
_PLACEHOLDERS = re.compile(rf"\A(?:\s*{_MARKS})+\s*|\s*(?:{_MARKS}\s*)+\Z")
VIDEO_SUFFIXES = tuple(
    f".{x}"
    for x in "mp4 m4v mov avi mkv webm mpg mpeg wmv flv ts m2ts 3gp ogv y4m gif".split()  # noqa: SIM905
)


class Row(NamedTuple):
    """A row in the manifest's form.

    `own_id`: its id came with the data, not from the file name. `sets`: label sets that the row itself declares.
    `left_out`: labels that could not be used, in words.
    """

    where: str
    values: dict[str, Any]
    own_id: bool = True
    sets: Mapping[str, Sequence[str]] = {}
    left_out: Sequence[str] = ()


class Bad(Exception):
    """Why a row cannot be used; becomes a Rejected."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def build(row: Row, source: Source, sets: LabelSets) -> LabeledVideo | Rejected:
    """The video of a row, or why there is none."""
    try:
        return _video(row.values, source, sets)
    except Bad as bad:
        return reject(row, bad.reason, str(bad))


def reject(row: Row, reason: str, message: str) -> Rejected:
    """A Rejected that names the row by its id, or by where it stands."""
    id = row.values.get("id") if isinstance(row.values, dict) else None
    return Rejected("read", id if isinstance(id, str) and id else row.where, reason, f"{row.where}: {message}")


def merge_key(video: LabeledVideo) -> tuple[str, float | None, float | None]:
    """What two videos may not share: file and window."""
    return (video.path, video.start_s, video.end_s)


def _video(values: Any, source: Source, sets: LabelSets) -> LabeledVideo:
    if not isinstance(values, dict):
        raise Bad("bad_json", f"a row must be an object, got {_short(values)}")
    _check_utf8(values)
    _check_fields(values, _ROW, "")
    labels = values["labels"]
    if not labels:
        raise Bad("no_label", "labels is empty; a video needs at least one label")
    split = SPLIT_NAMES.get((values.get("split") or "train").strip().lower())
    if split is None:
        raise Bad("wrong_split", f"split {values['split']!r} is none of {', '.join(sorted(SPLIT_NAMES))}")
    _check_window(values, source.config.max_duration_s)
    typed = tuple(sets.fit(_label(label, i)) for i, label in enumerate(labels))
    _check_inside(typed, values)
    path = _file(values["path"], source)
    times = {k: None if values.get(k) is None else float(values[k]) for k in ("start_s", "end_s", "duration_s")}
    try:
        return LabeledVideo(values["id"], path, typed, split, **times, meta=values.get("meta") or {})
    except DataError as error:
        raise Bad("wrong_type", str(error)) from None


def _check_utf8(values: dict[str, Any]) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = ascii(str(error.object)[max(0, error.start - 20) : error.end + 20])
        raise Bad("not_utf8", f"the text near {near} is not UTF-8; save the file as UTF-8") from None


def is_utf8(text: str) -> bool:
    """Whether `text` can be written as UTF-8; a file name of other bytes cannot."""
    return text.isascii() or not any("\ud800" <= x <= "\udfff" for x in text)


def question_words(text: Any) -> Any:
    """A question of the data without `<video>` or `<image>` before or behind it: the prompt brings its own."""
    words = _PLACEHOLDERS.sub("", text) if isinstance(text, str) else text
    if text and not words:
        raise Bad("bad_label", f"question {_short(text)} has no words; write the question beside the placeholder")
    return words


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _seconds(value: Any) -> bool:
    return is_finite(value) and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value)


class _Field(NamedTuple):
    check: Callable[[Any], bool]
    what: str
    needed: bool = False


_ROW = {
    "id": _Field(_name, "a non-empty string", True),
    "path": _Field(_name, "a non-empty string", True),
    "labels": _Field(lambda v: isinstance(v, (list, tuple)), "a list of labels", True),
    "split": _Field(_text, "a string"),
    "duration_s": _Field(_seconds, "a number of seconds >= 0"),
    "start_s": _Field(_seconds, "a number of seconds >= 0"),
    "end_s": _Field(_seconds, "a number of seconds >= 0"),
    "meta": _Field(lambda v: isinstance(v, dict), "an object"),
}
_LABEL = {
    "kind": _Field(_text, "a string", True),
    "name": _Field(_text, "a string", True),
    "value": _Field(lambda _: True, "a value", True),
    "set": _Field(_name, "the name of a label set"),
    "aliases": _Field(_texts, "a list of strings"),
    "unit": _Field(_text, "a string"),
    "event": _Field(_text, "a string"),
    "question": _Field(_text, "a string"),
    "abs_tolerance": _Field(_seconds, "a number >= 0"),
    "rel_tolerance": _Field(_seconds, "a number >= 0"),
}


def _check_fields(values: dict[str, Any], known: dict[str, _Field], where: str) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise Bad("wrong_field", f"{where}unknown field {key!r}; {hint}")
    for key, field in known.items():
        value = values.get(key)
        if value is None and field.needed:
            raise Bad("missing_field", f"{where}{key} is missing; it must be {field.what}")
        if value is not None and not field.check(value):
            raise Bad("wrong_type", f"{where}{key} must be {field.what}, got {_short(value)}")


def _label(values: Any, index: int) -> Label:
    where = f"labels[{index}] "
    if not isinstance(values, dict):
        raise Bad("wrong_type", f"{where}must be an object, got {_short(values)}")
    if isinstance(values.get("kind"), str) and values["kind"] not in LABEL_KINDS:
        known = ", ".join(sorted(LABEL_KINDS))
        raise Bad("unknown_kind", f"{where}has unknown label kind {values['kind']!r}; known: {known}")
    _check_fields(values, _LABEL, where)
    given = {k: question_words(v) if k == "question" else v for k, v in values.items() if v is not None}
    try:
        return Label(**{**given, "aliases": tuple(given.get("aliases", ()))})
    except DataError as error:
        raise Bad("bad_label", f"{where}{error}") from None


def _check_window(values: dict[str, Any], longest: float) -> None:
    start, end, duration = (values.get(k) for k in ("start_s", "end_s", "duration_s"))
    if start is not None and end is not None and start >= end:
        raise Bad("bad_window", f"window needs start_s < end_s, got {start}..{end}")
    if duration is not None and (start or 0) >= duration > 0:
        raise Bad("bad_window", f"window starts at {start} s, but the video is {duration} s long")
    length = end - (start or 0) if end is not None else None if duration is None else duration - (start or 0)
    if length is not None and length > longest:
        raise Bad("too_long", f"{length:g} s is longer than data.max_duration_s = {longest:g}; cut a window")


def _check_inside(labels: Iterable[Label], values: dict[str, Any]) -> None:
    """Intervals count from the start of the clip, so they must begin before it ends."""
    start = values.get("start_s") or 0
    end = values.get("end_s") or values.get("duration_s")
    for label in labels:
        if label.kind == "interval" and end is not None and label.value[0] >= end - start:
            length = f"the clip of {end - start:g} s; times count from the clip's start"
            raise Bad("bad_label", f"interval {list(label.value)} of {label.name!r} lies outside {length}")


def _file(text: str, source: Source) -> str:
    """The clip's resolved path, checked to lie inside the root (links followed) and to hold something.

    A folder of images and a member of a tar shard are clips, too; a URL is taken as it is.
    """
    if clip_files.is_url(text):
        return text
    name, mark, member = text.partition(clip_files.MEMBER) if clip_files.is_member(text) else (text, "", "")
    try:
        path = os.path.realpath(source.root / name)
        inside = Path(path).is_relative_to(source.root)
        there = inside and (os.path.isfile(path) or (os.path.isdir(path) and bool(clip_files.images(path))))
        size = os.stat(path).st_size if there else -1
    except (OSError, ValueError) as error:
        raise Bad("missing_file", f"path {_short(text)} cannot be used: {error}") from None
    if not inside:
        raise Bad("outside_root", f"path {text!r} leaves the data folder {source.root}; set data.root to widen it")
    if size < 0:
        raise Bad("missing_file", f"no file {path}; data.root says where clips lie that do not lie beside the data")
    if not is_utf8(path):
        raise Bad("not_utf8", f"the path {path} is not UTF-8; rename the file or its folder")
    if size == 0:
        raise Bad("empty_file", f"{path} has 0 bytes")
    return f"{path}{mark}{member}"


def with_id(values: dict[str, Any]) -> dict[str, Any]:
    """The row with an id made of file name and window, as it has none of its own."""
    path, start, end = (values.get(k) for k in ("path", "start_s", "end_s"))
    id = os.path.splitext(path)[0] if isinstance(path, str) else ""
    if start is not None or end is not None:
        id += f"@{_seconds_text(start or 0)}-{'end' if end is None else _seconds_text(end)}"
    return {**values, "id": id}


def _seconds_text(value: Any) -> str:
    return format(value, "g") if is_finite(value) else _short(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
