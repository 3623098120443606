"""One clip decoded by the backend that suits it; what DALI or torchcodec cannot decode is tried on PyAV."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vstar_fast import backends, clip_files
from vstar_fast.backends import Choice
from vstar_fast.clip_errors import Unusable
from vstar_fast.config import FramesConfig
from vstar_fast.errors import BackendError
from vstar_fast.frames.dali import BATCH, Clip, Dali
from vstar_fast.frames.index import Index
from vstar_fast.frames.job import DECODERS, Look, Read, Task, choose, do, look, probe
from vstar_fast.frames.request import FrameRequest
from vstar_fast.frames.route import route
from vstar_fast.frames.sampling import Picked
from vstar_fast.frames.sidecar import Sidecar
from vstar_fast.frames.worker_pool import workers

if TYPE_CHECKING:
    import torch

ROUTED = ("auto", "dali")
"""Backends whose clips are looked at one by one."""


class Decoded(NamedTuple):
    """Distinct pictures uint8 `[U, h, w, 3]`; `meta`: rows (frame -> picture), times_s, duration_s, sizes, backend."""

    pictures: torch.Tensor
    meta: dict[str, Any]


class Decoding:
    """Thread-safe. `fallbacks`: clips that PyAV read in the end; `routed`: by backend and why; `cpu_s`: of decoding."""

    def __init__(self, config: FramesConfig, sidecar: Sidecar) -> None:
        self._config = config
        self._sidecar = sidecar
        self._single = _single(config.backend)
        self._gpu = _gpu()
        self.dali = self._make_dali()
        self.cpu_s = 0.0
        self.fallbacks = 0
        self.routed: Counter[Choice] = Counter()
        self._lock = threading.Lock()
        # A batch of DALI's is more clips than there should be processes.
        self._at_once = threading.BoundedSemaphore(max(1, config.workers))

    @property
    def threads(self) -> int:
        """Clips that should be under way at once: a batch where DALI decodes.

        Else twice the decoders, so that they have the next file when the last one is resized and kept.
        """
        return max(BATCH if self.dali else 1, 2 * self._config.workers)

    def __call__(self, request: FrameRequest, content: str) -> Decoded:
        """Decode a clip. Raises Unusable, OSError or what its decoder raises."""
        index = self._sidecar.index(content)
        if self.dali is not None and not clip_files.is_folder(request.path):
            index, seen = self._looked(request, content, index)
            choice = self._route(index, seen)
            with self._lock:
                self.routed[choice] += 1
            if choice.name == "dali":
                try:
                    return self._by_dali(request, index, seen)
                except RuntimeError as error:
                    self._note_fallback("DALI", request, error)
        read, backend = self._read(request, index)
        if read.index is not None:
            self._sidecar.put_index(content, read.index)
        return _decoded(read, backend)

    def _read(self, request: FrameRequest, index: Index | None) -> tuple[Read, str]:
        """A clip by the decoder that takes one at a time; what torchcodec cannot give exactly PyAV gives."""
        try:
            return self._ask(Task(request, self._single, index, self._config.limit_s)), self._single
        except (RuntimeError, LookupError, ValueError, Unusable) as error:
            if self._single != "torchcodec" or getattr(error, "reason", "decode_error") != "decode_error":
                raise
            self._note_fallback("torchcodec", request, error)
        return self._ask(Task(request, "pyav", index, self._config.limit_s)), "pyav"

    def route(self, request: FrameRequest, content: str) -> Choice:
        """The backend that would decode a clip, and why. Raises Unusable or OSError."""
        if self._config.backend not in ROUTED:
            return Choice(self._single, "asked for by name")
        if clip_files.is_folder(request.path):
            return Choice("pyav", "not dali: images")
        return self._route(*self._looked(request, content, self._sidecar.index(content)))

    def _route(self, index: Index, seen: Look) -> Choice:
        c = self._config
        choice = route(index, seen, asked=c.backend, gpu=self._gpu, least_pixels=c.gpu_pixels)
        if choice.name == "dali" and self.dali is None:
            return Choice("pyav", "not dali: it is not installed")
        return choice

    def close(self) -> None:
        """End DALI's thread."""
        if self.dali is not None:
            self.dali.close()

    def _make_dali(self) -> Dali | None:
        asked = self._config.backend
        if asked == "dali" or (asked == "auto" and self._gpu and backends.available("dali").ok):
            backends.require("dali", "frames")
            return Dali("cpu" if self._gpu is None else _current(), self._config.workers)
        return None

    def _looked(self, request: FrameRequest, content: str, index: Index | None) -> tuple[Index, Look]:
        seen = self._sidecar.look(content)
        if index is None or seen is None:
            index, seen = self._ask(Task(request, "", index, self._config.limit_s))
            self._sidecar.put_index(content, index)
            self._sidecar.put_look(content, seen)
        return index, seen

    def _by_dali(self, request: FrameRequest, index: Index, seen: Look) -> Decoded:
        picked = choose(index, request)
        wanted = sorted(set(picked.ticks))
        number = {tick: n for n, tick in enumerate(index.ticks)}
        data = np.frombuffer(clip_files.read_bytes(request.path), dtype=np.uint8)
        bucket = (index.codec, index.height_px, index.width_px)
        assert self.dali is not None
        pictures = self.dali.read(Clip(data, [number[tick] for tick in wanted], seen, bucket))
        return Decoded(pictures, _meta(index, picked, wanted, pictures.shape[1:3], "dali"))

    def _note_fallback(self, name: str, request: FrameRequest, error: Exception) -> None:
        with self._lock:
            self.fallbacks += 1
        why = str(error).strip().splitlines()
        last = why[-1] if why else ""
        logging.getLogger(__name__).info("%s failed on %s, tried on pyav: %s", name, request.path, last)

    def _ask(self, task: Task) -> Any:
        ask: Callable[[Task], tuple[Any, float]] = workers().ask if self._config.isolate else _here
        task = replace(task, request=replace(task.request, path=clip_files.absolute(task.request.path)))
        with self._at_once:
            value, cpu_s = ask(task)
        with self._lock:
            self.cpu_s += cpu_s
        return value


