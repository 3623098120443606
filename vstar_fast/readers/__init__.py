"""Labelled videos from what lies on disk: a manifest, a folder per class, CSV, JSON lines or JSON.

Every reader turns its format into rows of the manifest's form; one place (`rows.py`) checks them. A bad row
is one `Rejected` with file and row number, and reading goes on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator

from vstar_fast.config import DataConfig
from vstar_fast.errors import ConfigError, DataError
from vstar_fast.readers import folder, lists, manifest, tables, webdataset
from vstar_fast.readers.copies import originals, parted
from vstar_fast.readers.discovery import CHOSEN, is_table, sources
from vstar_fast.readers.rows import REASONS, Row, build, merge_key
from vstar_fast.readers.sets import LabelSets
from vstar_fast.readers.source import Source
from vstar_fast.readers.splits import SPLIT_NAMES, assign_splits
from vstar_fast.records import LabeledVideo, Rejected

__all__ = ["READERS", "REASONS", "read"]

Reader = Callable[[Source], tuple[dict[str, list[str]], Iterator[Row | Rejected]]]

# Open table: a new format is one entry, giving declared label sets and rows in the manifest's form.
READERS: dict[str, Reader] = {
    "manifest": manifest.read,
    "folder": folder.read,
    "csv": tables.read_csv,
    "jsonl": tables.read_jsonl,
    "json": tables.read_json,
    "list": lists.read,
    "webdataset": webdataset.read,
}


def read(config: DataConfig, *, seed: int = 0) -> tuple[list[LabeledVideo], list[Rejected], dict[str, tuple[str, ...]]]:
    """Videos of `path` and `extra` with unique ids, the rejected rows, and the closed label sets by name.

    Files without a split, and splits the data lacks, are filled by hash of (seed, file); copies of a file go together,
    and are left out where a copy is held out. Raises DataError when
    a path or header cannot be read or when no usable video is left, naming the commonest reasons.
    """
    if not config.path:
        raise ConfigError("data.path is empty; set it to a manifest.jsonl, a CSV/JSON file or a folder of videos")
    shelf = _Shelf(config)
    for source in sources(config):
        shelf.add(source)
    if not shelf.videos:
        raise DataError(_nothing_left(shelf))
    _check_folders(shelf)
    _take_split_folders(shelf)
    original = originals(v.path for v in shelf.videos.values())
    videos = assign_splits(shelf.videos, shelf.named_split, shelf.file_keys, original, config, seed)
    videos, copies = parted(videos, original, shelf.where)
    return videos, shelf.rejected + copies, shelf.sets.result()


class _Shelf:
    """What has been read so far: videos by id, so that ids stay unique over all sources."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.videos: dict[str, LabeledVideo] = {}
        self.rejected: list[Rejected] = []
        self.sets = LabelSets()
        self.named_split: set[str] = set()
        self.file_keys: dict[str, str] = {}
        self.sources: list[Source] = []
        self.where: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._by_window: dict[tuple[str, float | None, float | None], str] = {}
        self._taken_before: set[str] = set()

    def add(self, source: Source) -> None:
        self.sources.append(source)
        declared, rows = READERS[source.reader](source)
        self.rejected += self.sets.declare(declared, source.path.name)
        self._taken_before = set(self.videos)
        for row in rows:
            if isinstance(row, Rejected):
                self.rejected.append(row)
                continue
            self.rejected += self.sets.declare(row.sets, row.where)
            if source.split and not row.values.get("split"):
                row = row._replace(values={**row.values, "split": source.split})
            made = build(row, source, self.sets)
            if isinstance(made, Rejected):
                self.rejected.append(made)
            else:
                self._put(made, row, source)
                self.rejected += [Rejected("read", made.id, "bad_label", f"{row.where}: {x}") for x in row.left_out]

    def _put(self, video: LabeledVideo, row: Row, source: Source) -> None:
        if not row.own_id and video.id in self._taken_before:
            video = dataclasses.replace(video, id=f"{source.name}/{video.id}")
        window = merge_key(video)
        first = self._by_window.get(window)
        if first is not None and all(label.question for label in video.labels):
            self._merge(first, video, row)
        elif first is not None:
            what = f"the same file and window as {self.where[first]}; put all labels of a video into one row"
            self._reject(video, "duplicate_video", row, what)
        elif video.id in self.videos:
            what = f"id {video.id!r} is already taken by {self.where[video.id]}; ids must be unique"
            self._reject(video, "duplicate_id", row, what)
        else:
            self.videos[video.id] = video
            self.where[video.id] = row.where
            self._by_window[window] = video.id
            self.file_keys[video.id] = self._keys.setdefault(video.path, source.relative(video.path))
            if row.values.get("split"):
                self.named_split.add(video.id)
            self.sets.note(video)

    def _merge(self, first: str, video: LabeledVideo, row: Row) -> None:
        """A further question about a video that is already there; the first split that a row names is the video's."""
        held = self.videos[first]
        if row.values.get("split"):
            if first in self.named_split and video.split != held.split:
                earlier = f"but the video of {self.where[first]} is already in {held.split!r}"
                self._reject(
                    video, "split_conflict", row, f"split {video.split!r}, {earlier}; name one for all its rows"
                )
                return
            self.named_split.add(first)
            self.videos[first] = held = dataclasses.replace(held, split=video.split)
        new = tuple(label for label in video.labels if label not in held.labels)
        if not new:
            self._reject(video, "duplicate_video", row, f"the same video and question as {self.where[first]}")
            return
        self.videos[first] = dataclasses.replace(held, labels=held.labels + new)
        self.sets.note(self.videos[first])

    def _reject(self, video: LabeledVideo, reason: str, row: Row, what: str) -> None:
        self.rejected.append(Rejected("read", video.id, reason, f"{row.where}: {what}"))


def _take_split_folders(shelf: _Shelf) -> None:
    """Take `train/`, `test/`, ... at the head of paths for the split of rows that name none, where they are several."""
    folders = {id: shelf.file_keys[id].partition("/")[0].lower() for id in shelf.videos if id not in shelf.named_split}
    told = {id: SPLIT_NAMES[x] for id, x in folders.items() if x in SPLIT_NAMES}
    if "train" in told.values() and len(set(told.values())) > 1:
        for id, split in told.items():
            shelf.videos[id] = dataclasses.replace(shelf.videos[id], split=split)
        shelf.named_split |= told.keys()


def _check_folders(shelf: _Shelf) -> None:
    """Raise DataError for a folder whose only class is the folder of the clips that a table beside it is about."""
    names = {label.value for video in shelf.videos.values() for label in video.labels}
    for source in shelf.sources:
        tables = [x for x in sorted(source.path.iterdir()) if is_table(x)] if source.reader == "folder" else []
        if tables and len(names) == 1 and source.why != CHOSEN:
            raise DataError(
                f"{source.path} read as class folders has one class, {names.pop()!r}, and {tables[0].name} lies beside "
                f'it: give {tables[0]} as the data, or say data.reader = "folder" if that is the class'
            )


def _nothing_left(shelf: _Shelf) -> str:
    read_as = "; ".join(f"{s.path} read as {s.reader!r}, because {s.why}" for s in shelf.sources)
    if not shelf.rejected:
        return f"no videos found ({read_as})"
    counts = Counter(r.reason for r in shelf.rejected).most_common(3)
    first = {reason: next(r.detail for r in shelf.rejected if r.reason == reason) for reason, _ in counts}
    reasons = "; ".join(f"{n} x {reason}, e.g. {first[reason]}" for reason, n in counts)
    return f"no usable video is left of {len(shelf.rejected)} rows ({read_as}): {reasons}"
