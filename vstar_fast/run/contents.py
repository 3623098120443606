"""A run folder read back for people: its summary, questions and judged answers, and a choice of them to show."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vstar_fast.errors import RunError
from vstar_fast.files import read_jsonl, read_object
from vstar_fast.records import (
    Candidate,
    LabeledVideo,
    Question,
    Verdict,
    candidate_from_dict,
    question_from_dict,
    verdict_from_dict,
    video_from_dict,
)

BASE = -1
"""Cycle number of the base model's answers."""
PER_STRATUM = 4
"""Samples that every (cycle, mode, reason) shows at least, as far as it has them."""
MODES = {"generate": "direct", "rationalize": "rationalized"}
TEST = "metrics/test"


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged answer: the cycle it was given in, whether fine-tuning saw it, or whether it only measured."""

    cycle: int
    candidate: Candidate
    verdict: Verdict
    kept: bool = False
    evaluated: bool = False

    @property
    def stratum(self) -> tuple[int, str, bool, str]:
        """What sets samples apart: cycle, mode, evaluated or not, reason."""
        return (self.cycle, self.candidate.mode, self.evaluated, self.verdict.reason)


@dataclass(slots=True)
class Run:
    """What a run folder holds, as far as people look at it."""

    root: Path
    summary: dict[str, Any]
    videos: dict[str, LabeledVideo]
    questions: dict[str, Question] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)


def load(root: Path) -> Run:
    """Read a run folder. One that has not finished its first cycle shows its answers, but no gain yet.

    Raises RunError when there is nothing to show, or when the folder holds several seeds.
    """
    summary = _with_nan(read_object(root / "summary.json")) if (root / "summary.json").is_file() else None
    check_one_seed(root, summary or {})
    run = Run(root, summary or {}, {row["id"]: video_from_dict(row) for row in _rows(root / "videos.jsonl")})
    run.rejected = _rows(root / "rejected.jsonl")
    _add_questions(run, root / "questions.jsonl")
    _add_samples(run, BASE, root / "base" / TEST, set())
    for folder in cycles_of(root, summary):
        _add_cycle(run, int(folder.name.removeprefix("cycle-")), folder)
    if summary is None:
        run.summary = _unfinished(run)
    return run


def cycles_of(root: Path, summary: dict[str, Any] | None) -> list[Path]:
    """Folders of a run's cycles: those that its summary counts, or without one all that it has begun.

    One that began before the cycle before it was begun is of an earlier start with other settings.
    """
    folders = sorted(root.glob("cycle-[0-9][0-9]"))
    if summary and "cycles" in summary:
        return [f for f in folders if int(f.name.removeprefix("cycle-")) < len(summary["cycles"])]
    begun = [(f / "questions.jsonl").stat().st_mtime_ns if (f / "questions.jsonl").is_file() else 0 for f in folders]
    later = [after >= before for before, after in itertools.pairwise(begun)]
    return [f for n, f in enumerate(folders) if all(later[:n])]


def check_one_seed(root: Path, summary: dict[str, Any]) -> None:
    """Raise RunError for the folder of a run of several seeds, each of which is a run folder itself."""
    if "runs" in summary:
        seeds = ", ".join(str(root / f"seed-{s}") for s in summary["seeds"])
        raise RunError(f"{root} holds several seeds; give one of: {seeds}")


def _with_nan(value: Any) -> Any:
    """JSON's null back to NaN where an estimate or metric was not measured."""
    if isinstance(value, list):
        return [_with_nan(v) for v in value]
    if isinstance(value, dict):
        return {k: math.nan if v is None else _with_nan(v) for k, v in value.items()}
    return value


def _rows(path: Path) -> list[Any]:
    return read_jsonl(path) if path.is_file() else []


def _add_questions(run: Run, path: Path) -> None:
    run.questions.update((row["id"], question_from_dict(row)) for row in _rows(path))


def _add_cycle(run: Run, number: int, folder: Path) -> None:
    _add_questions(run, folder / "questions.jsonl")
    kept = {(row["question_id"], row["answer"].strip()) for row in _rows(folder / "examples.jsonl")}
    for name in [*MODES, TEST]:
        _add_samples(run, number, folder / name, kept)


def _add_samples(run: Run, cycle: int, folder: Path, kept: set[tuple[str, str]]) -> None:
    evaluated = folder.name == "test"
    for path in sorted(folder.glob("*.jsonl")):
        for row in read_jsonl(path):
            candidate, verdict = candidate_from_dict(row["candidate"]), verdict_from_dict(row["verdict"])
            if candidate.question_id in run.questions:
                mine = not evaluated and (candidate.question_id, candidate.text.strip()) in kept
                run.samples.append(Sample(cycle, candidate, verdict, mine, evaluated))


def _unfinished(run: Run) -> dict[str, Any]:
    """A summary of what stands in the folder of a run that wrote none."""
    if not run.samples:
        raise RunError(f"{run.root} holds no answers yet; is it the folder of a `vstar-fast cycle` run?")
    splits = Counter(v.split for v in run.videos.values())
    cycles = sorted({s.cycle for s in run.samples if s.cycle != BASE})
    return {
        "state": "not finished",
        "videos": {split: splits[split] for split in ("train", "dev", "test")},
        "cycles": [_yields([s for s in run.samples if s.cycle == i and not s.evaluated]) for i in cycles],
    }


def _yields(samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts of one cycle as `summary.json` has them."""
    asked = {m: {s.candidate.question_id for s in samples if s.candidate.mode == m} for m in MODES.values()}
    passed = {
        m: {s.candidate.question_id for s in samples if s.candidate.mode == m and s.verdict.passed} for m in asked
    }
    kept = Counter(s.candidate.mode for s in samples if s.kept)
    return {
        "asked": {m: len(ids) for m, ids in asked.items()},
        "kept": {m: kept[m] for m in asked},
        "yield": {m: len(passed[m]) / len(asked[m]) if asked[m] else 0.0 for m in asked},
        "rejected": dict(Counter(s.verdict.reason for s in samples if not s.verdict.passed).most_common()),
        "chance_acceptance": None,
    }


def mode_of(sample: Sample, run: Run) -> str:
    """`direct`, `rationalized`, or the held-out split that the answer measured."""
    video = run.videos.get(sample.candidate.video_id)
    return video.split if sample.evaluated and video is not None else sample.candidate.mode


def choose(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most `most` samples, in order: some of every stratum, then whole questions, asked and held-out in turn."""
    if len(samples) <= most:
        return list(samples)
    seen: Counter[tuple[int, str, bool, str]] = Counter()
    first: list[int] = []
    for i, s in enumerate(samples):
        seen[s.stratum] += 1
        if seen[s.stratum] <= PER_STRATUM:
            first.append(i)
    order: dict[tuple[bool, str], int] = {}
    count: Counter[bool] = Counter()
    for s in [*(samples[i] for i in first), *samples]:
        question = (s.evaluated, s.candidate.question_id)
        if question not in order:
            order[question] = count[s.evaluated]
            count[s.evaluated] += 1
    picked = set(first)
    rest = [i for i in range(len(samples)) if i not in picked]
    rest.sort(key=lambda i: order[samples[i].evaluated, samples[i].candidate.question_id])
    return [samples[i] for i in sorted([*first, *rest][:most])]