def _single(backend: str) -> str:
    """The decoder of clips that take no batch. Raises BackendError for one that is unknown or not installed."""
    name = "pyav" if backend in ROUTED else backend
    if name not in DECODERS:
        raise BackendError(f"frames has no decoder {name!r}; it has: {', '.join(sorted((*DECODERS, 'dali')))}")
    backends.require(name, "frames")
    return name


def _gpu() -> tuple[int, int] | None:
    """Compute capability of the current GPU, without which DALI runs on the CPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def _current() -> int:
    import torch

    return torch.cuda.current_device()


def _here(task: Task) -> tuple[Any, float]:
    """A task done in this thread: cheaper to start, but a crash of the decoder is a crash of the run."""
    began = time.thread_time()
    if task.decoder:
        value: Any = do(task)
    else:
        value = (task.index or probe(task.request), look(task.request.path))
    return value, time.thread_time() - began


def _decoded(read: Read, backend: str) -> Decoded:
    import torch

    meta = {
        "rows": read.rows,
        "times_s": read.times_s,
        "duration_s": read.duration_s,
        "height_px": read.height_px,
        "width_px": read.width_px,
        "backend": backend,
    }
    return Decoded(torch.from_numpy(read.pictures), meta)


def _meta(index: Index, picked: Picked, wanted: list[int], size: Any, backend: str) -> dict[str, Any]:
    row = {tick: i for i, tick in enumerate(wanted)}
    return {
        "rows": [row[tick] for tick in picked.ticks],
        "times_s": picked.times_s(index),
        "duration_s": picked.duration_s,
        "height_px": int(size[0]),
        "width_px": int(size[1]),
        "backend": backend,
    }
