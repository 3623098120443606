"""What will run on this machine, and why: every op, stage and optional package, versions, GPU, cache."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from vstar_fast import __version__, backends
from vstar_fast.paths import cache_dir

VERSIONS = ("torch", "torchvision", "transformers", "peft", "accelerate", "safetensors", "numpy", "av", "triton")


def examine(model: str | None = None) -> dict[str, Any]:
    """Machine, versions, GPU, cache folder, one row for each op, stage and optional package; facts about a model.

    Raises ModelError where the model folder or hub id cannot be used.
    """
    return {
        "model": _model(model) if model else {},
        "machine": {
            "vstar-fast": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
            "gpu": _gpu(),
            "cache": str(cache_dir()),
        },
        "versions": {name: _version(name) for name in VERSIONS},
        "backends": [row._asdict() for row in [*backends.doctor(), _routing()]],
    }


def _model(path: str) -> dict[str, str]:
    """What the adapter of a model folder will do with it, and which way its layers let generation and training go."""
    from vstar_fast import models
    from vstar_fast.engine import ways
    from vstar_fast.finetune import packing

    lm = models.without_weights(path)
    way, why = ways.choose(lm)
    rows = packing.refusal(lm)
    return {
        "model type": models.model_type(path),
        **lm.facts(),
        "generation": way if way == "packed" else f"{way}, slower: {why}",
        "training": f"row by row, slower: {rows}" if rows else "packed",
        "seen by": "its layers; a run, which has the weights, tries a clip too, and says where that changes the way",
    }


def _routing() -> backends.DoctorRow:
    """How `frames.backend = "auto"` chooses for each clip here."""
    from vstar_fast.config import FramesConfig

    here = backends.device()
    if here == "cuda" and backends.available("dali").ok:
        least = FramesConfig().gpu_pixels
        why = f"dali for clips of {least} pixels a picture or more that NVDEC takes, else pyav"
        return backends.DoctorRow("stage", "frame routing", here, "by clip", why)
    missing = backends.available("dali")
    gpu = "DALI is for GPUs" if missing.ok else missing.why
    return backends.DoctorRow("stage", "frame routing", here, "pyav", f"every clip; {gpu}")


def show(found: dict[str, Any]) -> None:
    """Print what `examine` found."""
    from vstar_fast import console

    machine = {**found["machine"], **found["versions"]}
    console.show_rows("machine", ("", ""), [(k, str(v)) for k, v in machine.items()])
    if found["model"]:
        console.show_rows("\nmodel", ("", ""), list(found["model"].items()))
    rows = [(r["kind"], r["name"], r["backend"], r["why"]) for r in found["backends"]]
    console.show_rows("\nwhat runs", ("", "name", "backend", "why"), rows)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    properties = torch.cuda.get_device_properties(0)
    memory = f"{properties.total_memory / (1 << 30):.0f} GiB"
    return f"{properties.name}, {memory}, compute {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
