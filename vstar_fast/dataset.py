"""Stage 4: verdicts -> supervised examples. Every example can be traced to the candidate it came from."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vstar_fast.config import MatchConfig, RationalizeConfig
from vstar_fast.records import FAILED, Candidate, Example, Question, Verdict

Judged = tuple[Candidate, Verdict]


def select(judged: Iterable[Judged], questions: dict[str, Question], match: MatchConfig) -> list[Example]:
    """Examples from the answers that passed, per question by `match.keep`, in the order of the questions.

    A question is left out when fewer than `match.min_correct` of its samples passed: with k samples over
    N labels some hits are luck.
    """
    by_question: dict[str, list[Judged]] = defaultdict(list)
    for candidate, verdict in judged:
        by_question[candidate.question_id].append((candidate, verdict))
    kept: list[Example] = []
    for question_id, question in questions.items():
        rows = by_question.get(question_id, [])
        passed = [c for c, v in rows if v.passed]
        if passed and len(passed) >= match.min_correct * len(rows):
            kept += _examples(question, passed, match.keep)
    return kept


def _examples(question: Question, passed: list[Candidate], keep: str) -> list[Example]:
    ordered = sorted(passed, key=_likelihood if keep == "best" else lambda c: c.sample)
    texts = list(dict.fromkeys(c.text.strip() for c in ordered))
    chosen = texts if keep == "all" else texts[:1]
    weight = 1.0 / len(chosen)
    source = ordered[0].mode
    return [Example(question.video_id, question.id, question.text, t, source, weight) for t in chosen]


def _likelihood(candidate: Candidate) -> float:
    """Sort key: the likeliest answer first; an answer that follows from its own reasoning is likelier."""
    return -candidate.logprob / max(1, len(candidate.token_ids))


def cap(rationalized: Sequence[Example], direct: int, config: RationalizeConfig, seed: int) -> list[Example]:
    """At most `max_share` x `direct` rationalized examples, drawn by seed, in their order.

    With nothing kept directly there is nothing to balance against, and all of them stay.
    """
    if direct == 0 or math.isinf(config.max_share):
        return list(rationalized)
    limit = math.floor(config.max_share * direct)
    if len(rationalized) <= limit:
        return list(rationalized)
    chosen = set(random.Random(seed).sample(range(len(rationalized)), limit))
    return [e for i, e in enumerate(rationalized) if i in chosen]


def distinct(examples: Sequence[Example]) -> list[Example]:
    """Without copies: of examples with the same video, question and answer (but for white space) the first stays."""
    found: dict[tuple[Any, ...], Example] = {}
    for e in examples:
        found.setdefault((e.video_id, e.history, *(" ".join(t.split()) for t in (e.question, e.answer))), e)
    return list(found.values())


def paired(examples: Sequence[Example], judged: Iterable[Judged]) -> list[Example]:
    """Each example beside a failed answer to its question: its n-th example gets the n-th of them, in turn.

    Examples of a question without a failed answer are left as they are.
    """
    failed: dict[str, dict[str, None]] = defaultdict(dict)
    for candidate, verdict in judged:
        if not verdict.passed and candidate.text.strip():
            failed[candidate.question_id][candidate.text.strip()] = None
    seen: dict[str, int] = defaultdict(int)
    found = []
    for e in examples:
        texts = [t for t in failed[e.question_id] if t != e.answer]
        found.append(replace(e, rejected=texts[seen[e.question_id] % len(texts)]) if texts else e)
        seen[e.question_id] += 1
    return found


def failed(examples: Sequence[Example], judged: Iterable[Judged], questions: Mapping[str, Question]) -> list[Example]:
    """The first failed answer to each question, to be made less likely; in sum they weigh what `examples` do."""
    first: dict[str, str] = {}
    for candidate, verdict in judged:
        if not verdict.passed and candidate.text.strip():
            first.setdefault(candidate.question_id, candidate.text.strip())
    if not first:
        return []
    weight = sum(e.weight for e in examples) / len(first)
    return [Example(questions[i].video_id, i, questions[i].text, said, FAILED, weight) for i, said in first.items()]


BALANCED = ("class", "choice")
"""Label kinds of which each value is a class of its own."""


def balance(examples: Sequence[Example], questions: Mapping[str, Question]) -> list[Example]:
    """Examples weighted so that every label of a set counts the same in sum; their total weight stays.

    Weighted are examples whose question has one label of a closed kind; the others are left as they are.
    """
    keys = [None if e.source == FAILED else _label_key(questions.get(e.question_id)) for e in examples]
    weights: dict[tuple[str, str, str], float] = defaultdict(float)
    for e, key in zip(examples, keys, strict=True):
        if key is not None:
            weights[key] += e.weight
    sets: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, weight in weights.items():
        sets[key[:2]].append(weight)
    even = {of: sum(each) / len(each) for of, each in sets.items()}
    return [
        e if key is None else replace(e, weight=e.weight * even[key[:2]] / weights[key])
        for e, key in zip(examples, keys, strict=True)
    ]


def _label_key(question: Question | None) -> tuple[str, str, str] | None:
    """(kind, name, value) of a question's only label, if it is of a closed kind."""
    if question is None or len(question.labels) != 1 or question.labels[0].kind not in BALANCED:
        return None
    label = question.labels[0]
    return label.kind, label.name, str(label.value)
