"""A text file with one clip a line: its path, and its class by name or number, or by the folder that it lies in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vstar_fast.errors import DataError
from vstar_fast.readers.folder import class_label
from vstar_fast.readers.names import is_number
from vstar_fast.readers.rows import VIDEO_SUFFIXES, Bad, Row, reject, with_id
from vstar_fast.readers.source import Source
from vstar_fast.readers.splits import SPLIT_NAMES
from vstar_fast.readers.tables import text_lines
from vstar_fast.records import Rejected

_CLIP = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))(?:[\s,;]+(.*))?", re.IGNORECASE)
_OTHER = re.compile(r"(.*?)(?:[\t,;]\s*| +(?=\S+$))(.*)")
_FRAMES = re.compile(r"\d+-\d+\s+\S+")


def read(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """Rows of a list: `ApplyEyeMakeup/v_01.avi 1` (UCF101), `a.mp4,run`, or paths alone. Declares no label set."""
    lines = [(n, x.strip()) for n, x in enumerate(text_lines(source.path), 1) if x.strip()]
    if lines and all(_FRAMES.fullmatch(x) for _, x in lines):
        raise DataError(
            f"{source.path} lists segments in pictures (`{lines[0][1]}`); write a CSV file with video, label, start "
            "and end in seconds"
        )
    if re.search(r"_test_split\d$", source.path.stem):
        raise DataError(
            f"{source.path} is a split of HMDB51, whose numbers say train, test or neither, not the class; give the "
            "folder of class folders, or write a CSV file with video, label and split"
        )
    return {}, (_row(f"{source.path.name} line {number}", line, source) for number, line in lines)


def _row(where: str, line: str, source: Source) -> Row | Rejected:
    found = _CLIP.fullmatch(line) or _OTHER.fullmatch(line)
    named, label = (found[1].strip(), (found[2] or "").strip()) if found else (line, "")
    try:
        values = with_id({"path": source.clips.find(named)})
        return Row(where, {**values, "labels": [_label(named, label, source)]}, own_id=False)
    except Bad as bad:
        return reject(Row(where, {}), bad.reason, str(bad))


def _label(named: str, label: str, source: Source) -> dict[str, Any]:
    if re.fullmatch(r"[\d.,+\-\s]+", label) and not is_number(label):
        raise Bad("bad_label", f"{label!r} after the path is several numbers; write the path and its class")
    value = source.class_names.of(label)
    if not value:
        folder = named.rpartition("/")[0].rpartition("/")[2]
        if not folder or folder.lower() in SPLIT_NAMES:
            raise Bad("no_label", "the line has no class, and the path no class folder")
        value = folder
    return class_label(value)
