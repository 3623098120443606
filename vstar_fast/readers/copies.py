"""Files of the same content under several names: they share a split, lest a model is measured on what it learned."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from vstar_fast import clip_files
from vstar_fast.clip_errors import Unusable
from vstar_fast.records import LabeledVideo, Rejected

_HELD = ("train", "dev", "test")


def originals(paths: Iterable[str]) -> dict[str, str]:
    """Path -> the first path of the same content, for files on disk that are copies. Only equal sizes are read."""
    by_size: dict[int, list[str]] = {}
    for path in dict.fromkeys(paths):
        if os.path.isfile(path):
            by_size.setdefault(os.path.getsize(path), []).append(path)
    found: dict[str, str] = {}
    for alike in by_size.values():
        first: dict[str, str] = {}
        for path in alike if len(alike) > 1 else ():
            try:
                original = first.setdefault(clip_files.content_key(path), path)
            except (OSError, Unusable):  # reading its frames says why
                continue
            if original != path:
                found[path] = original
    return found


def parted(
    videos: Sequence[LabeledVideo], original: Mapping[str, str], where: Mapping[str, str]
) -> tuple[list[LabeledVideo], list[Rejected]]:
    """The videos without those of which a copy is held out further: of `test` before `dev` before `train`."""
    best: dict[tuple[str, float | None, float | None], LabeledVideo] = {}
    for video in videos:
        held = best.setdefault(_key(video, original), video)
        if _HELD.index(video.split) > _HELD.index(held.split):
            best[_key(video, original)] = video
    kept, rejected = [], []
    for video in videos:
        other = best[_key(video, original)]
        if other.split == video.split:
            kept.append(video)
        else:
            what = f"{where[video.id]}: split {video.split!r}, but {other.id!r} in {other.split!r} is the same clip"
            rejected.append(Rejected("read", video.id, "split_conflict", f"{what} under another name; left out here"))
    return kept, rejected


def _key(video: LabeledVideo, original: Mapping[str, str]) -> tuple[str, float | None, float | None]:
    return (original.get(video.path, video.path), video.start_s, video.end_s)
