"""Which implementation runs: what is available, which one an op or a stage takes and why, what really ran.

Nothing heavy is imported here at module level. A backend that is asked for by name and is missing is an
error with the command that installs it; only `"auto"` falls back, and `report()` tells what it fell back to.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from vstar_fast.errors import BackendError
from vstar_fast.probes import PROBES, Probe


class Choice(NamedTuple):
    """The backend that will run an op or a stage, and the reason."""

    name: str
    reason: str


class DoctorRow(NamedTuple):
    """One line of `vstar-fast doctor`: `kind` is "op", "stage" or "package"."""

    kind: str
    name: str
    device: str
    backend: str
    why: str


ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "constrain": {"cuda": ("cuda", "reference"), "cpu": ("cpp", "reference")},
    "label_match": {"cuda": ("cuda", "cpp", "reference"), "cpu": ("cpp", "reference")},
    "match_number": {"cuda": ("cuda", "cpp", "reference"), "cpu": ("cpp", "reference")},
    "match_interval": {"cuda": ("cuda", "cpp", "reference"), "cpu": ("cpp", "reference")},
    "match_sequence": {"cuda": ("cuda", "cpp", "reference"), "cpu": ("cpp", "reference")},
    "sample": {"cuda": ("triton", "reference"), "cpu": ("cpp", "reference")},
    "linear": {"cuda": ("reference",), "cpu": ("onednn", "reference")},
    "half_linear": {"cuda": ("reference",), "cpu": ("onednn-bf16", "reference")},
    "prefix_attention": {
        "cuda": ("triton", "flash", "gemm", "reference"),
        "cpu": ("avx512", "flash", "gemm", "reference"),
    },
    "prefill": {
        "cuda": ("flash-attn-4", "flash-attn-3", "flash-attn-2", "triton", "flash", "gemm", "reference"),
        "cpu": ("avx512", "flash", "gemm", "reference"),
    },
    "tree_attention": {"cuda": ("flash", "triton", "sdpa", "reference"), "cpu": ("flash", "sdpa", "reference")},
    "patchify": {"cuda": ("triton", "reference"), "cpu": ("reference",)},
    "frames": {"cuda": ("dali", "pyav", "torchcodec"), "cpu": ("pyav", "torchcodec", "dali")},
    "attention": {"cuda": ("flash-attn-4", "flash-attn-3", "flash-attn-2", "sdpa"), "cpu": ("sdpa",)},
}
"""Op or stage -> device -> backends, best first. Only what is implemented stands here."""

OPS = (
    "constrain",
    "label_match",
    "match_number",
    "match_interval",
    "match_sequence",
    "sample",
    "linear",
    "half_linear",
    "prefix_attention",
    "tree_attention",
    "patchify",
)

PACKAGES = ("dali", "fsspec", "flash-attn-4", "flash-attn-3", "flash-attn-2", "torchcodec")
"""Optional packages `doctor` reports beside the backends."""


@functools.cache
def available(backend: str) -> Probe:
    """Whether `backend` can run in this process; probed once."""
    if backend not in PROBES:
        raise BackendError(f"unknown backend {backend!r}; known: {', '.join(sorted(PROBES))}")
    return PROBES[backend]()


def require(backend: str, who: str = "this step") -> None:
    """Raise BackendError with the remedy unless `backend` can run here."""
    probe = available(backend)
    if not probe.ok:
        raise BackendError(f"{who} was asked to run on {backend!r}, but {probe.why}. Remedy: {probe.remedy}")


def _device_type(device: object) -> str:
    """ "cuda" or "cpu" of a torch.device, a string such as "cuda:0", or a tensor's device."""
    kind = str(device).split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise BackendError(f"device {str(device)!r} is not supported; use 'cpu' or 'cuda'")
    return kind


def choose(op: str, device: object = "cpu", backend: str = "auto") -> Choice:
    """The backend that op or stage `op` takes on `device`: `backend` itself when named, else the first that runs.

    Raises BackendError when `op` does not know `backend`, or when it is not available here.
    """
    if op not in ORDER:
        raise BackendError(f"unknown op or stage {op!r}; known: {', '.join(ORDER)}")
    kind = _device_type(device)
    names = ORDER[op][kind]
    if backend != "auto":
        every = {name for order in ORDER[op].values() for name in order}
        if backend not in every:
            raise BackendError(f"{op} has no backend {backend!r}; it has: {', '.join(sorted(every))}")
        require(backend, op)
        if backend not in names:
            raise BackendError(f"{op} backend {backend!r} does not take data on {kind!r}; there: {', '.join(names)}")
        return Choice(backend, "asked for by name")
    missed: list[str] = []
    for name in names:
        probe = available(name)
        if probe.ok:
            return Choice(name, "; ".join([probe.why, *missed]))
        missed.append(f"not {name}: {probe.why}")
    raise BackendError(f"{op} has no backend that runs on {kind!r}: {'; '.join(missed)}")


_ran: dict[str, Counter[str]] = {}
_why: dict[str, str] = {}
_lock = threading.Lock()


def ran(op: str, backend: str, count: int = 1, why: str = "") -> None:
    """Note that op or stage `op` ran `count` times on `backend`, and `why` where a model decided it."""
    with _lock:
        _ran.setdefault(op, Counter())[backend] += count
        if why:
            _why[op] = f"{backend}: {why}"


def reasons() -> dict[str, str]:
    """Stage -> what ran last in this process and why, of the stages that a model decides."""
    with _lock:
        return dict(sorted(_why.items()))


def report() -> dict[str, dict[str, int]]:
    """What really ran in this process so far: op or stage -> backend -> number of calls."""
    with _lock:
        return {op: dict(counts) for op, counts in sorted(_ran.items())}


class Since:
    """What ran from now on, on top of what `earlier` processes of the same run reported."""

    def __init__(self, earlier: Mapping[str, Mapping[str, int]]) -> None:
        self._earlier = {op: Counter(counts) for op, counts in earlier.items()}
        self._before = report()

    def report(self) -> dict[str, dict[str, int]]:
        """Op or stage -> backend -> number of calls."""
        total = {op: Counter(counts) for op, counts in self._earlier.items()}
        for op, counts in report().items():
            total[op] = total.get(op, Counter()) + (Counter(counts) - Counter(self._before.get(op, {})))
        return {op: dict(counts) for op, counts in sorted(total.items()) if counts}


def reset_report() -> None:
    """Forget what ran so far."""
    with _lock:
        _ran.clear()
        _why.clear()


def device() -> str:
    """ "cuda" when torch sees a GPU, else "cpu"."""
    return "cuda" if available("torch-cuda").ok else "cpu"


def doctor() -> list[DoctorRow]:
    """One row for each op, stage and optional package: which backend runs on this machine, and why."""
    here = device()
    rows = [DoctorRow("machine", "device", here, here, available("torch-cuda").why)]
    for op in ORDER:
        kind = "op" if op in OPS else "stage"
        try:
            choice = choose(op, here)
            rows.append(DoctorRow(kind, op, here, choice.name, choice.reason))
        except BackendError as error:
            rows.append(DoctorRow(kind, op, here, "none", str(error)))
    for package in PACKAGES:
        probe = available(package)
        why = probe.why if probe.ok else f"{probe.why}; {probe.remedy}"
        rows.append(DoctorRow("package", package, here, "installed" if probe.ok else "missing", why))
    return rows
