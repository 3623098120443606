"""The demo: real clips and an ordinary model folder, built from packages; see `config`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vstar_fast.config import CycleConfig

Step = Callable[[int, int], None]

FINETUNE: dict[str, float] = {
    "lr": 5e-4,
    "projector_lr": 1e-3,
    "epochs": 2.0,
    "batch_size": 8,
    "micro_batch_size": 8,
}
"""Chosen on `dev`."""


def config(*, seed: int = 0, progress: Step | None = None, overrides: dict[str, object] | None = None) -> CycleConfig:
    """Settings of the demo run; builds its clips and its model in the user cache first (skipped when there).

    `progress(done, total)` counts rendered clips. `overrides` are nested like the TOML file.
    """
    from vstar_fast import config as settings
    from vstar_fast.demo import model, videos

    clips = videos.build(progress=progress)
    folder = model.build()
    values: dict[str, object] = {
        "seed": seed,
        "data": {"path": str(clips.actions), "extra": [str(clips.routines)], "questions_per_video": 1},
        "model": {"base": str(folder)},
        "generate": {"samples": 4, "temperature": 0.8, "max_new_tokens": 40},
        "evaluate": {"max_new_tokens": 40},
        "rationalize": {"max_share": 1.5},
        "match": {"min_correct": 0.5, "keep": "best"},
        "finetune": dict(FINETUNE),
        "loop": {"max_cycles": 2, "patience": 2, "restart": "continue", "rationalize_last": True},
    }
    return settings.from_dict(settings.merge(values, overrides or {}))
