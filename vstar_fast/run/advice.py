"""What to change when no answer of a cycle passed: from why they failed, and the settings that bear on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vstar_fast.config import CycleConfig

if TYPE_CHECKING:
    from vstar_fast.run.session import Judged

SHOWN = 4
"""Reasons that are listed."""


def nothing_kept(where: str, direct: Judged, rationalized: Judged, config: CycleConfig) -> str:
    """Why there is nothing to fine-tune on, and the settings to change, the likeliest first. `where`: the cycle."""
    judged = [*direct, *rationalized]
    if not judged:
        return (
            f"{where}: no question was answered, so nothing can be kept; see rejected.jsonl for videos that cannot be "
            "read, and whether loop.direct and rationalize.enabled are both off"
        )
    passed = sum(v.passed for _, v in judged)
    counts = Counter(v.reason for _, v in judged if not v.passed)
    why = ", ".join(f"{reason} {n}" for reason, n in counts.most_common(SHOWN))
    found = f"{passed} of {len(judged)} answers passed" + (f" (failed: {why})" if why else "")
    return f"{where}: {found}, and none was kept. {_remedies(passed, counts, config)}"


def _remedies(passed: int, counts: Mapping[str, int], config: CycleConfig) -> str:
    g, m = config.generate, config.match
    failed = sum(counts.values())
    tried: Sequence[tuple[bool, str]] = (
        (passed > 0, f"lower match.min_correct (now {m.min_correct})"),
        (2 * counts.get("truncated", 0) > failed, f"raise generate.max_new_tokens (now {g.max_new_tokens})"),
        (not g.constrain, "set generate.constrain = true, so that every answer ends in a label"),
        (not config.rationalize.enabled, "set rationalize.enabled = true, so that failed questions get their hint"),
        (any("leak" in r for r in counts), "see whether rationalize.leak_guard refuses too much"),
        (True, f"raise generate.samples (now {g.samples})"),
        (g.temperature < 0.7, f"raise generate.temperature (now {g.temperature})"),
        (m.profile == "strict", "give the labels aliases, or match.profile = paper"),
        (True, "start from a model that knows the labels"),
    )
    return "To change: " + "; ".join(text for applies, text in tried if applies) + ". judged.jsonl holds every answer"
