"""CSV, JSON lines and JSON: rows whose columns are named by `data.columns` or by usual names.

Known shapes: video + label (Kinetics: `label,youtube_id,time_start,time_end,split`), video + question + answer,
question + options + answer (a `choice`), conversations, video + timestamps + sentences or annotated segments
(intervals), video + number, and manifest rows.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vstar_fast.errors import DataError
from vstar_fast.readers.cells import COLUMNS, LABELLED, columns_of, converted
from vstar_fast.readers.manifest import json_lines, parse, row_of
from vstar_fast.readers.rows import Row, reject
from vstar_fast.readers.source import Source
from vstar_fast.records import Rejected

WRAPPERS = ("database", "data", "annotations", "videos", "questions", "rows", "items")
"""Keys under which a JSON object may hold its rows, beside others that are none (ActivityNet, COIN)."""


def read_csv(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """Rows of a CSV file with a header line; `,`, `;` or tab, whichever the header has most of."""
    lines = text_lines(source.path)
    first = lines[0] if lines else ""
    delimiter = max(",;\t", key=first.count)
    records = _csv_records(lines, delimiter)
    _, header = next(records, (1, []))
    if not isinstance(header, list) or not any(x.strip() for x in header):
        raise DataError(f"{source.path} has no header line with column names")
    header = [x.strip() for x in header]
    columns = columns_of(header, source)
    listed = ", ".join(header)
    if not {"video", "youtube_id", "id"} & columns.keys():
        raise DataError(
            f"{source.path} has no column for the video (looked for {', '.join(COLUMNS['video'])}); "
            f'name it in data.columns, e.g. columns = {{video = "{header[0]}"}}; it has: {listed}; '
            "a list without a header line, a path and its class in each, can be read as a .txt file"
        )
    if not set(LABELLED) & columns.keys():
        raise DataError(
            f"{source.path} has no column for the label (looked for {', '.join(COLUMNS['label'])}); name it in "
            f'data.columns, e.g. columns = {{label = "{header[-1]}"}} for a class or columns = '
            f'{{number = "{header[-1]}"}} for a score; it has: {listed}'
        )
    return {}, converted(_csv_rows(source, header, records), source, from_text=True)


def read_jsonl(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """One object a line."""
    return {}, converted(_json_rows(source, json_lines(source.path), "line"), source, from_text=False)


def read_json(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """A list of objects, or an object of objects whose keys name the videos; either may stand under a usual key."""
    value = parse("".join(text_lines(source.path)))
    if isinstance(value, ValueError):
        raise DataError(f"{source.path} is not JSON: {value}")
    value = _unwrapped(value)
    if isinstance(value, dict):
        value = [{"id": k, **v} if isinstance(v, dict) else v for k, v in value.items()]
    if not isinstance(value, list):
        raise DataError(f"{source.path} must hold a list of rows or an object of rows by video")
    return {}, converted(_json_rows(source, iter(enumerate(value, 1)), "row"), source, from_text=False)


def _unwrapped(value: Any) -> Any:
    """The rows of an object that holds them under a usual key, beside what is no row."""
    inner = (value[k] for k in WRAPPERS if k in value) if isinstance(value, dict) else ()
    for rows in inner:
        held = rows.values() if isinstance(rows, dict) else rows if isinstance(rows, list) else ()
        if held and all(isinstance(x, dict) for x in held):
            return rows
    return value


def text_lines(path: Path) -> list[str]:
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
    source: Source, header: list[str], records: Iterator[tuple[int, list[str] | csv.Error]]
) -> Iterator[Row | Rejected]:
    for number, fields in records:
        where = f"{source.path.name} line {number}"
        if isinstance(fields, csv.Error):
            yield reject(Row(where, {}), "bad_csv", f"{fields}; check the quotes")
        elif len(fields) != len(header):
            what = f"{len(fields)} columns, but the header has {len(header)}; quote text that holds the separator"
            yield reject(Row(where, {}), "bad_csv", what)
        else:
            yield Row(where, dict(zip(header, (x.strip() for x in fields), strict=True)))


def _json_rows(source: Source, lines: Iterator[tuple[int, Any]], unit: str) -> Iterator[Row | Rejected]:
    return (row_of(f"{source.path.name} {unit} {number}", value) for number, value in lines)
