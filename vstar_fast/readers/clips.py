"""Where a named clip lies: as the row says, else the one file below the data folder that is called so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from vstar_fast import clip_files
from vstar_fast.readers.rows import VIDEO_SUFFIXES, Bad

PREFIXES = ("", "v_", "video", "vid")
"""What file names have before the id that annotations give (ActivityNet, MSR-VTT, MSVD)."""


class Clips:
    """Clips below `root`. The folders are gone through once, when a row names a file that is not where it says."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, named: str) -> str:
        """Path from the root; `named` itself where there is no such file.

        Raises Bad where several files are called so.
        """
        if clip_files.is_url(named) or clip_files.is_member(named) or os.path.isabs(named) or self._there(named):
            return named
        stem, suffix = os.path.splitext(named)
        stem = stem if suffix.lower() in VIDEO_SUFFIXES else named
        for path in (f"{stem}{x}" for x in VIDEO_SUFFIXES if stem == named):
            if self._is_file(path):
                return path
        folder, _, name = stem.rpartition("/")
        for prefix in PREFIXES:
            hits = self._below(f"{folder}/{prefix}{name}".lstrip("/"))
            if len(hits) > 1:
                raise Bad("missing_file", f"{named!r} may be {hits[0]} or {hits[1]}; give the path from {self._root}")
            if hits:
                return hits[0]
        return named

    def kinetics(self, got: Mapping[str, Any], id: str) -> str | None:
        """The clip that was cut out of a video of Kinetics, `id_000001_000011.mp4`, in whatever folder."""
        try:
            name = f"{id}_{int(got['start']):06d}_{int(got['end']):06d}"
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        found = self.find(name)
        return None if found == name else found

    def _below(self, stem: str) -> list[str]:
        inner = f"/{stem}"
        return [
            x for x in self._by_name.get(stem.rpartition("/")[2], ()) if f"/{os.path.splitext(x)[0]}".endswith(inner)
        ]

    def _there(self, path: str) -> bool:
        try:
            return os.path.exists(self._root / path)
        except ValueError:
            return False

    def _is_file(self, path: str) -> bool:
        try:
            return os.path.isfile(self._root / path)
        except ValueError:
            return False

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in files(self._root, frozenset()):
            if isinstance(path, Path) and path.suffix.lower() in VIDEO_SUFFIXES:
                found.setdefault(path.stem, []).append(path.relative_to(self._root).as_posix())
        return found


def files(folder: Path, above: frozenset[str]) -> Iterator[Path | OSError]:
    """Files below, links followed; the error of a folder that cannot be listed.

    `above`: real paths of the folders around this one. A link back to one of them is left out: it adds no file.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        names = sorted(x for x in os.listdir(folder) if not x.startswith("."))
    except OSError as error:
        yield error
        return
    inner = {x for x in names if os.path.isdir(folder / x)}
    yield from (folder / x for x in names if x not in inner)
    for name in sorted(inner):
        yield from files(folder / name, above | {real})
