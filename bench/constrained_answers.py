"""The cycle's answers with and without their grammar: tokens a CPU-second, and how many can be judged at all.

Equality: every constrained answer holds a label of its question's kind, and a greedy answer that the grammar allows is
the same with and without it.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from vstar_fast.bench.cycle import Work, features_of, prepare

from vstar_fast import match, ops, questions
from vstar_fast.answer_slots import Slots
from vstar_fast.generate import Sampling, generate, to_candidates
from vstar_fast.match.text import Names
from vstar_fast.records import Candidate

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench
    from vstar_fast.kernels.constrain import Grammar

    from vstar_fast.models.video_lm import Features

NAMES = ("constrained", "free")
TARGET = 0.97
UNJUDGED = ("no_answer", "no_value", "truncated")


class _Drawn(NamedTuple):
    answers: list[Candidate]
    per_second: float


def run(bench: Bench, quick: bool) -> None:
    """One row of speed, the two in turn, and one of answers that hold a label."""
    work = prepare(clips=2 if quick else 8, samples=2 if quick else 4, tokens=24 if quick else 40)
    features, grammars = features_of(work), _grammars(work)
    g = work.config.generate
    greedy = Sampling(1, 0.0, 1.0, 0, g.max_new_tokens)
    held, free = (_draw(work, features, greedy, grammar).answers for grammar in (grammars, []))
    judged = _share(work, held)
    same = all(h.token_ids == f.token_ids for h, f, ok in zip(held, free, _judged(work, free), strict=True) if ok)
    sampled = Sampling(g.samples, g.temperature, 1.0, 0, g.max_new_tokens)
    turns = [
        (_draw(work, features, sampled, grammars), _draw(work, features, sampled, [])) for _ in range(1 if quick else 5)
    ]
    case = f"{len(work.asked)} questions x {g.samples}, up to {g.max_new_tokens} tokens"
    fixed = {"case": case, "subject": NAMES[0], "baseline": NAMES[1], "equal": same and judged == 1.0}
    speed, ratio = (median(a.per_second for a, _ in turns), median(a.per_second / b.per_second for a, b in turns))
    bench.add(metric="speed", value=speed, unit="tokens/cpu-s", ratio=ratio, target=TARGET, **fixed)  # type: ignore[arg-type]
    shares = [_share(work, [c for pair in turns for c in pair[i].answers]) for i in (0, 1)]
    against = shares[0] / shares[1] if shares[1] else None
    bench.add(metric="judged", value=shares[0], unit="share of answers", ratio=against, **fixed)  # type: ignore[arg-type]


def _grammars(work: Work) -> list[Grammar | None]:
    slots = Slots(work.asked, {v.id: v for v in work.videos}, Names(work.asked, work.label_sets).closed)
    templates = [slots.template(q, reason=True) for q in work.asked]
    return [None if t is None else ops.compile(t, work.lm.vocab) for t in templates]


def _draw(work: Work, features: list[Features], sampling: Sampling, grammars: list[Grammar | None]) -> _Drawn:
    began = time.process_time()
    seeds = {q.id: i << 16 for i, q in enumerate(work.asked)}
    batch = generate(
        work.lm, work.asked, features, sampling, questions.prompt_text, lambda q, n: seeds[q.id] + n, grammars
    )
    taken = time.process_time() - began
    return _Drawn(list(to_candidates(batch, work.lm, sampling, "bench", "direct")), int(batch.lengths.sum()) / taken)


def _judged(work: Work, answers: list[Candidate]) -> list[bool]:
    """Per answer, whether it holds what could be its label."""
    tokens = work.lm.token_bytes
    verdicts = match.verify(answers, work.asked, work.config.match, label_sets=work.label_sets, tokens=tokens)
    return [v.reason not in UNJUDGED for v in verdicts]


def _share(work: Work, answers: list[Candidate]) -> float:
    return sum(_judged(work, answers)) / len(answers)
