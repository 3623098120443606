"""Whether a backend or a package can run here, and if not, why and what to do. Nothing heavy is imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Probe(NamedTuple):
    """Whether one backend can run here: `why` says what was found or what is missing."""

    ok: bool
    why: str
    remedy: str = ""


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


def _onednn_bf16() -> Probe:
    import torch

    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return Probe(False, "this torch has no oneDNN")
    units = {"AMX": torch.cpu._is_amx_tile_supported(), "AVX512-BF16": torch.cpu._is_avx512_bf16_supported()}
    found = next((name for name, there in units.items() if there), "")
    if not found:
        return Probe(False, "the processor has no bf16 instructions (AMX, AVX512-BF16)", "use model.dtype = float32")
    return Probe(True, f"the processor multiplies bf16 numbers ({found}), for model.dtype = mixed")


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

PROBES: dict[str, Callable[[], Probe]] = {
    "reference": _always("plain torch, always there"),
    "sdpa": _always("torch scaled_dot_product_attention, always there"),
    "flash": _always("torch's fused attention, always there"),
    "gemm": _always("batched products of plain torch, always there"),
    "onednn": _onednn,
    "onednn-bf16": _onednn_bf16,
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
"""Backend or package -> its probe."""
