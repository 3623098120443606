"""Which implementation runs: what is available, which one an op or a stage takes and why, what really ran.

Nothing heavy is imported here at module level. A backend that is asked for by name and is missing is an
error with the command that installs it; only `"auto"` falls back, and `report()` tells what it fell back to.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from vstar_fast.errors import BackendError


class Probe(NamedTuple):
    """Whether one backend can run here: `why` says what was found or what is missing."""

    ok: bool
    why: str
    remedy: str = ""


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
    "prefix_attention",
    "tree_attention",
    "patchify",
)

PACKAGES = ("dali", "fsspec", "flash-attn-4", "flash-attn-3", "flash-attn-2", "torchcodec")
"""Optional packages `doctor` reports beside the backends."""


def _module(module: str, distribution: str, remedy: str) -> Callable[[], Probe]:
    """Probe that looks for an importable module without importing it."""

    def probe() -> Probe:
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            return Probe(False, f"the Python module {module} is not installed", remedy)
        try:
            return Probe(True, f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            return Probe(True, f"{module} is importable")

    return probe


def _flash(module: str, distribution: str, remedy: str, least: int) -> Callable[[], Probe]:
    """Probe of a flash-attention that cards of compute capability `least` and above can run."""
    package = _module(module, distribution, remedy)

    def probe() -> Probe:
        found = package()
        if found.ok and _torch_cuda().ok:
            import torch

            here = torch.cuda.get_device_capability()
            if here[0] < least:
                why = f"{found.why} needs compute capability {least}.0, this card has {here[0]}.{here[1]}"
                return Probe(False, why, _AMPERE_EXTRA if here[0] >= 8 else "none: sdpa runs here")
        return found

    return probe


def _torch_cuda() -> Probe:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} sees no GPU" if built else f"torch {torch.__version__} is built without CUDA"
        return Probe(False, why, "run on a machine with an NVIDIA GPU and a CUDA build of torch")
    return Probe(True, f"torch {torch.__version__} on {torch.cuda.get_device_name(0)}")


REINSTALL = "run: pip install --no-deps --force-reinstall ."
REBUILD = "put nvcc (CUDA 12.8 or later) on PATH and run: VSTAR_CUDA=ON pip install --no-deps --force-reinstall ."


def _cpp() -> Probe:
    try:
        importlib.import_module("vstar_fast._C")
    except ImportError as error:
        return Probe(False, f"vstar_fast._C does not import ({error})", REINSTALL)
    return Probe(True, "vstar_fast._C is built")


def _avx512() -> Probe:
    cpp = _cpp()
    if not cpp.ok:
        return cpp
    if not importlib.import_module("vstar_fast._C").attention_simd:
        return Probe(False, "the processor has no AVX-512, or _C was built by another compiler than GCC", REINSTALL)
    return Probe(True, "vstar_fast._C is built, the processor has AVX-512")


def _cuda() -> Probe:
    cpp = _cpp()
    if not cpp.ok:
        return cpp
    if not importlib.import_module("vstar_fast._C").has_cuda:
        return Probe(False, "vstar_fast._C was built without CUDA", REBUILD)
    gpu = _torch_cuda()
    return Probe(True, "vstar_fast._C is built with CUDA; " + gpu.why) if gpu.ok else gpu


def _triton() -> Probe:
    package = _module("triton", "triton", "run: pip install triton")()
    if not package.ok:
        return package
    gpu = _torch_cuda()
    return Probe(True, f"{package.why}; {gpu.why}") if gpu.ok else gpu


def _onednn() -> Probe:
    import torch

    mkl = torch.backends.mkl.is_available()
    if not (mkl and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return Probe(False, "this torch has not both MKL and oneDNN to choose from")
    vendor = _cpu_vendor()
    if vendor == "GenuineIntel":
        return Probe(False, "on Intel's CPUs torch's own choice, MKL, is as fast")
    return Probe(True, f"MKL takes AVX2 code on a CPU of {vendor or 'an unnamed vendor'}, oneDNN the widest there is")


def _cpu_vendor() -> str:
    """ "GenuineIntel", "AuthenticAMD" and so on; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _always(why: str) -> Callable[[], Probe]:
    return lambda: Probe(True, why)


_GPU_EXTRA = "run: pip install 'vstar-fast[gpu]'"
_AMPERE_EXTRA = "run: pip install 'vstar-fast[gpu-ampere]'"

_PROBES: dict[str, Callable[[], Probe]] = {
    "reference": _always("plain torch, always there"),
    "sdpa": _always("torch scaled_dot_product_attention, always there"),
    "flash": _always("torch's fused attention, always there"),
    "gemm": _always("batched products of plain torch, always there"),
    "onednn": _onednn,
    "cpp": _cpp,
    "avx512": _avx512,
    "cuda": _cuda,
    "triton": _triton,
    "torch-cuda": _torch_cuda,
    "pyav": _module("av", "av", "run: pip install av"),
    "torchcodec": _module("torchcodec", "torchcodec", "run: pip install torchcodec"),
    "dali": _module("nvidia.dali", "nvidia-dali-cuda130", _GPU_EXTRA),
    "fsspec": _module("fsspec", "fsspec", "run: pip install 'vstar-fast[remote]'"),
    "flash-attn-4": _flash("flash_attn.cute", "flash-attn-4", _GPU_EXTRA, 9),
    "flash-attn-3": _flash("flash_attn_interface", "flash-attn-3", "build hopper/ of Dao-AILab/flash-attention", 9),
    "flash-attn-2": _flash("flash_attn.flash_attn_interface", "flash-attn", _AMPERE_EXTRA, 8),
}


@functools.cache
def available(backend: str) -> Probe:
    """Whether `backend` can run in this process; probed once."""
    if backend not in _PROBES:
        raise BackendError(f"unknown backend {backend!r}; known: {', '.join(sorted(_PROBES))}")
    return _PROBES[backend]()


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
_lock = threading.Lock()


def ran(op: str, backend: str, count: int = 1) -> None:
    """Note that op or stage `op` ran `count` times on `backend`."""
    with _lock:
        _ran.setdefault(op, Counter())[backend] += count


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
