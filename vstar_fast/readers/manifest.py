"""The project's own format: a header line with the label sets, then one video a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vstar_fast.errors import DataError
from vstar_fast.readers.rows import Row, reject
from vstar_fast.readers.source import Source
from vstar_fast.records import Rejected

VERSION = 1
HEADER = ("vstar_manifest", "name", "label_sets", "meta")


def read(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """Declared label sets, and the rows. Raises DataError when the header cannot be used."""
    lines = json_lines(source.path)
    _, first = next(lines, (1, None))
    return _header(first, source.path), _rows(source.path, lines)


def has_header(path: Path) -> bool:
    """Whether the first line is (meant as) a manifest's header."""
    _, first = next(json_lines(path), (1, None))
    return isinstance(first, dict) and "vstar_manifest" in first


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line that is not blank; ValueError objects for lines that are not JSON.

    Bytes that are not UTF-8 come through as lone surrogates, for the row check to name them.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, 1):
                line = line.lstrip("\ufeff") if number == 1 else line
                if line.strip():
                    yield number, parse(line)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def parse(text: str) -> Any:
    """The JSON value of `text`, or the ValueError (returned, not raised) that says what is wrong with it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))


def row_of(where: str, value: Any) -> Row | Rejected:
    """A row of a parsed line, or why it is none."""
    if isinstance(value, ValueError):
        return reject(Row(where, {}), "bad_json", f"not JSON: {value}")
    if not isinstance(value, dict):
        return reject(Row(where, {}), "bad_json", f"a row must be a JSON object, got {type(value).__name__}")
    return Row(where, value)


def _rows(path: Path, lines: Iterator[tuple[int, Any]]) -> Iterator[Row | Rejected]:
    for number, value in lines:
        yield row_of(f"{path.name} line {number}", value)


def _header(value: Any, path: Path) -> dict[str, list[str]]:
    example = '{"vstar_manifest": 1, "name": "my clips", "label_sets": {"actions": ["run", "jump"]}}'
    if not isinstance(value, dict) or "vstar_manifest" not in value:
        raise DataError(f"{path} line 1 is not a manifest header; it must be like {example}")
    if value["vstar_manifest"] != VERSION:
        raise DataError(f"{path} is manifest version {value['vstar_manifest']!r}; this program reads version {VERSION}")
    unknown = [key for key in value if key not in HEADER]
    if unknown:
        raise DataError(f"{path} line 1 has unknown header field {unknown[0]!r}; known: {', '.join(HEADER)}")
    sets = value.get("label_sets", {})
    if not isinstance(sets, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in sets.values()
    ):
        raise DataError(f"{path} line 1: label_sets must map names to lists of labels, like {example}")
    return sets
