"""Which of the answers a question allows its judge would accept, as a template: drawing stops where none can follow.

A template here may take more than the judge accepts, never less. Where that cannot be said, there is none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

from vstar_fast import match, ops
from vstar_fast.config import MatchConfig
from vstar_fast.errors import ConstrainError
from vstar_fast.labels import slots
from vstar_fast.match.text import WORD, fold
from vstar_fast.records import Candidate, Label, Question

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain.nodes import Node
    from vstar_fast.labels.slots import Slots

Judge = Callable[[Question, Sequence[str]], list[bool]]
HERE = "here"
BETWEEN = ";"
"""Stands between the slots of several labels."""
STEP_S = Fraction(1, 10)
"""Between two times that may be written."""
MOST_STEPS = 10**9
"""Farthest from a label, in steps of its grid, that a number is looked for."""


class Wanted:
    """Templates of the answers that `judge` accepts, by question."""

    def __init__(self, slots: Slots, judge: Judge, config: MatchConfig) -> None:
        self._slots, self._judge, self._config = slots, judge, config
        self._made: dict[tuple[object, ...], Node | None] = {}
        self._apart_sets: dict[tuple[object, ...], bool] = {}

    def template(self, question: Question, *, reason: bool) -> Node | None:
        """Template of the wanted answers; None where every answer must be drawn to its end to know."""
        key = (reason, self._slots.key(question), question.labels)
        if key not in self._made:
            parts = [self._slot(question, label) for label in question.labels]
            known = [part for part in parts if part is not None]
            whole = len(known) == len(parts)
            self._made[key] = self._slots.filled(question, known, reason=reason) if whole else None
        return self._made[key]

    def _slot(self, question: Question, label: Label) -> Node | None:
        if label.kind not in _SLOTS or self._slots.free(question, label):
            return None
        try:
            return _SLOTS[label.kind](self, replace(question, labels=(label,)), len(question.labels) > 1)
        except ConstrainError:  # no answer of the template is right, so nothing tells the wrong ones apart
            return None

    def _names(self, question: Question, several: bool) -> Node | None:
        """The surfaces that are accepted, with or without the full stop that may follow."""
        names = self._slots.names(question.labels[0])
        surfaces = _holding(names, fold(question.labels[0].value))
        passed = self._judge(question, [f"{surface}{end}" for surface in surfaces for end in ("", ".")])
        accepted = [s for i, s in enumerate(surfaces) if any(passed[2 * i : 2 * i + 2])]
        apart = not several or not any(BETWEEN in s for listed in names.values() for s in listed)
        return ops.choice(accepted) if accepted and apart else None

    def _sequence(self, question: Question, _several: bool) -> Node | None:
        """The items in order, each by any of its surfaces, when the judge reads every surface as its own name."""
        label = question.labels[0]
        names = {fold(name): listed for name, listed in self._slots.names(label).items()}
        if not self._apart(question, label, names):
            return None
        return ops.sequence([ops.choice(names[fold(item)]) for item in label.value])

    def _apart(self, question: Question, label: Label, names: dict[str, list[str]]) -> bool:
        """Whether each surface of a set is read as the one item that it names."""
        key = ("apart", label.set, *names)
        if key not in self._apart_sets:
            alone = [replace(question, labels=(replace(label, value=(name,)),)) for name in names]
            clean = not any(mark in s for listed in names.values() for s in listed for mark in (BETWEEN, ","))
            read = (self._judge(q, listed) for q, listed in zip(alone, names.values(), strict=True))
            self._apart_sets[key] = clean and all(all(passed) for passed in read)
        return self._apart_sets[key]

    def _number(self, question: Question, _several: bool) -> Node | None:
        """The numbers within the tolerance, on the grid that the slot has; what lies beside them must be refused."""
        label = question.labels[0]
        facts = self._slots.facts(label)
        digits = slots.places(facts)
        gold, grid = Fraction(str(label.value)), 10**digits
        threshold = match.PROFILES["strict"].matchers["number"].threshold

        def passes(n: int) -> bool:
            return threshold(float(abs(Fraction(n, grid) - gold)), "ok", label, self._config)[1] == "ok"

        near = [n for n in {floor(gold * grid), ceil(gold * grid)} if passes(n)]
        if not near:
            return None
        low = min(near) - _most(lambda k: passes(min(near) - k))
        high = max(near) + _most(lambda k: passes(max(near) + k))
        units = ("", *slots.units(label)) if label.unit else ("",)

        def written(*steps: int) -> list[str]:
            return [f"{n / grid:.{digits}f}{unit}" for n in steps for unit in units]

        if any(self._judge(question, written(low - 1, high + 1))) or not all(self._judge(question, written(*near))):
            return None
        least = low if facts.negative else max(low, 0)
        return slots.number(label, facts, Fraction(least, grid), Fraction(high, grid))

    def _interval(self, question: Question, _several: bool) -> Node | None:
        """Starts and ends, each by itself, from which the overlap can still be had."""
        start, end = (Fraction(str(x)) for x in question.labels[0].value)
        share, length = Fraction(str(self._config.iou)), end - start
        spare = length * (1 / share - 1) + STEP_S
        starts = (max(start - spare, Fraction(0)), end - share * length + STEP_S)
        ends = (max(start + share * length - STEP_S, Fraction(0)), end + spare)
        length_s = self._slots.length_s(question)
        fine = length_s is not None and length_s <= slots.LONGEST_FINE_S
        return slots.moments(starts, ends, 1 if fine else (0, 1))


_SLOTS: dict[str, Callable[[Wanted, Question, bool], Node | None]] = {
    "class": Wanted._names,
    "choice": Wanted._names,
    "sequence": Wanted._sequence,
    "number": Wanted._number,
    "interval": Wanted._interval,
}


def judge(config: MatchConfig, label_sets: Mapping[str, Sequence[str]], asked: Iterable[Question]) -> Judge:
    """What the run's judge says of answers whose slot holds these texts; `asked`, for the aliases that they give."""
    named = {q.labels: q for q in asked if any(label.aliases for label in q.labels)}
    others: dict[str, list[Question]] = {}
    for i, q in enumerate(named.values()):
        for name in {label.set for label in q.labels if label.set is not None}:
            others.setdefault(name, []).append(replace(q, id=f"alias {i}"))

    def judged(question: Question, texts: Sequence[str]) -> list[bool]:
        made = [_answer(question, i, f"I see it. Answer: {text}") for i, text in enumerate(texts)]
        used = [label.set for label in question.labels if label.set is not None]
        sets = {name: label_sets[name] for name in used if name in label_sets}
        asked = [*(q for name in dict.fromkeys(used) for q in others.get(name, ())), replace(question, id=HERE)]
        return [v.passed for v in match.verify(made, asked, config, label_sets=sets)] if made else []

    return judged


def _holding(names: Mapping[str, Sequence[str]], own: str) -> list[str]:
    """The surfaces that have all words of one of `own`: no other can be read as that name."""
    wanted = [_words(s) for name, listed in names.items() if fold(name) == own for s in listed]
    return [s for listed in names.values() for s in listed if any(words <= _words(s) for words in wanted)]


@functools.lru_cache(maxsize=65536)
def _words(surface: str) -> frozenset[str]:
    return frozenset(WORD.findall(fold(surface)))


def _answer(question: Question, number: int, text: str) -> Candidate:
    return Candidate(HERE, question.video_id, number, "direct", text, (), 0.0, "stop", 0, "", {}, "")


def _most(holds: Callable[[int], bool]) -> int:
    """The greatest k up to MOST_STEPS of which `holds`, which holds for all below, too."""
    low, high = 0, 1
    while high < MOST_STEPS and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
