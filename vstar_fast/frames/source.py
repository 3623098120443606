"""`FrameSource`: requests in, frames or reasons out, in order; decoded ahead of the consumer, and never twice."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from vstar_fast import backends
from vstar_fast.cache import Cache, Entry
from vstar_fast.config import FramesConfig
from vstar_fast.errors import BackendError
from vstar_fast.frames import inputs
from vstar_fast.frames.geometry import ModelSize, finish
from vstar_fast.frames.index import Index, check_length
from vstar_fast.frames.job import DECODERS, Read, Task, do, probe
from vstar_fast.frames.request import FrameRequest
from vstar_fast.frames.unusable import REMEDIES, Unusable
from vstar_fast.frames.workers import workers
from vstar_fast.records import Frames, Rejected
from vstar_fast.runfolder import content_key

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Version of what this stage makes of a file; part of every key of its caches."""


class FrameSource:
    """Reads frames for one process; thread-safe. One file's failure is its own record and nobody else's.

    `frame_cache` keeps frames after their resize, `index_cache` the indices of files; without them nothing is kept.
    `model_size` resizes what is decoded at its own size to what a model sees. Raises BackendError at once when the
    backend asked for is not installed.
    """

    def __init__(
        self,
        config: FramesConfig,
        *,
        frame_cache: Cache | None = None,
        index_cache: Cache | None = None,
        model_size: ModelSize | None = None,
    ) -> None:
        self.config = config
        self.backend = _checked(config.backend)
        self._frames = frame_cache
        self._indices = index_cache
        self._model_size = model_size
        self._early: dict[FrameRequest, Future[Frames | Rejected]] = {}
        self._pool = ThreadPoolExecutor(max(1, config.workers), thread_name_prefix="frames")
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, float] = {"stall_s": 0.0, "decode_cpu_s": 0.0}

    # -- reading ---------------------------------------------------------------------------------

    def probe(self, path: str) -> Index:
        """When each picture of a file is shown. Raises Unusable or OSError."""
        request = FrameRequest(path)
        inputs.check(path)
        key = self._content(request)
        index = self._index(key)
        return index if index is not None else self._note_index(key, probe(request))

    def read(self, requests: Sequence[FrameRequest]) -> list[Frames | Rejected]:
        """Frames of each request in order, or why there are none."""
        return list(self.stream(requests, prefetch=len(requests)))

    def stream(self, requests: Iterable[FrameRequest], prefetch: int | None = None) -> Iterator[Frames | Rejected]:
        """The same one by one; at most `prefetch` clips (default: the setting) wait, decoded, for the consumer."""
        ahead = max(1, self.config.prefetch if prefetch is None else prefetch)
        waiting: deque[Future[Frames | Rejected]] = deque()
        try:
            for request in requests:
                waiting.append(self._start(request))
                if len(waiting) > ahead:
                    yield self._wait(waiting.popleft())
            while waiting:
                yield self._wait(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()

    def ahead(self, requests: Iterable[FrameRequest]) -> None:
        """Decode these while the caller does something else; as many as `prefetch` allows, the rest not yet."""
        for request in requests:
            if len(self._early) >= self.config.prefetch:
                return
            if request not in self._early:
                self._early[request] = self._pool.submit(self._one, request)

    def close(self) -> None:
        """Drop what was decoded ahead and end the threads."""
        self._early.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def counts(self) -> dict[str, float]:
        """`decoded` and `cached` clips, `frames`, `stalls`, `stall_s`, `decode_cpu_s`, and `error:<reason>`."""
        with self._lock:
            return {**self._counts, **{k: round(v, 3) for k, v in self._seconds.items() if v}}

    def _start(self, request: FrameRequest) -> Future[Frames | Rejected]:
        return self._early.pop(request, None) or self._pool.submit(self._one, request)

    def _wait(self, future: Future[Frames | Rejected]) -> Frames | Rejected:
        if not future.done():
            began = time.perf_counter()
            future.exception()
            with self._lock:
                self._counts["stalls"] += 1
                self._seconds["stall_s"] += time.perf_counter() - began
        return future.result()

    # -- one clip --------------------------------------------------------------------------------

    def _one(self, request: FrameRequest) -> Frames | Rejected:
        try:
            return self._clip(request)
        except Unusable as error:
            return self._refuse(request, error.reason, str(error))
        except OSError as error:
            return self._refuse(request, "unreadable", error.strerror or str(error))
        except Exception as error:  # one of a million clips must not end the run; the record says what happened
            return self._refuse(request, "decode_error", f"{type(error).__name__}: {error}")

    def _refuse(self, request: FrameRequest, reason: str, detail: str) -> Rejected:
        with self._lock:
            self._counts[f"error:{reason}"] += 1
        return Rejected("frames", request.name, reason, f"{request.path}: {detail}; {REMEDIES[reason]}")

    def _clip(self, request: FrameRequest) -> Frames:
        inputs.check(request.path)
        content = self._content(request)
        key = content_key(FORMAT, content, *self._pixels(request))
        found = self._frames.get(key) if self._frames else None
        if found is not None:
            with self._lock:
                self._counts["cached"] += 1
            return _from_entry(request, found)
        read = self._decode(request, self._index(content))
        self._note_index(content, read.index)
        data = self._sized(read, request)
        entry = _entry(read, data, self.backend)
        if self._frames is not None:
            self._frames.put(key, entry)
        backends.ran("frames", self.backend)
        with self._lock:
            self._counts["decoded"] += 1
            self._counts["frames"] += len(read.rows)
        return _frames(request, data, entry.meta)

    def _decode(self, request: FrameRequest, index: Index | None) -> Read:
        task = Task(request, self.backend, index, self.config.limit_s)
        ask: Callable[[Task], tuple[Any, float]] = workers().ask if self.config.isolate else _here
        read, cpu_s = ask(task)
        with self._lock:
            self._seconds["decode_cpu_s"] += cpu_s
        return read

    def _sized(self, read: Read, request: FrameRequest) -> torch.Tensor:
        import torch

        data = torch.from_numpy(read.pictures)
        data = finish(data, request.geometry, read.height_px, read.width_px)
        if self._model_size is not None and request.geometry.shape == "native":
            data = self._model_size(data)
        return data

    def _pixels(self, request: FrameRequest) -> tuple[Any, ...]:
        """All but the content that decides what comes out."""
        fit = self._model_size.key if self._model_size else ""
        return asdict(request.sampling), asdict(request.geometry), request.start_s, request.end_s, fit, self.backend

    # -- index -----------------------------------------------------------------------------------

    def _content(self, request: FrameRequest) -> str:
        if self._frames is None and self._indices is None:
            return ""
        return inputs.content_key(request.path)

    def _index(self, content: str) -> Index | None:
        found = self._indices.get(_index_key(content)) if self._indices else None
        if found is None:
            return None
        meta = dict(found.meta)
        meta["base"] = Fraction(*meta["base"])
        return Index(**{k: v.tolist() for k, v in found.arrays.items()}, **meta)

    def _note_index(self, content: str, index: Index) -> Index:
        if self._indices is not None and index.whole and _index_key(content) not in self._indices:
            arrays = {k: np.asarray(getattr(index, k), dtype=np.int64) for k in ("ticks", "keys")}
            meta = {k: v for k, v in index._asdict().items() if k not in arrays}
            meta["base"] = [index.base.numerator, index.base.denominator]
            self._indices.put(_index_key(content), Entry(arrays, meta))
        return index


def _index_key(content: str) -> str:
    return content_key("index", FORMAT, content)


def _checked(backend: str) -> str:
    name = "pyav" if backend == "auto" else backend
    if name not in DECODERS:
        raise BackendError(f"frames has no decoder {name!r}; it has: {', '.join(sorted(DECODERS))}")
    backends.require(name, "frames")
    return name


def _here(task: Task) -> tuple[Read, float]:
    """A task done in this thread: cheaper to start, but a crash of the decoder is a crash of the run."""
    began = time.thread_time()
    return do(task), time.thread_time() - began


def _entry(read: Read, data: torch.Tensor, backend: str) -> Entry:
    meta = {
        "rows": read.rows,
        "times_s": read.times_s,
        "duration_s": read.duration_s,
        "height_px": read.height_px,
        "width_px": read.width_px,
        "backend": backend,
    }
    return Entry({"pictures": data.contiguous().numpy()}, meta)


def _from_entry(request: FrameRequest, found: Entry) -> Frames:
    import torch

    check_length(found.meta["duration_s"], request.max_duration_s)
    return _frames(request, torch.from_numpy(found.arrays["pictures"]), found.meta)


def _frames(request: FrameRequest, data: torch.Tensor, meta: dict[str, Any]) -> Frames:
    rows = meta["rows"]
    if rows != list(range(len(data))):
        data = data[rows]
    shown = {k: meta[k] for k in ("height_px", "width_px", "duration_s", "backend")}
    return Frames(request.name, data, tuple(meta["times_s"]), **shown)
