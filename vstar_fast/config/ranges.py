"""Ranges of settings: which values a run can use, checked when a configuration is made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from vstar_fast.config.file import need

DEVICE = re.compile(r"auto|cpu|cuda(?::\d{1,3})?")


class Range(NamedTuple):
    """What values `holds`, and in words; NaN is in none."""

    holds: Callable[[Any], bool]
    words: str


AT_LEAST_1 = Range(lambda x: 1 <= x < math.inf, "at least 1")
FROM_0 = Range(lambda x: 0 <= x < math.inf, ">= 0")
FROM_0_TO_ANY = Range(lambda x: x >= 0, ">= 0")
ABOVE_0 = Range(lambda x: 0 < x < math.inf, "> 0")
ABOVE_0_TO_ANY = Range(lambda x: x > 0, "> 0")
ABOVE_0_TO_1 = Range(lambda x: 0 < x <= 1, "in (0, 1]")
BELOW_1 = Range(lambda x: 0 <= x < 1, "in [0, 1)")
SHARE = Range(lambda x: 0 <= x <= 1, "in [0, 1]")

# Section -> field -> its range. Every number among the settings is here or checked beside its section.
RANGES: dict[str, dict[str, Range]] = {
    "": {"seed": FROM_0},
    "data": {
        "dev_fraction": BELOW_1,
        "test_fraction": BELOW_1,
        "max_duration_s": ABOVE_0_TO_ANY,
        "questions_per_video": FROM_0,
    },
    "frames": {
        "count": AT_LEAST_1,
        "fps": ABOVE_0,
        "workers": AT_LEAST_1,
        "prefetch": AT_LEAST_1,
        "limit_s": ABOVE_0,
        "gpu_pixels": FROM_0,
    },
    "cache": {"frames_gib": FROM_0, "embeddings_gib": FROM_0, "host_gib": FROM_0},
    "generate": {
        "samples": AT_LEAST_1,
        "temperature": FROM_0,
        "top_p": ABOVE_0_TO_1,
        "top_k": FROM_0,
        "max_new_tokens": AT_LEAST_1,
        "batch_size": FROM_0,
        "propose": FROM_0,
    },
    "rationalize": {"samples": AT_LEAST_1, "max_share": FROM_0_TO_ANY},
    "match": {"rel_tolerance": BELOW_1, "iou": ABOVE_0_TO_1, "min_correct": SHARE},
    "finetune": {
        "dpo_beta": ABOVE_0,
        "kto_beta": ABOVE_0,
        "checkpoint_steps": FROM_0,
        "checkpoints_kept": AT_LEAST_1,
        "lora_r": AT_LEAST_1,
        "lora_alpha": AT_LEAST_1,
        "lora_dropout": BELOW_1,
        "lr": ABOVE_0,
        "projector_lr": ABOVE_0,
        "epochs": ABOVE_0,
        "steps": FROM_0,
        "batch_size": AT_LEAST_1,
        "micro_batch_size": AT_LEAST_1,
        "micro_batch_tokens": AT_LEAST_1,
        "weight_decay": FROM_0,
        "warmup_ratio": SHARE,
        "max_grad_norm": ABOVE_0,
        "mix_ratio": FROM_0,
    },
    "evaluate": {"max_new_tokens": AT_LEAST_1, "batch_size": FROM_0, "bootstrap": AT_LEAST_1},
    "loop": {"max_cycles": AT_LEAST_1, "patience": AT_LEAST_1, "continue_rate": ABOVE_0_TO_1},
}


def in_range(section: str, config: Any) -> None:
    """Raise ConfigError for the first field of `section` whose value no run can use."""
    for name, allowed in RANGES[section].items():
        value = getattr(config, name)
        where = f"{section}.{name}" if section else name
        need(allowed.holds(value), f"{where} must be {allowed.words}, got {value}")
