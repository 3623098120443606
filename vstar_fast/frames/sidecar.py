"""Indices and looks of files, kept by content: a file is demuxed once, whoever asks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from vstar_fast.cache import Cache, Entry
from vstar_fast.files import content_key
from vstar_fast.frames.index import Index
from vstar_fast.frames.job import Look
from vstar_fast.frames.picture import Turn

FORMAT = 1
"""Version of the index and of the look."""


class Sidecar:
    """What is known of files by the key of their content; without a cache nothing is."""

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache

    def index(self, content: str) -> Index | None:
        """The index of a file, or None."""
        found = self._cache.get(_key("index", content)) if self._cache else None
        if found is None:
            return None
        meta = {**found.meta, "base": Fraction(*found.meta["base"])}
        return Index(**{k: v.tolist() for k, v in found.arrays.items()}, **meta)

    def put_index(self, content: str, index: Index) -> None:
        """Keep an index that covers its whole file."""
        key = _key("index", content)
        if self._cache is None or not index.whole or key in self._cache:
            return
        arrays = {k: np.asarray(getattr(index, k), dtype=np.int64) for k in ("ticks", "keys")}
        meta = {k: v for k, v in index._asdict().items() if k not in arrays}
        self._cache.put(key, Entry(arrays, meta | {"base": [index.base.numerator, index.base.denominator]}))

    def look(self, content: str) -> Look | None:
        """The look of a file, or None."""
        found = self._cache.get(_key("look", content)) if self._cache else None
        if found is None:
            return None
        turn, *rest = found.meta["look"]
        return Look(Turn(*turn), *rest)

    def put_look(self, content: str, look: Look) -> None:
        """Keep a look."""
        if self._cache is not None:
            self._cache.put(_key("look", content), Entry({}, {"look": list(look)}))


def _key(kind: str, content: str) -> str:
    return content_key(kind, FORMAT, content)
