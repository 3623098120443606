"""What a model sees of each video, made once: frames from the cache or the file, encoded, and kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vstar_fast import clip_files, frames
from vstar_fast.cache import Cache, Entry
from vstar_fast.config import CacheConfig, CycleConfig
from vstar_fast.errors import DataError
from vstar_fast.files import content_key
from vstar_fast.models.base_model import weights_key
from vstar_fast.models.tower import KEPT
from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.profiling import Profiler
from vstar_fast.records import Frames, LabeledVideo, Rejected

INDEX_BYTES = 1 << 28
"""Disk for the indices of files; one takes some kilobytes."""
BATCH = 8
"""Clips a call of the tower."""
LAYOUT = 2
"""Of what is kept of a video. Count it up where that changes: what an earlier version kept is made again then."""


def clip_key(video: LabeledVideo) -> str:
    """Key of the pixels a video stands for: file content and window. Raises OSError for a file that cannot be read."""
    return content_key(clip_files.content_key(video.path), video.start_s, video.end_s)


def clip_key_of(video: LabeledVideo) -> str | None:
    """The same; None for a file that cannot be opened: reading its frames says why."""
    try:
        return clip_key(video)
    except (OSError, frames.Unusable):
        return None


def caches(config: CacheConfig, run: Path) -> dict[str, Cache]:
    """The caches of a run by name: `index`, `frames` and `embeddings`."""
    folder = Path(config.folder).expanduser() if config.folder else run / "cache"
    gib = float(1 << 30)
    return {
        "index": Cache(folder / "index", INDEX_BYTES),
        "frames": Cache(folder / "frames", config.frames_gib * gib),
        "embeddings": Cache(folder / "embeddings", config.embeddings_gib * gib, config.host_gib * gib),
    }


class FeatureStore:
    """Video -> Features of one model; a video is decoded and encoded once, in this run or in one before.

    Features that are pixels, for want of a tower, are kept in memory only: their frames are on disk.
    """

    def __init__(self, lm: VideoLM, config: CycleConfig, run: Path, profiler: Profiler) -> None:
        self._lm = lm
        self._config = config
        self._profiler = profiler
        self.caches = caches(config.cache, run)
        self._embeddings = self.caches["embeddings"]
        size = frames.ModelSize(lm.processor.video_processor) if config.frames.resize == "model" else None
        kept = {"index_cache": self.caches["index"], "frame_cache": self.caches["frames"]}
        self.source = frames.FrameSource(config.frames, model_size=size, **kept)
        # Of a model from the hub the commit stands for its files.
        weights = (weights_key(lm.path), getattr(lm.model.config, "_commit_hash", None))
        # Where a model can be cut, and what its processor gives, is the business of transformers.
        made_by = (LAYOUT, version("transformers"), type(lm).__name__)
        self._seen_as = (size.key if size else "", *weights, *made_by, str(lm.model.dtype))
        self._failed: dict[str, Rejected] = {}
        self._fitting: set[str] = set()
        self._upcoming: deque[LabeledVideo] = deque()
        self._encoded = 0

    def get(self, videos: Sequence[LabeledVideo]) -> dict[str, Features | Rejected]:
        """Features of each video by its id, or why there are none. Raises DataError under data.strict."""
        unique = {v.id: v for v in videos}
        found: dict[str, Features | Rejected] = {}
        missing = []
        for video in unique.values():
            kept = self._failed.get(video.id) or self._kept(video)
            if kept is None:
                missing.append(video)
            else:
                found[video.id] = kept
        found |= self._make(missing)
        seen = (v for v in unique.values() if isinstance(found[v.id], Features))
        found |= {v.id: self._refuse(wrong) for v in seen if (wrong := self._mislabelled(v))}
        self._look_ahead(unique)
        return {i: found[i] for i in unique}

    def _mislabelled(self, video: LabeledVideo) -> Rejected | None:
        """Why a label of the video lies outside it: whoever wrote the data need not have known its length."""
        starts = [label.value[0] for label in video.labels if label.kind == "interval"]
        if not starts or video.id in self._fitting:
            return None
        wrong = self.source.without(self._request(video), max(starts))
        if wrong is None:
            self._fitting.add(video.id)
        return wrong

    def _make(self, videos: list[LabeledVideo]) -> dict[str, Features | Rejected]:
        """Features of videos that are not kept; files of the same content are encoded once."""
        found: dict[str, Features | Rejected] = {}
        first: dict[str, LabeledVideo] = {}
        for video in videos:
            first.setdefault(self._key(video) or video.id, video)
        todo = list(first.values())
        for start in range(0, len(todo), BATCH):
            found |= self._encode(todo[start : start + BATCH], todo[start + BATCH :])
        for video in videos:
            if video.id not in found:
                same = found[first[self._key(video)].id]
                # A record names its own file.
                found |= self._encode([video], []) if isinstance(same, Rejected) else {video.id: same}
        return found

    def expect(self, videos: Iterable[LabeledVideo]) -> None:
        """Videos that will be asked for, in order; the next ones are decoded after each `get`."""
        self._upcoming = deque({v.id: v for v in videos}.values())

    def counts(self) -> dict[str, float]:
        """What the source counts, `encoded` clips, and hits of the caches (`embeddings_hit`, `frames_hit`, ...)."""
        counted = self.source.counts() | {"encoded": self._encoded}
        for name, cache in self.caches.items():
            c = cache.counts
            rows = {"hit": c["host"] + c["disk"], "damaged": c["damaged"], "unwritten": c["unwritten"]}
            counted |= {f"{name}_{what}": n for what, n in rows.items()}
        return {name: n for name, n in counted.items() if n}

    def close(self) -> None:
        """End the threads that decode ahead."""
        self.source.close()

    def _kept(self, video: LabeledVideo) -> Features | None:
        key = self._key(video)
        entry = self._embeddings.get(key) if key else None
        return _features(entry) if entry else None

    def _key(self, video: LabeledVideo) -> str:
        """Key of a video's features; empty for a file that cannot be opened: reading its frames says why."""
        try:
            return content_key(clip_key(video), self._config.frames.pixels(), *self._seen_as)
        except (OSError, frames.Unusable):
            return ""

    def _request(self, video: LabeledVideo) -> frames.FrameRequest:
        return frames.request_of(video, self._config.frames, self._config.data.max_duration_s)

    def _encode(self, videos: list[LabeledVideo], after: list[LabeledVideo]) -> dict[str, Features | Rejected]:
        read = list(self.source.stream([self._request(v) for v in videos], prefetch=self._config.frames.prefetch))
        self.source.ahead(self._request(v) for v in after)
        found: dict[str, Features | Rejected] = {}
        for item in read:
            if isinstance(item, Rejected):
                found[item.id] = self._refuse(item)
        good = [(v, f) for v, f in zip(videos, read, strict=True) if isinstance(f, Frames)]
        if not good:
            return found
        batch = frames.to_batch([f for _, f in good], [v for v, _ in good], device=None)
        for (video, _), features in zip(good, self._lm.encode(batch), strict=True):
            found[video.id] = features
            self._encoded += 1
            self._profiler.count("videos", 1)
            on_disk = self._lm.small_features or KEPT in features.kwargs
            self._embeddings.put(self._key(video), _entry(features), disk=on_disk)
        return found

    def _refuse(self, item: Rejected) -> Rejected:
        if self._config.data.strict:
            raise DataError(f"{item.reason}: {item.detail} (data.strict: no bad file is passed over)")
        self._failed[item.id] = item
        return item

    def _look_ahead(self, asked: dict[str, LabeledVideo]) -> None:
        """Have the next expected videos decoded while the caller works with these."""
        while self._upcoming and self._upcoming[0].id in asked:
            self._upcoming.popleft()
        wanted = (v for v in self._upcoming if v.id not in self._failed and self._key(v) not in self._embeddings)
        self.source.ahead(self._request(v) for v, _ in zip(wanted, range(self._config.frames.prefetch), strict=False))


def _entry(features: Features) -> Entry:
    groups = {"k": features.kwargs, "t": features.token_kwargs}
    tensors = {"ids": features.ids, **{f"{g}.{n}": t for g, named in groups.items() for n, t in named.items()}}
    meta = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
    return Entry({name: _bytes(t) for name, t in tensors.items()}, meta)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as uint8, whatever its type (NumPy has no bfloat16)."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _features(entry: Entry) -> Features:
    tensors = {name: _tensor(entry.arrays[name], *entry.meta[name]) for name in entry.arrays}
    pick = {g: {n[2:]: t for n, t in tensors.items() if n.startswith(f"{g}.")} for g in ("k", "t")}
    return Features(tensors["ids"], pick["k"], pick["t"])


def _tensor(data: np.ndarray, dtype: str, shape: Any) -> torch.Tensor:
    kind = getattr(torch, dtype)
    if not math.prod(shape):
        return torch.empty(shape, dtype=kind)
    return torch.from_numpy(data).view(kind).reshape(shape)
