"""A row of a table in the manifest's form, by what its columns mean."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vstar_fast.errors import ConfigError, DataError
from vstar_fast.readers import answers, segments
from vstar_fast.readers.rows import Bad, Row, reject, with_id
from vstar_fast.readers.source import Source
from vstar_fast.records import Rejected

# What a column means -> the names it usually has, first match wins. `data.columns` goes before these.
COLUMNS: dict[str, tuple[str, ...]] = {
    "video": (
        *("video", "path", "video_path", "file_name", "filename", "file", "clip", "video_id", "video_name"),
        *("gif_name", "clip_name", "video_file"),
    ),
    "youtube_id": ("youtube_id", "ytid"),
    "label": ("label", "class", "action", "category"),
    "number": ("number", "score", "count"),
    "split": ("split", "subset"),
    "start": ("start_s", "start", "time_start", "start_time", "start_timestamp"),
    "end": ("end_s", "end", "time_end", "end_time", "stop_timestamp", "end_timestamp"),
    "duration": ("duration_s", "duration"),
    "id": ("id",),
    "question": ("question", "problem"),
    "answer": ("answer", "solution"),
    "options": ("options", "choices", "candidates"),
    "kind": ("kind",),
    "name": ("name", "label_name"),
    "unit": ("unit",),
    "event": ("event",),
    "aliases": ("aliases",),
    "timestamps": ("timestamps",),
    "sentences": ("sentences",),
    "segments": ("annotations", "annotation", "actions"),
    "conversations": ("conversations",),
    "template": ("template",),
    "placeholders": ("placeholders",),
}
LABELLED = ("label", "number", "question", "timestamps", "segments", "conversations")
"""Meanings of which a table needs one column at least."""
IN_FRAMES = ("start_frame", "frame_start", "end_frame", "stop_frame", "frame_end")
LIST_MARK = "|"
"""Parts the items of a list in a CSV cell: `run|jump|backflip`."""


def converted(rows: Iterator[Row | Rejected], source: Source, *, from_text: bool) -> Iterator[Row | Rejected]:
    """Rows of this file as rows of a manifest; those of JSON that have `labels` are such rows."""
    made = [x if isinstance(x, Rejected) else _meant(x, source, from_text) for x in rows]
    cells = [x.got for x in made if isinstance(x, _Cells)]
    asked = [x for x in cells if {"answer", "options"} <= x.keys()]
    first = answers.counted_from([(x["answer"], x["options"]) for x in asked], any("from_0" in x for x in asked))
    for x in made:
        yield _convert(x, source, first) if isinstance(x, _Cells) else x


class _Cells(NamedTuple):
    """What the columns of a row mean: their values, and what they are called in the file."""

    where: str
    got: dict[str, Any]
    columns: Mapping[str, str]


def _meant(row: Row, source: Source, from_text: bool) -> _Cells | Row | Rejected:
    if not from_text and "labels" in row.values:
        return row
    columns = columns_of(list(row.values), source)
    got = {meaning: row.values[x] for meaning, x in columns.items() if row.values[x] not in ("", None)}
    each = [] if "options" in columns else answers.option_columns(row.values)
    filled = [row.values[x] for x in each if row.values[x] not in ("", None)]
    if "question" in got and filled:
        got |= {"options": filled, **({"from_0": True} if each[0].endswith("0") else {})}
    try:
        if from_text:
            got = _from_text(got, columns)
        clocks = [k for k in ("start", "end", "duration") if isinstance(got.get(k), str) and ":" in got[k]]
        got |= {k: _clock(got[k]) for k in clocks}
        frames = [x for x in IN_FRAMES if x in row.values]
        if frames and "start" not in got and "end" not in got:
            raise Bad("bad_window", f"{' and '.join(frames)} count pictures; give start and end in seconds")
    except Bad as bad:
        return reject(Row(row.where, {"id": got.get("id")}), bad.reason, str(bad))
    return _Cells(row.where, got, columns)


def columns_of(header: list[Any], source: Source) -> dict[str, str]:
    """Meaning -> column of this file; usual names in any case, with `_`, `-` or spaces."""
    own = source.config.columns
    for meaning in own:
        if meaning not in COLUMNS:
            close = difflib.get_close_matches(meaning, COLUMNS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COLUMNS)}"
            raise ConfigError(f"data.columns has unknown key {meaning!r}; {hint}")
        if source.reader == "csv" and own[meaning] not in header:
            raise DataError(f"{source.path} has no column {own[meaning]!r} (data.columns); it has: {', '.join(header)}")
    written = {re.sub(r"[\s\-]+", "_", x.strip().casefold()): x for x in reversed(header) if isinstance(x, str)}
    written |= {x: x for x in header if isinstance(x, str)}
    usual = {k: next((written[x] for x in names if x in written), None) for k, names in COLUMNS.items()}
    found = usual | {k: x if x in header else None for k, x in own.items()}
    taken = {column: meaning for meaning, column in own.items()}
    return {k: column for k, column in found.items() if column is not None and taken.get(column, k) == k}


def _convert(cells: _Cells, source: Source, first: int | None) -> Row | Rejected:
    """A row of this file as a row of a manifest."""
    got, own_id = cells.got, isinstance(cells.got.get("id"), (str, int)) and "question" not in cells.got
    try:
        values = {
            "id": got.get("id"),
            "split": got.get("split"),
            "start_s": got.get("start"),
            "end_s": got.get("end"),
            "duration_s": got.get("duration"),
        }
        values.update(_video(got, source))
        values["labels"], sets, left_out = _labels(cells, source, first)
    except Bad as bad:
        return reject(Row(cells.where, {"id": got.get("id")}), bad.reason, str(bad))
    values = {**values, "id": str(got["id"])} if own_id else with_id(values)
    return Row(cells.where, values, own_id, sets, left_out)


def _from_text(got: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """CSV cells as the types their meaning has."""
    typed = dict(got)
    for meaning in ("start", "end", "duration", "number"):
        if meaning in got and ":" not in got[meaning]:
            typed[meaning] = _float(got[meaning], columns[meaning])
    for meaning in ("options", "aliases"):
        if isinstance(got.get(meaning), str):
            typed[meaning] = answers.listed(got[meaning], LIST_MARK)
    if "label" in got and got.get("kind") == "number":
        typed["label"] = _float(got["label"], columns["label"])
    elif "label" in got and got.get("kind") == "interval":
        typed["label"] = [_float(x, columns["label"]) for x in answers.listed(got["label"], LIST_MARK)]
    elif "label" in got and got.get("kind") == "sequence":
        typed["label"] = answers.listed(got["label"], LIST_MARK)
    return typed


def _float(text: Any, column: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise Bad("wrong_type", f"column {column!r} must be a number, got {text!r}") from None


def _clock(text: str) -> float:
    """Seconds of `00:01:02.33` or `1:02`."""
    found = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)", text.strip())
    if found is None:
        raise Bad("wrong_type", f"a time must be seconds or read like 00:01:02.33, got {text[:60]!r}")
    return round(3600 * int(found[1] or 0) + 60 * int(found[2]) + float(found[3]), 6)


def _video(got: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """`path`; and no window where the file is the clip that was already cut out (Kinetics)."""
    named = got.get("video", got.get("youtube_id", got.get("id")))
    if named is None:
        raise Bad("missing_field", f"no video; looked for {', '.join(COLUMNS['video'])}; see data.columns")
    if not isinstance(named, str):
        named = str(named) if isinstance(named, int) else _wrong("video", named)
    if "video" not in got and "youtube_id" in got:
        cut = source.clips.kinetics(got, named)
        if cut is not None:
            return {"path": cut, "start_s": None, "end_s": None}
    return {"path": source.clips.find(named)}


def _labels(
    cells: _Cells, source: Source, first: int | None
) -> tuple[list[dict[str, Any]], dict[str, list[str]], list[str]]:
    """Labels of the row, the label sets that it declares itself (its options), and what was left out of it."""
    got, columns = cells.got, cells.columns
    if "timestamps" in got and "sentences" in got:
        found = segments.moments(got["timestamps"], got["sentences"], got.get("start"))
        return found.labels, {}, found.left_out
    if "question" in got and "answer" in got:
        made, sets = answers.label_of(got, first)
        return [made], sets, []
    if "conversations" in got:
        return _talk(got["conversations"])
    labels = [_named(got, columns, source)] if "label" in got else []
    left_out: list[str] = []
    if "number" in got and ("number" in source.config.columns or not labels and "segments" not in got):
        labels.append(
            {"kind": "number", "name": columns["number"], "value": got["number"], **_given(got, "unit", "event")}
        )
    if "segments" in got and ("label" not in got or segments.are(got["segments"])):
        found = segments.annotated(got["segments"], got.get("start"), source.class_names.of)
        labels += [x for x in found.labels if "label" not in got or x["kind"] != "class"]
        left_out = found.left_out
    if not labels:
        raise Bad("no_label", f"the row has no {'answer' if 'question' in got else 'label'}; see data.columns")
    return labels, {}, left_out


def _named(got: Mapping[str, Any], columns: Mapping[str, str], source: Source) -> dict[str, Any]:
    """The row's `label`, a class where the row does not say otherwise."""
    column, value = columns["label"], got["label"]
    name = got.get("name") or ("action" if column in ("label", "class", "action") else column)
    optional = _given(got, "unit", "event", "aliases", "question")
    # Of Something-Something: `label` has the objects filled in.
    if "kind" not in got and "placeholders" in got and isinstance(got.get("template"), str):
        value = re.sub(r"[\[\]]", "", got["template"])
    value = value if "kind" in got else source.class_names.of(value)
    return {"kind": got.get("kind", "class"), "name": name, "value": value, **optional}


def _given(got: Mapping[str, Any], *meanings: str) -> dict[str, Any]:
    return {k: got[k] for k in meanings if k in got}


def _talk(turns: Any) -> tuple[list[dict[str, Any]], dict[str, list[str]], list[str]]:
    """A label an exchange; what is asked with an answer that cannot be looked for is left out alone."""
    labels: list[dict[str, Any]] = []
    sets: dict[str, list[str]] = {}
    left_out: list[str] = []
    for asked in answers.talk(turns):
        try:
            label, listed = answers.label_of(asked, None)
        except Bad as bad:
            left_out.append(str(bad))
        else:
            labels.append(label)
            sets |= listed
    if not labels:
        raise Bad("no_label", f"the conversation has no answer that can be looked for: {left_out[0]}")
    return labels, sets, left_out


def _wrong(meaning: str, value: Any) -> str:
    raise Bad("wrong_type", f"{meaning} must be a string, got {str(value)[:60]!r}")
