"""CSV, JSON lines and JSON: rows whose columns are named by `data.columns` or by usual names.

Known shapes: video + label (Kinetics: `label,youtube_id,time_start,time_end,split`), video + question + answer,
question + options + answer (a `choice`), video + timestamps + sentences (intervals), and manifest rows.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vstar_fast.errors import ConfigError, DataError
from vstar_fast.readers.manifest import json_lines, parse, row_of
from vstar_fast.readers.rows import VIDEO_SUFFIXES, Bad, Row, Source, first_existing, question_words, reject, with_id
from vstar_fast.records import Rejected

# What a column means -> the names it usually has, first match wins. `data.columns` goes before these.
COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("video", "path", "video_path", "file_name", "filename", "file", "clip", "video_id", "video_name"),
    "youtube_id": ("youtube_id", "ytid"),
    "label": ("label", "class", "action", "category"),
    "split": ("split", "subset"),
    "start": ("start_s", "start", "time_start", "start_time"),
    "end": ("end_s", "end", "time_end", "end_time"),
    "duration": ("duration_s", "duration"),
    "id": ("id",),
    "question": ("question", "problem"),
    "answer": ("answer", "solution"),
    "options": ("options", "choices"),
    "kind": ("kind",),
    "name": ("name", "label_name"),
    "unit": ("unit",),
    "event": ("event",),
    "aliases": ("aliases",),
    "timestamps": ("timestamps",),
    "sentences": ("sentences",),
}
LIST_MARK = "|"
"""Parts the items of a list in a CSV cell: `run|jump|backflip`."""


def read_csv(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """Rows of a CSV file with a header line; `,`, `;` or tab, whichever the header has most of."""
    lines = _text_lines(source.path)
    first = lines[0] if lines else ""
    delimiter = max(",;\t", key=first.count)
    records = _csv_records(lines, delimiter)
    _, header = next(records, (1, []))
    if not isinstance(header, list) or not any(x.strip() for x in header):
        raise DataError(f"{source.path} has no header line with column names")
    header = [x.strip() for x in header]
    columns = _columns(header, source)
    if not {"video", "youtube_id", "id"} & columns.keys():
        raise DataError(
            f"{source.path} has no column for the video (looked for {', '.join(COLUMNS['video'])}); "
            f'name it in data.columns, e.g. columns = {{video = "{header[0]}"}}; it has: {", ".join(header)}'
        )
    return {}, _csv_rows(source, header, columns, records)


def read_jsonl(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """One object a line."""
    return {}, _json_rows(source, json_lines(source.path), "line")


def read_json(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """A list of objects, or an object of objects whose keys name the videos."""
    value = parse("".join(_text_lines(source.path)))
    if isinstance(value, ValueError):
        raise DataError(f"{source.path} is not JSON: {value}")
    if isinstance(value, dict):
        value = [{"id": k, **v} if isinstance(v, dict) else v for k, v in value.items()]
    if not isinstance(value, list):
        raise DataError(f"{source.path} must hold a list of rows or an object of rows by video")
    return {}, _json_rows(source, iter(enumerate(value, 1)), "row")


def _text_lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    how = ("utf-16", "replace") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8", "surrogateescape")
    return list(io.StringIO(data.decode(*how).removeprefix("\ufeff"), newline=""))


def _csv_records(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Line number and fields; after a record that cannot be read (an open quote), goes on with the next line."""
    start = 0
    while start < len(lines):
        reader = csv.reader(itertools.islice(lines, start, None), delimiter=delimiter, strict=True)
        done = 0
        try:
            for fields in reader:
                if fields:
                    yield start + done + 1, fields
                done = reader.line_num
            return
        except csv.Error as error:
            yield start + done + 1, error
            start += done + 1


def _csv_rows(
    source: Source,
    header: list[str],
    columns: Mapping[str, str],
    records: Iterator[tuple[int, list[str] | csv.Error]],
) -> Iterator[Row | Rejected]:
    for number, fields in records:
        where = f"{source.path.name} line {number}"
        if isinstance(fields, csv.Error):
            yield reject(Row(where, {}), "bad_csv", f"{fields}; check the quotes")
        elif len(fields) != len(header):
            what = f"{len(fields)} columns, but the header has {len(header)}; quote text that holds the separator"
            yield reject(Row(where, {}), "bad_csv", what)
        else:
            cells = dict(zip(header, (x.strip() for x in fields), strict=True))
            yield _convert(where, cells, columns, source, from_text=True)


