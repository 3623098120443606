"""Where time and memory go: a clock for every stage, with NVTX ranges or Chrome traces on request.

    profiler = Profiler("off")
    with profiler.stage("generate", cycle=0):
        ...
        profiler.count("tokens", 512)
    profiler.stages()  # {"generate": {"seconds": 1.9, "cpu_seconds": 3.7, "peak_mib": 812.0, ...}}

A stage inside a stage is booked on its own: seconds are those spent in a stage and in no inner one, so
that the seconds of all stages add up to the wall time.
"""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vstar_fast.config import PROFILERS
from vstar_fast.errors import BackendError, ConfigError


@dataclass(slots=True)
class _Stage:
    """Totals of one stage; `peak_mib` is the largest resident memory of the process while it ran."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    calls: int = 0
    peak_mib: float = 0.0
    gpu_peak_mib: float = 0.0
    items: dict[str, float] = field(default_factory=dict)

    def add(self, other: Mapping[str, Any]) -> None:
        self.seconds += other["seconds"]
        self.cpu_seconds += other["cpu_seconds"]
        self.calls += other["calls"]
        self.peak_mib = max(self.peak_mib, other["peak_mib"])
        self.gpu_peak_mib = max(self.gpu_peak_mib, other.get("gpu_peak_mib", 0.0))
        for name, n in other["items"].items():
            self.items[name] = self.items.get(name, 0) + n

    def to_dict(self) -> dict[str, Any]:
        gpu = {"gpu_peak_mib": round(self.gpu_peak_mib, 1)} if self.gpu_peak_mib else {}
        return {
            "seconds": round(self.seconds, 4),
            "cpu_seconds": round(self.cpu_seconds, 4),
            "calls": self.calls,
            "peak_mib": round(self.peak_mib, 1),
            **gpu,
            "items": dict(self.items),
            "per_second": {k: round(n / self.seconds, 2) for k, n in self.items.items() if self.seconds > 0},
        }


class Profiler:
    """Measures stages, one thread's worth: `kind` is "off" (clocks only), "nvtx" or "torch".

    "torch" writes a Chrome trace of each outermost stage to `out_dir` (open it in chrome://tracing or
    Perfetto). Raises BackendError when NVTX is asked for and torch has no CUDA.
    """

    def __init__(self, kind: str = "off", out_dir: str | Path | None = None) -> None:
        if kind not in PROFILERS:
            raise ConfigError(f"profile {kind!r} is not one of {', '.join(PROFILERS)}")
        if kind == "torch" and out_dir is None:
            raise ConfigError("profile 'torch' needs a folder for its traces")
        if kind == "nvtx":
            _require_nvtx()
        self.kind = kind
        self.out_dir = Path(out_dir) if out_dir is not None else None
        self._done: dict[str, _Stage] = {}
        self._open: list[str] = []
        self._mark = (0.0, 0.0)

    def fresh(self) -> Profiler:
        """A profiler of the same kind that has measured nothing yet."""
        return Profiler(self.kind, self.out_dir)

    @contextlib.contextmanager
    def stage(self, name: str, **info: Any) -> Iterator[None]:
        """Book what happens inside on stage `name`; `info` (say, the cycle) goes into the trace's name."""
        self._book()
        self._open.append(name)
        self._done.setdefault(name, _Stage()).calls += 1
        label = "-".join([name, *(f"{k}{v}" for k, v in info.items())])
        with self._traced(label):
            if len(self._open) == 1:
                self._mark = (time.perf_counter(), time.process_time())
            try:
                yield
            finally:
                self._book()
                self._open.pop()

    def count(self, item: str, n: float = 1) -> None:
        """Add `n` items (tokens, videos, ...) to the stage that is running."""
        if self._open:
            items = self._done[self._open[-1]].items
            items[item] = items.get(item, 0) + n

    def merge(self, earlier: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what `stages()` gave in an earlier, interrupted run."""
        for name, values in earlier.items():
            self._done.setdefault(name, _Stage()).add(values)

    def stages(self) -> dict[str, dict[str, Any]]:
        """Totals by stage: seconds, cpu_seconds, calls, peak_mib (and gpu_peak_mib), items, per_second."""
        self._book()
        return {name: stage.to_dict() for name, stage in self._done.items()}

    def _book(self) -> None:
        """Book the time since the last mark, and the memory peak, on the innermost stage."""
        if self._open:
            _wait_for_gpu()
        now = (time.perf_counter(), time.process_time())
        if self._open:
            stage = self._done[self._open[-1]]
            stage.seconds += now[0] - self._mark[0]
            stage.cpu_seconds += now[1] - self._mark[1]
            for name in self._open:
                outer = self._done[name]
                outer.peak_mib = max(outer.peak_mib, peak_mib())
                outer.gpu_peak_mib = max(outer.gpu_peak_mib, _gpu_peak_mib())
        reset_peaks()
        self._mark = now

    @contextlib.contextmanager
    def _traced(self, label: str) -> Iterator[None]:
        if self.kind == "nvtx":
            import torch

            with torch.cuda.nvtx.range(label):
                yield
        elif self.kind == "torch":
            import torch

            outermost = len(self._open) == 1
            trace = _chrome_trace(self.out_dir, label) if outermost else contextlib.nullcontext()
            with trace, torch.profiler.record_function(label):
                yield
        else:
            yield


@contextlib.contextmanager
def _chrome_trace(folder: Path | None, label: str) -> Iterator[None]:
    from torch.profiler import profile

    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "_", label)
    number = len(list(folder.glob(f"{name}.*.json.gz")))
    with profile() as trace:
        yield
    trace.export_chrome_trace(str(folder / f"{name}.{number:03d}.json.gz"))


def _require_nvtx() -> None:
    import torch

    if not torch.cuda.is_available():
        raise BackendError("profile 'nvtx' needs a CUDA build of torch and a GPU; use `--profile torch` on a CPU")


def peak_mib() -> float:
    """Largest resident size since the last reset; since the process began where Linux does not allow resets."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def reset_peaks() -> None:
    """Peaks are counted from now on, where the system allows it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()


def _cuda() -> Any:
    """torch.cuda if this process uses it; asking must not load torch or start CUDA."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _gpu_peak_mib() -> float:
    cuda = _cuda()
    return cuda.max_memory_allocated() / (1 << 20) if cuda is not None else 0.0


def _wait_for_gpu() -> None:
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()
