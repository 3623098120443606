"""Does an answer that was given the label as a hint reason, or does it only repeat the hint?"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from vstar_fast.match.numbers import TIME, Number, in_unit, read_numbers
from vstar_fast.match.text import WORD, answer_start, fold, own_forms
from vstar_fast.records import Label, Question

_HINT = re.compile(
    r"\bhint(?:s|ed)?\b"
    r"|\b(?:right|correct|given|provided|stated|expected|known|true|gold|supplied) (?:answer|label)\b"
    r"|\b(?:answer|label) (?:is|was|has been|that was|you) (?:already )?(?:given|provided|stated|told|supplied|gave)\b"
    r"|\bas (?:is |was )?(?:stated|given|provided|mentioned|told|indicated|you (?:said|say|told))\b"
    r"|\b(?:i|we) (?:was|were|am|are|have been) (?:told|given the (?:answer|label))\b"
    r"|\b(?:as|according to|based on|because of|from|since|given) the (?:answer|label|question|prompt)\b",
    re.IGNORECASE,
)
# Words that say nothing about what is seen.
_EMPTY = frozenset(
    """
    a an the this that these there it its is are was were be been being and or of in on at to with as so by for i we
    you he she they can see seen sees saw say says first then video videos clip clips show shows showing shown
    person man woman someone somebody people action actions activity answer label do does doing perform performs
    performing performed question step steps what which name here named called one who has have
    """.split()  # noqa: SIM905
)
# Words that say no more than that a number follows, and what people are called: `3 people` is no `3 times`.
_COUNTING = frozenset(
    """
    about around roughly exactly between from until till time times number count counts counted total second seconds s
    happen happens happened occur occurs start starts begin begins end ends last lasts
    """.split()  # noqa: SIM905
)
_THINGS = frozenset(
    "video videos clip clips person people man woman someone action actions activity answer label step steps".split()  # noqa: SIM905
)
LEAST_WORDS = 3
"""Fewest words of reasoning before `Answer:`, the label's own not counted."""
LEAST_SEEN = 2
"""Fewest words about what is seen before the label may be named."""
HINT_ROUNDING = 0.005001
"""Seconds by which a bound in the hint may differ from the label's; numbers: 1e-5 of the value."""


class _Named(NamedTuple):
    """Where a label's words stand in the reasoning, and where the label is first named in full (-1: nowhere)."""

    spans: list[tuple[int, int]]
    at: int = -1
    empty: frozenset[str] = _EMPTY


def leak(text: str, question: Question) -> str | None:
    """`leak_hint`, `no_reasoning` or `leak_label_first`; None for an answer that reasons first."""
    start = answer_start(text)
    head, tail = (text, "") if start < 0 else (text[: start - len("answer:")], text[start:])
    if _HINT.search(head) or _HINT.search(tail):
        return "leak_hint"
    for label in question.labels:
        why = _label(head, label)
        if why:
            return why
    return None


def _label(head: str, label: Label) -> str | None:
    named = _NAMED[label.kind](head, label)
    words = [w for w in WORD.finditer(head) if not any(start <= w.start() < end for start, end in named.spans)]
    if len(words) < LEAST_WORDS:
        return "no_reasoning"
    seen = [w for w in words if w.end() <= named.at and w[0].casefold() not in named.empty]
    return "leak_label_first" if named.at >= 0 and len(seen) < LEAST_SEEN else None


def _name(head: str, label: Label) -> _Named:
    spans = [(x.start, x.end) for x in own_forms(label).scan(head)]
    return _Named(spans, spans[0][0] if spans else -1)


def _sequence(head: str, label: Label) -> _Named:
    """Named in full with its last item: what is said between the items counts as seen."""
    found = list(own_forms(label).scan(head))
    left = [fold(item) for item in label.value]
    at = -1
    for x in found:
        if left and fold(label.value[x.owner]) == left[0]:
            left.pop(0)
            at = x.start
    return _Named([(x.start, x.end) for x in found], -1 if left else at)


def _number(head: str, label: Label) -> _Named:
    """The value in digits or words and in the label's unit; a number of other things (`3 people`) is not it."""
    own = _own_words(label)
    spans = []
    for x in read_numbers(head, 0, len(head)):
        value = in_unit(x, label)
        same = value is not None and abs(value - label.value) <= 1e-5 * max(1e-9, abs(label.value))
        if same and not _of_other_things(head, x, own):
            spans.append((x.start, x.end))
    return _Named(spans, spans[0][0] if spans else -1, _EMPTY | _COUNTING | own)


def _of_other_things(head: str, number: Number, own: frozenset[str]) -> bool:
    after = _AFTER.match(head, number.end)
    if number.unit is not None or after is None:
        return False
    word = after[1].casefold()
    return word not in own and (word in _THINGS or word not in _EMPTY | _COUNTING)


def _interval(head: str, label: Label) -> _Named:
    """Both bounds, one after the other; named in full with the second."""
    spans = []
    for first, second in pairwise(read_numbers(head, 0, len(head), TIME)):
        unit = first.unit if first.unit or first.clock else second.unit
        bounds = (in_unit(first._replace(unit=unit), _SECONDS), in_unit(second, _SECONDS))
        if all(x is not None and abs(x - y) <= HINT_ROUNDING for x, y in zip(bounds, label.value, strict=True)):
            spans += [(first.start, first.end), (second.start, second.end)]
    return _Named(spans, spans[1][0] if spans else -1, _EMPTY | _COUNTING | _own_words(label))


def _own_words(label: Label) -> frozenset[str]:
    """Words of the question about a number: its name, unit and event say nothing about what is seen."""
    words = [w.casefold() for text in (label.name, label.unit, label.event) for w in WORD.findall(text or "")]
    return frozenset(form for w in words for form in (w, w.rstrip("s"), w + "s"))


_AFTER = re.compile(r"[\s\-]+([^\W\d_]+)")
_SECONDS = Label("number", "time", 0, unit="s")
_NAMED: dict[str, Callable[[str, Label], _Named]] = {
    "class": _name,
    "choice": _name,
    "answer": _name,
    "number": _number,
    "interval": _interval,
    "sequence": _sequence,
}
