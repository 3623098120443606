"""Answers with and without their grammar: tokens a second (of the CPU, without a GPU), and how many can be judged.

Equality: every constrained answer holds a label of its question's kind, and a greedy answer that the grammar allows is
the same with and without it. Answers with forced tokens skipped are token for token those without.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from vstar_fast.bench.cost import seconds_of
from vstar_fast.bench.cycle import Work, features_of, prepare, usual

from vstar_fast import match, ops, questions
from vstar_fast.generate import Sampling, generate, to_candidates
from vstar_fast.labels.slots import Slots
from vstar_fast.match.text import Names
from vstar_fast.records import Candidate, CandidateBatch

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench
    from vstar_fast.kernels.constrain import Grammar

    from vstar_fast.engine import Counts
    from vstar_fast.models.video_lm import Features

NAMES = ("constrained", "free")
FORCED = ("forced tokens skipped", "token by token")
TURNS = 5
MOST_TOKENS = 160
TARGET = 0.97
UNITS = {"cpu": "tokens/cpu-s", "cuda": "tokens/s"}
UNJUDGED = ("no_answer", "no_value", "truncated")


class _Drawn(NamedTuple):
    answers: list[Candidate]
    per_second: float


def run(bench: Bench, quick: bool) -> None:
    """One row of speed, the two in turn, and one of answers that hold a label."""
    work = prepare(usual(bench.device, quick, tokens=24))
    features, grammars = features_of(work), _grammars(work)
    g = work.config.generate
    greedy = Sampling(1, 0.0, 1.0, 0, g.max_new_tokens)
    held, free = (_draw(work, features, greedy, grammar).answers for grammar in (grammars, []))
    judged = _share(work, held)
    same = all(h.token_ids == f.token_ids for h, f, ok in zip(held, free, _judged(work, free), strict=True) if ok)
    sampled = Sampling(g.samples, g.temperature, 1.0, 0, g.max_new_tokens)
    turns = [
        (_draw(work, features, sampled, grammars), _draw(work, features, sampled, []))
        for _ in range(1 if quick else TURNS)
    ]
    case = f"{len(work.asked)} questions x {g.samples}, up to {g.max_new_tokens} tokens"
    fixed = {"case": case, "subject": NAMES[0], "baseline": NAMES[1], "equal": same and judged == 1.0}
    speed, ratio = (median(a.per_second for a, _ in turns), median(a.per_second / b.per_second for a, b in turns))
    bench.add(metric="speed", value=speed, unit=UNITS[bench.device], ratio=ratio, target=TARGET, **fixed)  # type: ignore[arg-type]
    shares = [_share(work, [c for pair in turns for c in pair[i].answers]) for i in (0, 1)]
    gain = shares[0] / shares[1] if shares[1] else None
    bench.add(metric="judged", value=shares[0], unit="share of answers", ratio=gain, **fixed)  # type: ignore[arg-type]
    _forced(bench, work, features, quick)


def _forced(bench: Bench, work: Work, features: list[Features], quick: bool) -> None:
    """Answers whose text is mostly given: a JSON object with fixed keys, its forced tokens skipped or stepped over."""
    names = sorted({name for known in work.label_sets.values() for name in known})
    keys = {
        "what the person in the video does": ops.choice(names),
        "how sure the viewer can be of it": ops.choice(["certain", "likely", "unsure"]),
        "is the action seen to its end": ops.choice(["yes", "no"]),
    }
    grammar = ops.compile(ops.json(keys), work.lm.vocab, "forced")
    turns = [[_steps(work, features, grammar, skip) for skip in (True, False)] for _ in range(1 if quick else TURNS)]
    (skipped, counts, _), (stepped, every, _) = turns[0]
    share = counts.forced / counts.tokens
    bench.add(
        case=f"{len(work.asked)} questions, JSON answers of fixed keys, {share:.0%} of their tokens forced, "
        f"{counts.steps} steps of the model against {every.steps}",
        subject=FORCED[0],
        baseline=FORCED[1],
        metric="speed",
        value=median(counts.tokens / ours for (_, _, ours), _ in turns),
        unit=UNITS[bench.device],
        ratio=median(theirs / ours for (_, _, ours), (_, _, theirs) in turns),
        target=1.0,
        equal=skipped == stepped and counts.forced > 0 == every.forced,
    )


def _steps(work: Work, features: list[Features], grammar: Grammar, skip: bool) -> tuple[list[list[int]], Counts, float]:
    """(token ids of every answer, what the scheduler counted, seconds)."""
    from vstar_fast.engine import Request, Scheduler, Settings

    settings = Settings(work.config.generate.temperature, 1.0, 0, MOST_TOKENS)
    scheduler = Scheduler(work.lm, skip_forced=skip)
    seeds = range(work.config.generate.samples)
    asked = [
        Request(*work.lm.split(prompt), seen, seeds, settings, grammar, tag=i)
        for i, (prompt, seen) in enumerate(zip(work.prompts, features, strict=True))
    ]

    def draw() -> dict[Any, list[list[int]]]:
        return {request.tag: [a.token_ids for a in answers] for request, answers in scheduler.run(asked)}

    found, taken = seconds_of(draw, work.lm.device.type)
    return [ids for i in range(len(asked)) for ids in found[i]], scheduler.counts, taken


def _grammars(work: Work) -> list[Grammar | None]:
    slots = Slots(work.asked, {v.id: v for v in work.videos}, Names(work.asked, work.label_sets).closed)
    templates = [slots.template(q, reason=True) for q in work.asked]
    return [None if t is None else ops.compile(t, work.lm.vocab) for t in templates]


def _draw(work: Work, features: list[Features], sampling: Sampling, grammars: list[Grammar | None]) -> _Drawn:
    seeds = {q.id: i << 16 for i, q in enumerate(work.asked)}

    def draw() -> CandidateBatch:
        prompt = questions.prompt_text
        return generate(work.lm, work.asked, features, sampling, prompt, lambda q, n: seeds[q.id] + n, grammars)

    batch, taken = seconds_of(draw, work.lm.device.type)
    return _Drawn(list(to_candidates(batch, work.lm, sampling, "bench", "direct")), int(batch.lengths.sum()) / taken)


def _judged(work: Work, answers: list[Candidate]) -> list[bool]:
    """Per answer, whether it holds what could be its label."""
    tokens = work.lm.token_bytes
    verdicts = match.verify(answers, work.asked, work.config.match, label_sets=work.label_sets, tokens=tokens)
    return [v.reason not in UNJUDGED for v in verdicts]


def _share(work: Work, answers: list[Candidate]) -> float:
    return sum(_judged(work, answers)) / len(answers)
