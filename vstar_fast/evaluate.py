"""Stage 6: verdicts on held-out videos -> metrics per label kind, with intervals clustered by clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vstar_fast.records import Candidate, Estimate, Label, Question, Verdict

Rows = Sequence[tuple[Label, Verdict, int]]
"""Labels with the verdict on their answer, and where in it they stand."""


def accuracy(verdicts: Sequence[Verdict], questions: Mapping[str, Question], *, bootstrap: int, seed: int) -> Estimate:
    """Share of answers that passed, with a 95 % interval from resampling clips."""
    return estimate(by_clip(verdicts, questions), bootstrap=bootstrap, seed=seed)


def by_clip(verdicts: Sequence[Verdict], questions: Mapping[str, Question]) -> dict[str, list[float]]:
    """1/0 per answer, grouped by the clip it is about."""
    clips: dict[str, list[float]] = defaultdict(list)
    for v in verdicts:
        clips[questions[v.question_id].video_id].append(float(v.passed))
    return dict(clips)


def estimate(clips: Mapping[str, Sequence[float]], *, bootstrap: int, seed: int) -> Estimate:
    """Mean over all values of all clips; clips are resampled whole (95 % percentile interval)."""
    if not clips:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    sums = np.array([sum(v) for v in clips.values()], dtype=float)
    counts = np.array([len(v) for v in clips.values()], dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(sums), (bootstrap, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), len(sums))


def gain(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], *, bootstrap: int, seed: int
) -> Estimate:
    """Mean of `after - before` over the answers of the clips that both have; clips are resampled whole."""
    paired = {c: [x - y for x, y in zip(after[c], before[c], strict=True)] for c in after if c in before}
    return estimate(paired, bootstrap=bootstrap, seed=seed)


def metrics(verdicts: Sequence[Verdict], questions: Mapping[str, Question]) -> dict[str, dict[str, float]]:
    """Per label kind: `n`, `accuracy`, and what suits the kind (see `_EXTRA`). Every label counts once."""
    rows: dict[str, list[tuple[Label, Verdict, int]]] = defaultdict(list)
    for v in verdicts:
        for i, label in enumerate(questions[v.question_id].labels):
            rows[label.kind].append((label, v, i))
    return {kind: _kind_metrics(kind, group) for kind, group in sorted(rows.items())}


def _kind_metrics(kind: str, rows: Rows) -> dict[str, float]:
    out = {"n": float(len(rows)), "accuracy": float(np.mean([v.passed for _, v, _ in rows]))}
    extra = _EXTRA.get(kind)
    return out | extra(rows) if extra else out


def _mean_score(name: str) -> Callable[[Rows], dict[str, float]]:
    def mean(rows: Rows) -> dict[str, float]:
        scores = [v.scores[i] if i < len(v.scores) else 0.0 for _, v, i in rows]
        return {name: float(np.mean(scores))}

    return mean


def _number(rows: Rows) -> dict[str, float]:
    """Relative error over the answers that hold a number, and the share that does."""
    found = [
        (label.value, float(v.extracted[i]))
        for label, v, i in rows
        if i < len(v.extracted) and isinstance(v.extracted[i], (int, float))
    ]
    errors = [abs(got - want) / max(abs(want), 1e-9) for want, got in found]
    median = float(np.median(errors)) if errors else float("nan")
    return {"answered": len(found) / len(rows), "median_relative_error": median}


_EXTRA = {"interval": _mean_score("mean_iou"), "sequence": _mean_score("matched_share"), "number": _number}


def reasoned(candidates: Sequence[Candidate]) -> float:
    """Share of answers that reason (three words or more) before their last `Answer:`."""
    if not candidates:
        return float("nan")
    heads = [c.text.lower().rpartition("answer:")[0].split() for c in candidates]
    return float(np.mean([len(h) >= 3 for h in heads]))


def plateau(history: Sequence[Estimate], patience: int) -> bool:
    """True when the last `patience` values did not rise above the best one before them beyond its interval.

    `history`: dev accuracy of the base model and of every cycle so far. This is the stop rule; the paper
    says only "until the performance plateaus".
    """
    if len(history) <= patience:
        return False
    before = max(history[:-patience], key=lambda e: e.value)
    return all(e.value <= before.high for e in history[-patience:])
