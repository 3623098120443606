"""What may stand behind `Answer:`: a question's labels -> a template for `constrain`.

A slot is made of what the data set as a whole says of a label (its closed set, unit, the video's length), never
of the value the question asks for. The reasoning before `Answer:` stays free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from vstar_fast import ops
from vstar_fast.questions import label_text
from vstar_fast.records import Label, LabeledVideo, Question

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain.nodes import Node
    from vstar_fast.match.text import ClosedSet

ANSWER = "Answer:"
TO = " s to "
LONGEST_FINE_S = 600.0
"""Longest clip whose times have tenths of a second."""


class Facts(NamedTuple):
    """What holds for all labels of one name: any fractions, any negative values, most items of a sequence."""

    fractions: bool
    negative: bool
    items: int


class Slots:
    """Templates for the questions of a run.

    `closed` gives the label's set with its usable aliases, or None (`match.text.Names.closed`).
    """

    def __init__(
        self,
        questions: Iterable[Question],
        videos: Mapping[str, LabeledVideo],
        closed: Callable[[Label], ClosedSet | None],
    ) -> None:
        self._videos = videos
        self._closed = closed
        self._facts: dict[tuple[str, str], Facts] = {}
        self._made: dict[tuple[object, ...], Node] = {}
        for label in (x for question in questions for x in question.labels):
            self._learn(label)

    def _learn(self, label: Label) -> None:
        key = (label.kind, label.name)
        seen = self._facts.get(key, Facts(fractions=False, negative=False, items=1))
        if label.kind == "number":
            fractions = seen.fractions or not float(label.value).is_integer()
            seen = Facts(fractions, seen.negative or label.value < 0, 1)
        if label.kind == "sequence":
            seen = seen._replace(items=max(seen.items, len(label.value)))
        self._facts[key] = seen

    def template(self, question: Question, *, reason: bool) -> Node | None:
        """Template of a whole answer; None where no label of the question has a slot of its own.

        Equal templates are one object, so that their grammar is compiled once.
        """
        keys = tuple(self._key(question, label) for label in question.labels)
        if all(key is None for key in keys):
            return None
        whole = (reason, *keys)
        if whole not in self._made:
            self._made[whole] = self._build(question, reason)
        return self._made[whole]

    def key(self, question: Question) -> tuple[object, ...]:
        """What the template of a question depends on."""
        return tuple(self._key(question, label) for label in question.labels)

    def free(self, question: Question, label: Label) -> bool:
        """Whether anything may be written in the label's slot."""
        return self._key(question, label) is None

    def names(self, label: Label) -> dict[str, list[str]]:
        """Name -> its surfaces as they are written in an answer, of the label's closed set; else {}."""
        closed = self._closed(label)
        return (
            {} if closed is None else {n: [_spaced(x) for x in (n, *closed.aliases.get(n, ()))] for n in closed.names}
        )

    def scored(self, question: Question) -> dict[str, list[str]]:
        """`names` of a question about one label of a closed set; {} for any other question."""
        label = question.labels[0]
        alone = len(question.labels) == 1 and label.kind in ("class", "choice")
        return self.names(label) if alone else {}

    def filled(self, question: Question, slots: Sequence[Node], *, reason: bool) -> Node:
        """The question's template with these in place of its slots."""
        parts: list[Node | str] = []
        for i, slot in enumerate(slots):
            end = ops.optional(".") if i == len(question.labels) - 1 else ";"
            parts += [ops.optional(" "), slot, end]
        return _answer(parts, reason)

    def facts(self, label: Label) -> Facts:
        """What holds for all labels of this one's name."""
        return self._facts[label.kind, label.name]

    def _key(self, question: Question, label: Label) -> tuple[object, ...] | None:
        """What the label's slot depends on; None for a slot of free text."""
        closed = self._closed(label)
        if label.kind in ("class", "choice", "sequence"):
            return None if closed is None else (label.kind, label.set, label.name)
        if label.kind == "number":
            return (label.kind, label.name, label.unit)
        if label.kind == "interval":
            return (label.kind, self.length_s(question))
        return None

    def _build(self, question: Question, reason: bool) -> Node:
        space = ops.optional(" ")  # many vocabularies begin an answer, or a word, with one
        parts: list[Node | str] = []
        last = len(question.labels) - 1
        for i, label in enumerate(question.labels):
            parts += [space, *self._slot(question, label, None if i == last else ";")]
        return _answer(parts, reason)

    def _slot(self, question: Question, label: Label, end: str | None) -> list[Node | str]:
        """The label's slot and what stands between it and the next one, or at the end of the answer."""
        if self._key(question, label) is None:
            return [ops.text(until=end)]
        facts = self._facts[label.kind, label.name]
        slot = SLOTS[label.kind](label, facts, self._closed(label), self.length_s(question))
        return [slot, ops.optional(".") if end is None else end]

    def length_s(self, question: Question) -> float | None:
        """Seconds of the clip, rounded up so that clips share grammars; None where the data does not say."""
        video = self._videos[question.video_id]
        end = video.end_s if video.end_s is not None else video.duration_s
        return None if end is None else float(math.ceil(end - (video.start_s or 0.0)))


