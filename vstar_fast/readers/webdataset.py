"""WebDataset shards: members of a tar that share a name up to its first dot are one sample, read where they lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vstar_fast import clip_files
from vstar_fast.clip_errors import Unusable
from vstar_fast.errors import DataError
from vstar_fast.readers.rows import VIDEO_SUFFIXES, Bad, Row, reject, with_id
from vstar_fast.readers.source import Source
from vstar_fast.records import Rejected

LABELS = (".cls", ".txt")
"""Members that hold a class name as text, or a class number."""


def read(source: Source) -> tuple[dict[str, list[str]], Iterator[Row | Rejected]]:
    """Rows of every sample of a shard, or of all shards of a folder. Declares no label set.

    A sample is a video and either a `.json` with the fields of a manifest row (`labels`, `split`, `start_s`, ...; or
    `label`: a class name), or a `.cls` or `.txt` with a class name.
    """
    shards = sorted(source.path.glob("*.tar")) if source.path.is_dir() else [source.path]
    if not shards:
        raise DataError(f"{source.path} holds no .tar shard")
    return {}, (row for shard in shards for row in _shard(shard, source))


def _shard(shard: Path, source: Source) -> Iterator[Row | Rejected]:
    try:
        names = clip_files.members(str(shard))
    except (OSError, Unusable) as error:
        yield reject(Row(shard.name, {}), "unreadable_folder", f"the shard cannot be read: {error}")
        return
    samples: dict[str, list[str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        samples.setdefault(f"{folder}/{base.partition('.')[0]}".lstrip("/"), []).append(name)
    for key, members in samples.items():
        yield _sample(shard, source, key, members)


def _sample(shard: Path, source: Source, key: str, members: list[str]) -> Row | Rejected:
    where = f"{shard.name}{clip_files.MEMBER}{key}"
    videos = [n for n in members if os.path.splitext(n)[1].lower() in VIDEO_SUFFIXES]
    if len(videos) != 1:
        return reject(Row(where, {}), "not_video", f"a sample needs one video, this one has {len(videos)}")
    path = f"{os.path.relpath(shard, source.root)}{clip_files.MEMBER}{videos[0]}"
    try:
        values = _labels(shard, source, members)
    except Bad as bad:
        return reject(Row(where, {}), bad.reason, str(bad))
    except (ValueError, RecursionError, Unusable) as error:
        return reject(Row(where, {}), "bad_json", f"its .json or label is no UTF-8 JSON object or text: {error}")
    row = {**values, "path": path}
    return Row(where, row if "id" in row else with_id(row), own_id="id" in row)


def _labels(shard: Path, source: Source, members: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in members:
        suffix = os.path.splitext(name)[1].lower()
        if suffix == ".json":
            values = json.loads(_text(shard, name))
            if not isinstance(values, dict):
                raise ValueError(f"a row must be an object, got {type(values).__name__}")
        elif suffix in LABELS:
            values.setdefault("label", _text(shard, name).strip())
    label = values.pop("label", None)
    if label is not None and "labels" not in values:
        values["labels"] = [{"kind": "class", "name": "action", "value": source.class_names.of(label)}]
    return {"labels": [], **values}


def _text(shard: Path, member: str) -> str:
    return clip_files.read_bytes(f"{shard}{clip_files.MEMBER}{member}").decode()
