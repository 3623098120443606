"""vstar-fast: self-training of video-LMMs on any labelled video (Video-STaR, ICLR 2025)."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["Candidate", "CycleConfig", "Example", "Label", "LabeledVideo", "Question", "Verdict", "__version__", "ops"]

_RECORDS = {"Candidate", "Example", "Label", "LabeledVideo", "Question", "Verdict"}


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that importing the package costs nothing."""
    import importlib

    if name in _RECORDS:
        return getattr(importlib.import_module("vstar_fast.records"), name)
    if name == "CycleConfig":
        return importlib.import_module("vstar_fast.config").CycleConfig
    if name == "ops":
        return importlib.import_module("vstar_fast.ops")
    raise AttributeError(f"module 'vstar_fast' has no attribute {name!r}")