def _answer(slots: list[Node | str], reason: bool) -> Node:
    """Free reasoning or none, `Answer:`, and the slots."""
    head: list[Node | str] = [ops.text(until=ANSWER)] if reason else [ops.optional(" "), ANSWER]
    return ops.sequence([*head, *slots], separator="")


def _names(_label: Label, _facts: Facts, closed: ClosedSet | None, _length_s: float | None) -> Node:
    assert closed is not None
    written = {_spaced(name): [_spaced(x) for x in closed.aliases.get(name, ())] for name in closed.names}
    return ops.choice(written, aliases={name: others for name, others in written.items() if others})


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _items(label: Label, facts: Facts, closed: ClosedSet | None, length_s: float | None) -> Node:
    return ops.sequence(_names(label, facts, closed, length_s), separator=", ", least=1, most=facts.items)


def _number(label: Label, facts: Facts, _closed: ClosedSet | None, _length_s: float | None) -> Node:
    return number(label, facts, -(10**9) if facts.negative else 0, None)


def number(label: Label, facts: Facts, low: Fraction | int, high: Fraction | int | None) -> Node:
    """The slot of a number in [low, high], with or without its unit."""
    value = ops.number(low, high, digits=9, decimals=(0, places(facts)) if facts.fractions else 0)
    return ops.sequence([value, ops.optional(ops.choice(units(label)))], separator="") if label.unit else value


def places(facts: Facts) -> int:
    """Digits that a number may have behind the point."""
    return 3 if facts.fractions else 0


def units(label: Label) -> list[str]:
    """What may stand behind a number of the label's unit."""
    written = (label_text(Label("number", label.name, n, unit=label.unit)).removeprefix(str(n)) for n in (1, 2))
    return sorted(set(written)) if label.unit else []


def _interval(_label: Label, _facts: Facts, _closed: ClosedSet | None, length_s: float | None) -> Node:
    if length_s is None or length_s > LONGEST_FINE_S:
        return moments((0, None), (0, None), (0, 1))
    return ops.sequence([ops.interval(length_s, least_s="0.1", decimals=1, separator=TO), " s"], separator="")


def moments(
    start: tuple[Fraction | int, Fraction | int | None],
    end: tuple[Fraction | int, Fraction | int | None],
    decimals: int | tuple[int, int],
) -> Node:
    """Two times, each within bounds in seconds."""
    parts = [ops.number(low, high, digits=6, decimals=decimals) for low, high in (start, end)]
    return ops.sequence([parts[0], TO, parts[1], " s"], separator="")


# Open table: label kind -> its slot; a kind that is not here is answered in free text.
SLOTS: dict[str, Callable[[Label, Facts, ClosedSet | None, float | None], Node]] = {
    "class": _names,
    "choice": _names,
    "sequence": _items,
    "number": _number,
    "interval": _interval,
}
