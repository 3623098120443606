"""What a run reports: `summary.json`, written after every cycle. Its schema is documented in `SCHEMA`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstar_fast import evaluate, match
from vstar_fast.config import CycleConfig, to_dict
from vstar_fast.files import content_key, read_json, read_object, write_json
from vstar_fast.records import Example, Question
from vstar_fast.records import to_dict as record_dict
from vstar_fast.run.runtime import versions

if TYPE_CHECKING:
    from vstar_fast.run.session import Judged, Session

SCHEMA = {
    "base.accuracy": "{value, low, high, n}: test accuracy of the base model on the primary label kind, 95 % interval",
    "cycles[i].accuracy": "the same after cycle i; cycles[i].dev.accuracy: on dev, which steers the run",
    "cycles[i].metrics.<kind>": "n, accuracy and the kind's own metric on test",
    "cycles[i].asked / .kept": "{direct, rationalized}: questions asked, examples kept",
    "cycles[i].yield": "{direct, rationalized}: share of the asked questions that gave an answer that passed",
    "cycles[i].rejected": "{reason: n} over all candidates",
    "cycles[i].chance_acceptance": "chance that k uniform guesses contain the label (closed sets)",
    "gain": "{value, low, high, n}: last cycle minus base on test, paired by clip",
    "controls": "{labels_only, shuffled}: .accuracy, .gain over base, .steps",
    "stages.<name>": "seconds, cpu_seconds, peak_mib, items and rates",
    "frames": "decoded, encoded, cached; stalls (the model waited), stall_s, decode_cpu_s, *_hit, route:*, error:*",
    "backends": "op or stage -> backend -> calls: what really ran, earlier processes of the run included",
    "reasons": "stage -> the way that its model goes, and why: packed, plain, or row by row",
    "processes": "how many worked at the run; stages and frames are those of the first",
    "best_cycle": "cycle with the best dev accuracy (-1: the base model)",
}


class Record:
    """Collects results and writes `summary.json`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.base: dict[str, Any] = {}
        self.cycles: list[dict[str, Any]] = []
        self.final: dict[str, Any] | None = None
        self.controls: dict[str, Any] = {}
        self.stopped = ""
        self._hash = content_key(to_dict(session.config))
        self._forget_other_settings(session.folder.root / "summary.json")

    def _forget_other_settings(self, path: Path) -> None:
        """Remove the summary of other settings: until the next one is written it would pass for this run's."""
        if self._session.ranks.first and path.is_file() and read_object(path).get("config_hash") != self._hash:
            path.unlink()

    def write(self, state: str) -> dict[str, Any]:
        """Write and return the summary as it stands."""
        s = self._session
        did = s.ledger.write()
        value = {
            "state": state,
            "stopped": self.stopped,
            "recipe": s.config.recipe,
            "seed": s.config.seed,
            "config_hash": self._hash,
            "primary": s.primary,
            "videos": {k: len({q.video_id for q in v}) for k, v in s.questions.items()},
            "base": _public(self.base),
            "cycles": [_public(c) for c in self.cycles],
            "best_cycle": self._best(),
            "gain": self._gain(self.cycles[-1]),
            "controls": {k: _public(v) | {"gain": self._gain(v)} for k, v in self.controls.items()},
            "input_rejected": dict(Counter(f"{r.stage}:{r.reason}" for r in s.folder.rejected)),
            **did,
            "versions": versions(),
            "processes": s.ranks.size,
        }
        if self.final is not None:
            value["final"] = _public(self.final) | {"gain": self._gain(self.final)}
        write_json(s.folder.root / "summary.json", value)
        return value

    def _gain(self, after: dict[str, Any]) -> dict[str, Any]:
        e = self._session.config.evaluate
        found = evaluate.gain(self.base["clips"], after["clips"], bootstrap=e.bootstrap, seed=self._session.config.seed)
        return record_dict(found)

    def _best(self) -> int:
        values = [self.base["dev"]["accuracy"]["value"]] + [c["dev"]["accuracy"]["value"] for c in self.cycles]
        return max(range(len(values)), key=values.__getitem__) - 1