def _json_rows(source: Source, lines: Iterator[tuple[int, Any]], unit: str) -> Iterator[Row | Rejected]:
    for number, value in lines:
        row = row_of(f"{source.path.name} {unit} {number}", value)
        if isinstance(row, Rejected) or "labels" in row.values:
            yield row
        else:
            yield _convert(row.where, row.values, _columns(list(row.values), source), source, from_text=False)


def _columns(header: list[str], source: Source) -> dict[str, str]:
    """Meaning -> column of this file."""
    own = source.config.columns
    for meaning in own:
        if meaning not in COLUMNS:
            close = difflib.get_close_matches(meaning, COLUMNS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COLUMNS)}"
            raise ConfigError(f"data.columns has unknown key {meaning!r}; {hint}")
        if source.reader == "csv" and own[meaning] not in header:
            raise DataError(f"{source.path} has no column {own[meaning]!r} (data.columns); it has: {', '.join(header)}")
    names = {meaning: (own[meaning],) if meaning in own else usual for meaning, usual in COLUMNS.items()}
    found = {meaning: next((x for x in usual if x in header), None) for meaning, usual in names.items()}
    return {meaning: column for meaning, column in found.items() if column is not None}


def _convert(
    where: str, cells: Mapping[str, Any], columns: Mapping[str, str], source: Source, *, from_text: bool
) -> Row | Rejected:
    """A row of this file as a row of a manifest."""
    got = {meaning: cells[column] for meaning, column in columns.items() if cells[column] not in ("", None)}
    row = Row(where, {"id": got.get("id")})
    try:
        if from_text:
            got = _from_text(got, columns)
        values = {
            "id": got.get("id"),
            "split": got.get("split"),
            "start_s": got.get("start"),
            "end_s": got.get("end"),
            "duration_s": got.get("duration"),
        }
        values.update(_video(got, source))
        values["labels"], sets = _labels(got, columns)
    except Bad as bad:
        return reject(row, bad.reason, str(bad))
    own_id = "id" in got and isinstance(got["id"], (str, int)) and not got.get("question")
    values = {**values, "id": str(got["id"])} if own_id else with_id(values)
    return Row(where, values, own_id, sets)


