"""Stage 3: does an answer contain the labels of its question?

A matcher is extract + compare + threshold, in a table by label kind for each profile. `strict` reads what stands
after the last `Answer:`; `paper` and `paper-code` look for names anywhere and by similarity, as Video-STaR does,
without the defects of its code: a number is one stated number, never any of them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vstar_fast import backends
from vstar_fast.config import MatchConfig, RationalizeConfig
from vstar_fast.errors import ConfigError, DataError
from vstar_fast.kernels.number_words import UNITS
from vstar_fast.match import classes, fuzzy, hedge, ids, numbers, words
from vstar_fast.match.leak import leak
from vstar_fast.match.text import (
    Case,
    Extract,
    Extracted,
    Names,
    answer_start,
    anywhere_cases,
    each,
    fold,
    slot_cases,
    span_of,
)
from vstar_fast.records import Candidate, Label, Question, Verdict

if TYPE_CHECKING:
    from vstar_fast.kernels.label_match import TokenBytes

__all__ = ["PROFILES", "REASONS", "Matcher", "chance_acceptance", "select_by_fraction", "verify"]

REASONS = {
    "ok": "every label was found",
    "no_answer": "no `Answer:` in the text",
    "truncated": "the token budget ended before the answer did",
    "stopped_early": "drawing was stopped once the answer could no longer hold the label (see --keep-rejected)",
    "no_value": "nothing after `Answer:` that could be the label",
    "wrong_value": "another label or text than the right one",
    "ambiguous": "more than one label or answer, or a number that leaves a choice: `at least 3`, `3 or 4`, `3/4`",
    "negated": "the label is denied: `not a backflip`",
    "wrong_unit": "a number in a unit that does not measure this label",
    "off_tolerance": "a number too far from the label",
    "low_iou": "a time span that overlaps the label too little",
    "wrong_order": "the right items in the wrong order, or a time span that ends before it starts",
    "wrong_length": "more or fewer items than the label has",
    "leak_hint": "rationalization that speaks of the hint",
    "leak_label_first": "rationalization that names the label before it says what is seen",
    "no_reasoning": "rationalization without reasoning",
}

Compare = Callable[[Any, Label], tuple[float, str]]
Threshold = Callable[[float, str, Label, MatchConfig], tuple[float, str]]


class Matcher(NamedTuple):
    """`extract` reads values out of answers, `compare` sets one against its label, `threshold` judges.

    `compare` and `threshold` give (measure or score, reason); the score is in [0, 1].
    """

    extract: Extract
    compare: Compare
    threshold: Threshold


class Profile(NamedTuple):
    """Where labels may stand, and the matcher of every kind."""

    cases: Callable[[Candidate, Question], list[Case] | None]
    matchers: dict[str, Matcher]
    strict: bool


def _same_name(value: Any, label: Label) -> tuple[float, str]:
    same = fold(value) == fold(label.value)
    return float(same), "ok" if same else "wrong_value"


def _error(value: float, label: Label) -> tuple[float, str]:
    """The absolute error."""
    return abs(value - label.value), "ok"


def _iou(value: tuple[float, float], label: Label) -> tuple[float, str]:
    start, end = label.value
    inside = min(value[1], end) - max(value[0], start)
    union = max(value[1], end) - min(value[0], start)
    return max(0.0, inside) / union, "ok"


def _in_order(value: Sequence[str], label: Label) -> tuple[float, str]:
    return words.sequence_score(value, label.value)


def _as_compared(score: float, reason: str, _label: Label, _config: MatchConfig) -> tuple[float, str]:
    return score, reason


COUNTS = "count"
"""Dimension of units whose numbers are exact in `strict` unless the label names a tolerance."""


def _within(relative: float | None) -> Threshold:
    """Within the label's tolerances, else within `relative` (None: `match.rel_tolerance`, and counts exactly)."""

    def threshold(error: float, _reason: str, label: Label, config: MatchConfig) -> tuple[float, str]:
        absolute, share = label.abs_tolerance or 0.0, label.rel_tolerance or 0.0
        if label.abs_tolerance is None and label.rel_tolerance is None:
            unit = UNITS.get((label.unit or "").lower())
            exact = relative is None and unit is not None and unit[0] == COUNTS
            share = 0.0 if exact else config.rel_tolerance if relative is None else relative
        allowed = absolute + share * abs(label.value)
        within = error <= allowed + 1e-9 * max(1.0, abs(label.value))
        return float(within), "ok" if within else "off_tolerance"

    return threshold


