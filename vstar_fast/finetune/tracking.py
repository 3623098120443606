"""What a training tells trackers (TensorBoard, W&B, MLflow, Trackio), through accelerate's classes for them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vstar_fast.config.finetune import TRACKERS
from vstar_fast.errors import BackendError
from vstar_fast.finetune.checkpoints import Note

PROJECT = "vstar-fast"
INSTALL = "pip install 'vstar-fast[track]'"


class Tracking:
    """The trackers of one training; what they keep in files goes to folder `beside`.

    `names` as in `finetune.track`. Raises BackendError for a tracker that is not installed. `auto` without
    TensorBoard tracks nothing, and says so.
    """

    def __init__(self, names: str, beside: Path, settings: Mapping[str, Any], note: Note) -> None:
        self._trackers = [_started(name, beside) for name in chosen(names, note)]
        self._began = time.monotonic()
        for tracker in self._trackers:
            tracker.store_init_configuration(dict(settings))

    def log(self, step: int, values: Mapping[str, float], tokens: int) -> None:
        """Values of a step, and how fast `tokens` went through since the last one."""
        now = time.monotonic()
        speed = {"tokens_per_s": tokens / max(now - self._began, 1e-9), "memory_mib": memory_bytes() / 2**20}
        self._began = now
        for tracker in self._trackers:
            tracker.log({f"train/{name}": value for name, value in {**values, **speed}.items()}, step=step)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self._trackers:
            tracker.finish()


def chosen(names: str, note: Note) -> list[str]:
    """Names of the trackers that `finetune.track` asks for. Raises BackendError for one that is not installed."""
    if names == "none":
        return []
    if names == "auto":
        if _installed("tensorboard"):
            return ["tensorboard"]
        note(f"TensorBoard is not installed, so training is not tracked; {INSTALL}, or set finetune.track = none")
        return []
    asked = [name.strip() for name in names.split(",")]
    for name in asked:
        if not _installed(name):
            remedy = INSTALL if name == "tensorboard" else f"pip install {name}"
            raise BackendError(f"finetune.track asks for {name}, which is not installed; {remedy}")
    return asked


def _installed(name: str) -> bool:
    return importlib.util.find_spec(TRACKERS[name]) is not None


def _started(name: str, beside: Path) -> Any:
    """A tracker at work. Runs of one project are told apart by the last parts of the adapter's path."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    run = "/".join(beside.absolute().parts[-3:-1])
    given: dict[str, tuple[Sequence[Any], dict[str, Any]]] = {
        "tensorboard": (("", beside), {}),
        "mlflow": ((PROJECT, beside), {"run_name": run}),
    }
    positional, named = given.get(name, ((PROJECT,), {"name": run}))
    tracker = LOGGER_TYPE_TO_CLASS[name](*positional, **named)
    if hasattr(tracker, "start"):  # older releases of accelerate start a tracker as they make it
        tracker.start()
    return tracker


def memory_bytes() -> int:
    """Most bytes that this process has held: of GPU memory where there is a GPU, else of memory."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