def _from_text(got: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """CSV cells as the types their meaning has."""
    typed = dict(got)
    for meaning in ("start", "end", "duration"):
        if meaning in got:
            typed[meaning] = _float(got[meaning], columns[meaning])
    for meaning in ("options", "aliases"):
        if meaning in got:
            typed[meaning] = _items(got[meaning])
    if "label" in got and got.get("kind") == "number":
        typed["label"] = _float(got["label"], columns["label"])
    elif "label" in got and got.get("kind") == "interval":
        typed["label"] = [_float(x, columns["label"]) for x in _items(got["label"])]
    elif "label" in got and got.get("kind") == "sequence":
        typed["label"] = _items(got["label"])
    return typed


def _items(cell: str) -> list[str]:
    return [x.strip() for x in cell.split(LIST_MARK)]


def _float(text: str, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Bad("wrong_type", f"column {column!r} must be a number, got {text!r}") from None


def _video(got: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """`path`; and no window where the file is the clip that was already cut out (Kinetics)."""
    named = got.get("video", got.get("youtube_id", got.get("id")))
    if named is None:
        raise Bad("missing_field", f"no video; looked for {', '.join(COLUMNS['video'])}; see data.columns")
    if not isinstance(named, str):
        named = str(named) if isinstance(named, int) else _wrong("video", named)
    if "video" not in got and "youtube_id" in got:
        cut = first_existing(source.root, _kinetics_names(got, str(named)))
        if os.path.isfile(source.root / cut):
            return {"path": cut, "start_s": None, "end_s": None}
    if os.path.splitext(named)[1].lower() in VIDEO_SUFFIXES:
        return {"path": named}
    return {"path": first_existing(source.root, [named, *(named + x for x in VIDEO_SUFFIXES)])}


def _kinetics_names(got: Mapping[str, Any], id: str) -> Iterator[str]:
    """Where a Kinetics clip may lie: flat, by class, by split, or both; class folders with spaces or `_`."""
    try:
        name = f"{id}_{int(got['start']):06d}_{int(got['end']):06d}"
    except (KeyError, TypeError, ValueError, OverflowError):
        return
    label, split = str(got.get("label", "")), str(got.get("split", ""))
    folders = ["", label, label.replace(" ", "_")]
    for top in dict.fromkeys(["", split, "val" if split.startswith("val") else split]):
        for folder in dict.fromkeys(folders):
            for suffix in (".mp4", ".mkv", ".webm"):
                yield "/".join(x for x in (top, folder, name + suffix) if x)


def _labels(got: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Labels of the row, and the label sets that it declares itself (its options)."""
    if "timestamps" in got and "sentences" in got:
        return _moments(got["timestamps"], got["sentences"]), {}
    if "question" in got and "answer" in got:
        options = _options(got["options"]) if "options" in got else []
        made = _question_label(got, options)
        return [made], {made["set"]: options} if options else {}
    if "label" not in got:
        raise Bad("no_label", f"the row has no {'answer' if 'question' in got else 'label'}; see data.columns")
    column = columns["label"]
    name = got.get("name") or ("action" if column in ("label", "class", "action") else column)
    optional = {k: got[k] for k in ("unit", "event", "aliases", "question") if k in got}
    return [{"kind": got.get("kind", "class"), "name": name, "value": got["label"], **optional}], {}


def _question_label(got: Mapping[str, Any], options: list[str]) -> dict[str, Any]:
    """An `answer`; a `choice` over the row's options when there are any."""
    question, answer = question_words(got["question"]), got["answer"]
    if isinstance(answer, str):
        answer = re.sub(r"^\s*<answer>(.*)</answer>\s*$", r"\1", answer, flags=re.S).strip()
    optional = {k: got[k] for k in ("unit", "event", "aliases") if k in got}
    label = {"kind": got.get("kind", "answer"), "name": got.get("name", "answer"), "question": question, **optional}
    if not options:
        return {**label, "value": answer}
    chosen = _chosen(answer, options)
    digest = hashlib.blake2b("\0".join(options).encode(errors="replace"), digest_size=4).hexdigest()
    asked = f"{question} Options: {', '.join(options)}."
    return {**label, "kind": "choice", "value": chosen, "set": f"options-{digest}", "question": asked}


def _options(given: Any) -> list[str]:
    """Option texts without their letters, from strings or from objects with a `choice`."""
    items = [x.get("choice") if isinstance(x, dict) else x for x in given] if isinstance(given, list) else None
    if not items or not all(isinstance(x, str) for x in items):
        raise Bad("wrong_type", f"options must be a list of strings, got {str(given)[:60]!r}")
    return [re.sub(r"^\s*\(?[A-Za-z][.):]\s+", "", str(x)).strip() for x in items]


def _chosen(answer: Any, options: list[str]) -> str:
    """The option an answer names: by its letter, its text, or both."""
    text = str(answer).strip()
    letter = re.fullmatch(r"\(?([A-Za-z])[.):]?(\s.*)?", text, flags=re.S)
    by_text = {x.casefold(): x for x in options}
    bare = re.sub(r"^\(?[A-Za-z][.):]\s+", "", text)
    for words in (text, bare):
        if words.casefold() in by_text:
            return by_text[words.casefold()]
    index = ord(letter[1].upper()) - ord("A") if letter and not letter[2] else -1
    if 0 <= index < len(options):
        return options[index]
    raise Bad("not_in_label_set", f"answer {text[:60]!r} is none of the options {', '.join(options)[:120]!r}")


def _moments(timestamps: Any, sentences: Any) -> list[dict[str, Any]]:
    if not isinstance(timestamps, list) or not isinstance(sentences, list) or len(timestamps) != len(sentences):
        raise Bad("wrong_type", "timestamps and sentences must be lists of one length")
    pairs = zip(timestamps, sentences, strict=True)
    return [{"kind": "interval", "name": "moment", "value": t, "event": s} for t, s in pairs]


def _wrong(meaning: str, value: Any) -> str:
    raise Bad("wrong_type", f"{meaning} must be a string, got {str(value)[:60]!r}")