def _overlap(score: float, _reason: str, _label: Label, config: MatchConfig) -> tuple[float, str]:
    return score, "ok" if score >= config.iou - 1e-9 else "low_iou"


def _over_half(score: float, _reason: str, _label: Label, _config: MatchConfig) -> tuple[float, str]:
    return score, "ok" if score > 0.5 else "low_iou"


def _stated(after: Callable[[Case, Names], Extracted], last: Callable[[Case, Names], Extracted]) -> Extract:
    """Read by `after` behind the last `Answer:` when there is one, else by `last` in the whole text."""

    def extract(case: Case, names: Names) -> Extracted:
        start = answer_start(case.text)
        return last(case, names) if start < 0 else after(case._replace(start=start), names)

    return each(extract)


def _paper(least: Callable[[float], bool], relative: float, overlap: Threshold) -> dict[str, Matcher]:
    names = Matcher(each(fuzzy.name(least)), _same_name, _as_compared)
    return {
        "class": names,
        "choice": names,
        "answer": names,
        "number": Matcher(_stated(numbers.first_number, numbers.last_number), _error, _within(relative)),
        "interval": Matcher(_stated(numbers.first_interval, numbers.last_interval), _iou, overlap),
        "sequence": Matcher(each(fuzzy.sequence(least)), _in_order, _as_compared),
    }


_CLASS = Matcher(classes.extract, _same_name, _as_compared)

# Open tables: a new label kind is one matcher in each profile that can judge it.
PROFILES: dict[str, Profile] = {
    "strict": Profile(
        slot_cases,
        {
            "class": _CLASS,
            "choice": _CLASS,
            "answer": Matcher(each(words.answer), _same_name, _as_compared),
            "number": Matcher(each(hedge.only_number), _error, _within(None)),
            "interval": Matcher(each(numbers.first_interval), _iou, _overlap),
            "sequence": Matcher(each(words.sequence), _in_order, _as_compared),
        },
        strict=True,
    ),
    "paper": Profile(anywhere_cases, _paper(lambda x: x >= 0.80, 0.05, _overlap), strict=False),
    "paper-code": Profile(anywhere_cases, _paper(lambda x: x > 0.85, 0.10, _over_half), strict=False),
}


class _Judged(NamedTuple):
    extracted: Extracted
    score: float
    reason: str


def verify(
    candidates: Sequence[Candidate],
    questions: Iterable[Question] | Mapping[str, Question],
    config: MatchConfig,
    *,
    label_sets: Mapping[str, Sequence[str]] | None = None,
    rationalize: RationalizeConfig | None = None,
    tokens: TokenBytes | None = None,
) -> list[Verdict]:
    """One verdict a candidate, in order; every label of its question must pass.

    A candidate without text is judged by its token ids, of which `tokens` are the bytes; it is spelt out only where
    words must be read.

    `label_sets` tell which other names make an answer ambiguous. With `rationalize`, its leak guard judges
    candidates of mode `rationalized`. Raises DataError for a candidate whose question is not there, or a label
    kind without matcher, and ConfigError for an unknown profile.
    """
    profile = PROFILES.get(config.profile)
    if profile is None:
        raise ConfigError(f"unknown match.profile {config.profile!r}; known: {', '.join(PROFILES)}")
    asked = dict(questions) if isinstance(questions, Mapping) else {q.id: q for q in questions}
    found = [_question(candidate, asked) for candidate in candidates]
    names = Names(asked.values(), label_sets or {})
    guard = rationalize is not None and rationalize.leak_guard
    done = {} if tokens is None or not profile.strict else ids.verdicts(candidates, found, names, tokens, guard=guard)
    left = [i for i in range(len(candidates)) if i not in done]
    read = [(ids.with_text(candidates[i], tokens), found[i]) for i in left]
    judged = _judge([profile.cases(*pair) for pair in read], profile, names, config)
    for i, pair, rows in zip(left, read, judged, strict=True):
        done[i] = _verdict(*pair, rows, profile.strict, guard)
    return [done[i] for i in range(len(candidates))]


