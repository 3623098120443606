"""One sub-folder a class, below optional split folders: `train/ApplyEyeMakeup/v_01.avi`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from vstar_fast.errors import DataError
from vstar_fast.readers.clips import files
from vstar_fast.readers.rows import VIDEO_SUFFIXES, Row, is_utf8, reject, with_id
from vstar_fast.readers.source import Source
from vstar_fast.readers.splits import SPLIT_NAMES
from vstar_fast.records import Rejected

_WORD_STARTS = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\d_A-Z])|(?<=[0-9])(?=[A-Z])")


def read(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """Rows of every file below the folder, in order of their paths. Declares no label set."""
    if not source.path.is_dir():
        raise DataError(f"{source.path} is not a folder; the folder reader needs one sub-folder per class")
    return {}, _rows(source)


def class_words(folder: str) -> str:
    """The label a folder name stands for: `ApplyEyeMakeup` -> `apply eye makeup`, `push-up_2` -> `push up 2`."""
    text = " ".join(re.split(r"[\s_\-]+", folder)).strip()
    words = _WORD_STARTS.sub(" ", text).split()
    return " ".join(w.lower() if w[:1].isupper() and w[1:] == w[1:].lower() and len(words) > 1 else w for w in words)


def _rows(source: Source) -> Iterator[Row | Rejected]:
    for path in files(source.path, frozenset()):
        if isinstance(path, OSError):
            where = os.path.join(source.path.name, os.path.relpath(path.filename, source.path))
            what = f"the folder cannot be listed: {path.strerror}; make it readable or move it away"
            yield reject(Row(where, {}), "unreadable_folder", what)
            continue
        parts = path.relative_to(source.path).parts
        split = SPLIT_NAMES.get(parts[0].lower()) if len(parts) > 2 else None
        where = f"{source.path.name}/{'/'.join(parts)}"
        row = Row(where, with_id({"path": "/".join(parts)}), own_id=False)
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            yield reject(row, "not_video", f"{path.suffix or 'a name without ending'} is no known video file type")
            continue
        if not is_utf8(where):
            yield reject(row, "not_utf8", "the name of the file or of its folder is not UTF-8; rename it")
            continue
        folders = parts[1:-1] if split else parts[:-1]
        if not folders:
            yield reject(row, "no_label", "the file lies in no class folder; move it into one named after its class")
            continue
        path_text = os.path.relpath(path, source.root)
        yield row._replace(
            values={**row.values, "path": path_text, "split": split, "labels": [class_label(folders[0])]}
        )


def class_label(folder: str) -> dict[str, Any]:
    """The label of a class folder."""
    return {"kind": "class", "name": "action", "value": class_words(folder), "aliases": _aliases(folder)}


def _aliases(folder: str) -> list[str]:
    """The folder's own name, where joining its words cannot be undone by case and separators alone."""
    joined = " ".join(re.split(r"[\s_\-]+", folder)).strip()
    return [joined] if joined.casefold() != class_words(folder).casefold() else []
