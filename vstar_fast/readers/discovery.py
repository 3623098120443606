"""From the data settings to what is read: which reader takes a path, and which split its rows without one have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vstar_fast.config import DataConfig
from vstar_fast.errors import DataError
from vstar_fast.readers import manifest
from vstar_fast.readers.source import Source
from vstar_fast.readers.splits import SPLIT_NAMES, split_of_name

BY_SUFFIX = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "jsonl", ".txt": "list", ".tar": "webdataset"}
TABLES = (".csv", ".tsv", ".json", ".jsonl")
CHOSEN = "data.reader says so"
METADATA = {"metadata.csv": "csv", "metadata.jsonl": "jsonl"}
CONVERT = {
    ".parquet": "write its rows as JSON lines, e.g. with pandas: read_parquet(FILE).to_json(OUT, orient='records', "
    "lines=True); clips that it holds themselves as files",
    ".pkl": "a pickle can run any code when it is read; write its rows as JSON lines or CSV with video and label",
}


def sources(config: DataConfig) -> list[Source]:
    """Every source of `path` and `extra`.

    Of several, those whose names say a split (`train.csv`, `val_1.json`, `testlist01.txt`) have it for rows without
    one, if any is left for training. Raises DataError for a path that cannot be read.
    """
    found = [s for text in (config.path, *config.extra) for s in _of(Path(text).expanduser(), config)]
    named = [split_of_name(_told(s.path)) for s in found]
    if len(found) < 2 or not {None, "train"} & set(named):
        return found
    return [dataclasses.replace(s, split=split) for s, split in zip(found, named, strict=True)]


def is_table(path: Path) -> bool:
    """Whether a file may hold rows about clips."""
    return path.is_file() and path.suffix.lower() in TABLES


def _told(path: Path) -> str:
    return path.parent.name if path.name in (*METADATA, "manifest.jsonl") else path.stem


def _of(path: Path, config: DataConfig) -> list[Source]:
    if not path.exists():
        raise DataError(f"data path {path} does not exist; check data.path and data.extra")
    root = Path(config.root).expanduser() if config.root else path if path.is_dir() else path.parent
    if not root.is_dir():
        raise DataError(f"data.root {root} is not a folder")
    if config.reader == "auto" and path.is_dir():
        inner = [x for x in sorted(path.iterdir()) if x.name.lower() in SPLIT_NAMES and x.is_dir()]
        parts = [x / name for x in inner for name in METADATA if (x / name).is_file()]
        tables = [x for x in sorted(path.iterdir()) if is_table(x) and split_of_name(x.stem)]
        if not any((path / name).is_file() for name in ("manifest.jsonl", *METADATA)) and (parts or tables):
            inside = config if parts else dataclasses.replace(config, root=str(root))
            return [s for x in parts or tables for s in _of(x, inside)]
    reader, path, why = _pick(path, config.reader)
    return [Source(path, root.resolve(), reader, why, config)]


def _pick(path: Path, reader: str) -> tuple[str, Path, str]:
    """Reader, the path it is to read, and why."""
    if reader != "auto":
        inner = path / "manifest.jsonl"
        return reader, inner if reader == "manifest" and inner.is_file() else path, CHOSEN
    if path.is_dir():
        for name, found in {"manifest.jsonl": "manifest", **METADATA}.items():
            if (path / name).is_file():
                return found, path / name, f"the folder holds a {name}"
        if any(path.glob("*.tar")):
            return "webdataset", path, "the folder holds .tar shards"
        return "folder", path, "it is a folder without a manifest.jsonl or metadata file"
    suffix = path.suffix.lower()
    if suffix == ".jsonl" and manifest.has_header(path):
        return "manifest", path, "its first line is a manifest header"
    if suffix not in BY_SUFFIX:
        kinds = f"neither a folder nor {', '.join(list(BY_SUFFIX)[:-1])} or .tar"
        remedy = CONVERT.get(suffix, f"set data.reader to one of {', '.join(dict.fromkeys(BY_SUFFIX.values()))}")
        raise DataError(f"cannot tell how to read {path}: it is {kinds}; {remedy}")
    return BY_SUFFIX[suffix], path, f"its name ends in {suffix}"