def _question(candidate: Candidate, asked: Mapping[str, Question]) -> Question:
    question = asked.get(candidate.question_id)
    if question is None:
        raise DataError(f"no question {candidate.question_id!r} for candidate {candidate.key}; pass its question too")
    return question


def _judge(
    cases: Sequence[list[Case] | None], profile: Profile, names: Names, config: MatchConfig
) -> list[list[_Judged] | None]:
    """All cases, kind by kind, so that an extraction sees every answer of its kind at once."""
    out: list[list[Any] | None] = [None if rows is None else [None] * len(rows) for rows in cases]
    by_kind: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, rows in enumerate(cases):
        for j, case in enumerate(rows or ()):
            by_kind[case.label.kind].append((i, j))
    for kind, places in by_kind.items():
        matcher = profile.matchers.get(kind)
        if matcher is None:
            known = ", ".join(profile.matchers)
            raise DataError(f"match.profile {config.profile!r} has no matcher for label kind {kind!r}; it has: {known}")
        todo = [cases[i][j] for i, j in places]  # type: ignore[index]
        for (i, j), case, extracted in zip(places, todo, matcher.extract(todo, names), strict=True):
            out[i][j] = _one(case.label, extracted, matcher, config)  # type: ignore[index]
        if matcher.extract is not classes.extract:
            backends.ran("match", "python")
    return out


def _one(label: Label, extracted: Extracted, matcher: Matcher, config: MatchConfig) -> _Judged:
    if extracted.reason != "ok":
        return _Judged(extracted, 0.0, extracted.reason)
    return _Judged(extracted, *matcher.threshold(*matcher.compare(extracted.value, label), label, config))


def _verdict(
    candidate: Candidate, question: Question, rows: Sequence[_Judged] | None, strict: bool, guard: bool
) -> Verdict:
    key = (candidate.question_id, candidate.mode, candidate.sample)
    cut = candidate.finish == "length"
    if candidate.finish == "stopped_early":
        return Verdict(*key, False, "stopped_early")
    if rows is None:
        return Verdict(*key, False, "truncated" if cut else "no_answer")
    reason = next((row.reason for row in rows if row.reason != "ok"), "ok")
    if cut and strict and (reason == "no_value" or reason == "ok" and _at_end(candidate.text, rows)):
        reason = "truncated"
    if reason == "ok" and guard and candidate.mode == "rationalized":
        reason = leak(candidate.text, question) or "ok"
    spans = tuple(None if r.extracted.span is None else span_of(candidate.text, r.extracted.span) for r in rows)
    values, scores = tuple(r.extracted.value for r in rows), tuple(r.score for r in rows)
    return Verdict(*key, reason == "ok", reason, values, spans, scores)


def _at_end(text: str, rows: Sequence[_Judged]) -> bool:
    """Whether a value ends where the text was cut off: `4` may have become `45`, `spin` a `spin kick`."""
    return any(row.extracted.span is not None and row.extracted.span[1] == len(text) for row in rows)


def chance_acceptance(questions: Iterable[Question], label_sets: Mapping[str, Sequence[str]], samples: int) -> float:
    """Mean probability that `samples` uniform guesses hold the labels, over questions with closed sets only.

    One guess over N labels is right with 1/N, so k of them hit with 1 - (1 - 1/N)^k. 0.0 without such questions.
    """
    chances = []
    for question in questions:
        sizes = [len(label_sets.get(x.set or "", ())) for x in question.labels if x.kind in ("class", "choice")]
        if sizes and len(sizes) == len(question.labels) and all(sizes):
            chances.append(1 - (1 - 1 / math.prod(sizes)) ** samples)
    return sum(chances) / len(chances) if chances else 0.0


def select_by_fraction(verdicts: Iterable[Verdict], min_correct: float) -> list[Verdict]:
    """The verdicts that passed, of questions at least `min_correct` of whose samples (of one mode) passed."""
    held = list(verdicts)
    total = Counter((v.question_id, v.mode) for v in held)
    passed = Counter((v.question_id, v.mode) for v in held if v.passed)
    return [v for v in held if v.passed and passed[v.question_id, v.mode] >= min_correct * total[v.question_id, v.mode]]
