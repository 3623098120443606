"""`FrameSource`: requests in, frames or reasons out, in order; decoded ahead of the consumer, and never twice."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vstar_fast import backends, clip_files
from vstar_fast.cache import Cache, Entry
from vstar_fast.clip_errors import REMEDIES, Unusable
from vstar_fast.config import FramesConfig
from vstar_fast.errors import BackendError
from vstar_fast.files import content_key
from vstar_fast.frames.decoding import Decoded, Decoding
from vstar_fast.frames.geometry import ModelSize, finish
from vstar_fast.frames.index import Index, check_length
from vstar_fast.frames.job import probe
from vstar_fast.frames.request import FrameRequest
from vstar_fast.frames.sidecar import Sidecar
from vstar_fast.openmp import threads_here
from vstar_fast.records import Frames, Rejected

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Version of what this stage makes of a file; part of every key of its caches."""


class _Busy:
    """A clip under way, and how many want it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


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
        self._frames = frame_cache
        self._keyed = frame_cache is not None or index_cache is not None
        self._sidecar = Sidecar(index_cache)
        self.decoding = Decoding(config, self._sidecar)
        self._model_size = model_size
        self._early: dict[FrameRequest, Future[Frames | Rejected]] = {}
        self._pool = ThreadPoolExecutor(self.decoding.threads, "frames", threads_here, (1,))
        self._lock = threading.Lock()
        self._busy: dict[str, _Busy] = {}
        self._counts: Counter[str] = Counter()
        self._stall_s = 0.0

    def probe(self, path: str) -> Index:
        """When each picture of a file is shown. Raises Unusable or OSError."""
        request = FrameRequest(path)
        clip_files.check(path)
        content = self._content(request)
        index = self._sidecar.index(content)
        if index is None:
            index = probe(request)
            self._sidecar.put_index(content, index)
        return index

    def without(self, request: FrameRequest, start_s: float) -> Rejected | None:
        """Why a label that begins at `start_s` of the clip or its window cannot be true: it is over by then."""
        try:
            index = self.probe(request.path)
        except (Unusable, OSError):  # reading its frames says why
            return None
        end_s = min(float((index.end - index.zero) * index.base), request.end_s or math.inf)
        length_s = end_s - (request.start_s or 0.0)
        if start_s < length_s:
            return None
        return self._refuse(
            request, "label_outside", f"a label begins at {start_s:g} s, the clip lasts {length_s:.2f} s"
        )

    def route(self, path: str) -> backends.Choice:
        """The backend that decodes a file here, and why it is that one. Raises Unusable or OSError."""
        request = FrameRequest(path)
        clip_files.check(path)
        return self.decoding.route(request, self._content(request))

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
        self.decoding.close()

    def counts(self) -> dict[str, float]:
        """Clips `decoded`, `cached`, `fallback`; `frames`, `stalls`, `stall_s`, `decode_cpu_s`, `error:*`.

        Where clips are routed one by one: `route:BACKEND: REASON`.
        """
        rest: dict[str, float] = {f"route:{c.name}: {c.reason}": n for c, n in self.decoding.routed.copy().items()}
        rest |= {
            "stall_s": round(self._stall_s, 3),
            "decode_cpu_s": round(self.decoding.cpu_s, 3),
            "fallback": self.decoding.fallbacks,
        }
        with self._lock:
            return {**self._counts, **{name: n for name, n in rest.items() if n}}

    def _start(self, request: FrameRequest) -> Future[Frames | Rejected]:
        return self._early.pop(request, None) or self._pool.submit(self._one, request)

    def _wait(self, future: Future[Frames | Rejected]) -> Frames | Rejected:
        if not future.done():
            began = time.perf_counter()
            future.exception()
            with self._lock:
                self._counts["stalls"] += 1
                self._stall_s += time.perf_counter() - began
        return future.result()

    def _one(self, request: FrameRequest) -> Frames | Rejected:
        try:
            return self._clip(request)
        except Unusable as error:
            return self._refuse(request, error.reason, str(error))
        except OSError as error:
            return self._refuse(request, "unreadable", error.strerror or str(error))
        except BackendError:
            raise
        except Exception as error:  # one of a million clips must not end the run; the record says what happened
            return self._refuse(request, "decode_error", f"{type(error).__name__}: {error}")

    def _refuse(self, request: FrameRequest, reason: str, detail: str) -> Rejected:
        with self._lock:
            self._counts[f"error:{reason}"] += 1
        return Rejected("frames", request.name, reason, f"{request.path}: {detail}; {REMEDIES[reason]}")

    def _clip(self, request: FrameRequest) -> Frames:
        clip_files.check(request.path)
        content = self._content(request)
        key = content_key(FORMAT, content, *self._pixels(request))
        with self._alone(key):  # two files of the same content are one to decode
            found = self._frames.get(key) if self._frames else None
            if found is not None:
                with self._lock:
                    self._counts["cached"] += 1
                return _from_entry(request, found)
            return self._fresh(request, content, key)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Nobody else has this clip under way meanwhile; without a cache there is nothing to wait for."""
        if self._frames is None:
            yield
            return
        with self._lock:
            busy = self._busy.setdefault(key, _Busy())
            busy.users += 1
        try:
            with busy.lock:
                yield
        finally:
            with self._lock:
                busy.users -= 1
                if not busy.users:
                    del self._busy[key]

    def _fresh(self, request: FrameRequest, content: str, key: str) -> Frames:
        decoded = self.decoding(request, content)
        data = self._sized(decoded, request).contiguous()
        if self._frames is not None:
            self._frames.put(key, Entry({"pictures": data.cpu().numpy()}, decoded.meta))
        backends.ran("frames", decoded.meta["backend"])
        with self._lock:
            self._counts["decoded"] += 1
            self._counts["frames"] += len(decoded.meta["rows"])
        return _frames(request, data, decoded.meta)

    def _sized(self, decoded: Decoded, request: FrameRequest) -> torch.Tensor:
        meta = decoded.meta
        data = finish(decoded.pictures, request.geometry, meta["height_px"], meta["width_px"])
        if self._model_size is not None and request.geometry.shape == "native":
            data = self._model_size(data)
        return data

    def _pixels(self, request: FrameRequest) -> tuple[Any, ...]:
        """All but the content that decides what comes out."""
        fit = self._model_size.key if self._model_size else ""
        return (
            asdict(request.sampling),
            asdict(request.geometry),
            request.start_s,
            request.end_s,
            fit,
            self.config.backend,
        )

    def _content(self, request: FrameRequest) -> str:
        return clip_files.content_key(request.path) if self._keyed else ""


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