def _public(found: dict[str, Any]) -> dict[str, Any]:
    """Results as the schema has them: test on top, dev below, per-clip values left out."""
    rest = {k: v for k, v in found.items() if k not in ("test", "dev", "clips", "adapter")}
    test, dev = found["test"], found["dev"]
    return {
        **rest,
        "accuracy": test["accuracy"],
        "metrics": test["kinds"],
        "reasoned": test["reasoned"],
        "dev": {"accuracy": dev["accuracy"], "metrics": dev["kinds"]},
    }


def counts(judged: Judged) -> dict[str, Any]:
    """How many candidates passed, and why the others did not."""
    reasons = Counter(v.reason for _, v in judged if not v.passed)
    return {
        "candidates": len(judged),
        "passed": sum(v.passed for _, v in judged),
        "rejected": dict(reasons.most_common()),
    }


def yields(
    direct: Judged,
    rationalized: Judged,
    examples: Sequence[Example],
    asked: Sequence[Question],
    label_sets: Mapping[str, Sequence[str]],
    config: CycleConfig,
) -> dict[str, Any]:
    """Counts of one cycle: asked, kept, yield overall and by label kind, reasons, and what luck alone would give."""
    sources = Counter(e.source for e in examples)
    modes = {"direct": direct, "rationalized": rationalized}
    kinds = {q.id: q.labels[0].kind for q in asked}
    closed = [q for q in asked if kinds[q.id] in ("class", "choice")]
    return {
        "asked": {m: len({c.question_id for c, _ in rows}) for m, rows in modes.items()},
        "kept": {m: sources.get(m, 0) for m in modes},
        "yield": {m: _share(rows) for m, rows in modes.items()},
        "yield_by_kind": {m: _by_kind(rows, kinds) for m, rows in modes.items()},
        "rejected": dict(Counter(v.reason for rows in modes.values() for _, v in rows if not v.passed).most_common()),
        "chance_acceptance": match.chance_acceptance(closed, label_sets, config.generate.samples),
    }


def _share(rows: Judged) -> float:
    ids = {c.question_id for c, _ in rows}
    return len({c.question_id for c, v in rows if v.passed}) / len(ids) if ids else 0.0


def _by_kind(rows: Judged, kinds: Mapping[str, str]) -> dict[str, float]:
    present = sorted({kinds[c.question_id] for c, _ in rows})
    return {k: _share([r for r in rows if kinds[r[0].question_id] == k]) for k in present}


def pool(root: Path, config: CycleConfig, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several seeds as one result: values averaged over seeds, intervals clustered by clip over all of them."""
    folders = [root / f"seed-{r['seed']}" for r in runs]
    e = config.evaluate
    base = [read_json(f / "base" / "metrics" / "test-clips.json") for f in folders]
    last = [
        read_json(f / f"cycle-{len(r['cycles']) - 1:02d}" / "metrics" / "test-clips.json")
        for f, r in zip(folders, runs, strict=True)
    ]
    value = {
        "seeds": [r["seed"] for r in runs],
        "base": {"accuracy": _pooled(base, e.bootstrap)},
        "last": {"accuracy": _pooled(last, e.bootstrap)},
        "gain": record_dict(evaluate.gain(_join(base), _join(last), bootstrap=e.bootstrap, seed=config.seed)),
        "controls": {
            name: {
                "accuracy": _pooled(
                    [read_json(f / "controls" / name / "metrics" / "test-clips.json") for f in folders], e.bootstrap
                )
            }
            for name in (runs[0]["controls"] or {})
        },
        "runs": list(runs),
    }
    write_json(root / "summary.json", value)
    return value


def _join(runs: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Values of every clip over all runs, so that a clip is one cluster."""
    joined: dict[str, list[float]] = {}
    for clips in runs:
        for clip, values in clips.items():
            joined.setdefault(clip, []).extend(values)
    return joined


def _pooled(runs: Sequence[Mapping[str, list[float]]], bootstrap: int) -> dict[str, Any]:
    return record_dict(evaluate.estimate(_join(runs), bootstrap=bootstrap, seed=0))
