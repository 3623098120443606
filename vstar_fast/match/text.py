"""Where in an answer a label may stand: cases, slots, names as they are compared, spans, negation."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vstar_fast.records import Candidate, Label, Question, Span

Extract = Callable[[Sequence["Case"], "Names"], "list[Extracted]"]


class Case(NamedTuple):
    """One label to be found in `text[start:end]`."""

    text: str
    start: int
    end: int
    label: Label

    @property
    def slot(self) -> str:
        return self.text[self.start : self.end]


class Extracted(NamedTuple):
    """What was read out of an answer: `span` in characters of the text; `reason` is `ok` when it is readable."""

    value: Any = None
    span: tuple[int, int] | None = None
    reason: str = "ok"


def each(extract: Callable[[Case, Names], Extracted]) -> Extract:
    """An extraction of one case as one of many."""
    return lambda cases, names: [extract(case, names) for case in cases]


ANSWER = "Answer:"
_ANSWER = re.compile(ANSWER, re.IGNORECASE)


def answer_start(text: str) -> int:
    """Index behind the last `Answer:` (any case), or -1."""
    last = -1
    for found in _ANSWER.finditer(text):
        last = found.end()
    return last


def slot_cases(candidate: Candidate, question: Question) -> list[Case] | None:
    """A case per label in the text after the last `Answer:`; None without one.

    With several labels and as many parts between `;`, each label gets its own part.
    """
    start = answer_start(candidate.text)
    return None if start < 0 else _cases(candidate.text, start, question.labels)


def anywhere_cases(candidate: Candidate, question: Question) -> list[Case] | None:
    """A case per label in the whole text."""
    return [Case(candidate.text, 0, len(candidate.text), label) for label in question.labels]


def _cases(text: str, start: int, labels: Sequence[Label]) -> list[Case]:
    if len(labels) > 1:
        parts = text[start:].split(";")
        if len(parts) == len(labels):
            cases = []
            for part, label in zip(parts, labels, strict=True):
                cases.append(Case(text, start, start + len(part), label))
                start += len(part) + 1
            return cases
    return [Case(text, start, len(text), label) for label in labels]


def span_of(text: str, chars: tuple[int, int]) -> Span:
    """Characters [start, end) of `text` with their place in its UTF-8 form."""
    if text.isascii():
        return Span(chars, chars)
    before, inside = (len(x.encode(errors="surrogatepass")) for x in (text[: chars[0]], text[chars[0] : chars[1]]))
    return Span(chars, (before, before + inside))


SEPARATORS = r"[\s_\-\u2010-\u2015]+"
_SPLIT = re.compile(SEPARATORS)
_END = r"(?![^\W_]|[\u0300-\u036f])"
WORD = re.compile(r"[^\W_]+")


class Found(NamedTuple):
    """A label id and where it stands, in characters."""

    owner: int
    start: int
    end: int


class Forms:
    """Ways to write some labels: case, spaces, `_` and `-` are equal, and a form stands on word boundaries."""

    def __init__(self, written: Iterable[tuple[int, str]]) -> None:
        self._by_first: dict[str, list[tuple[int, re.Pattern[str], int]]] = {}
        for owner, name in written:
            for form in {unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}:
                self._add(owner, form)
        for entries in self._by_first.values():
            entries.sort(key=lambda entry: -entry[0])

    def _add(self, owner: int, form: str) -> None:
        first = WORD.search(form)
        if first is None:
            return
        parts = [re.escape(x) for x in _SPLIT.split(form[first.start() :]) if x]
        pattern = re.compile(SEPARATORS.join(parts) + _END, re.IGNORECASE)
        self._by_first.setdefault(first[0].casefold(), []).append((len(form), pattern, owner))

    def scan(self, text: str, start: int = 0, end: int | None = None) -> Iterator[Found]:
        """Occurrences in `text[start:end]`, left to right, the longest at each place, none inside another."""
        end = len(text) if end is None else end
        at = start
        for word in WORD.finditer(text, start, end):
            if word.start() < at:
                continue
            for _, pattern, owner in self._by_first.get(word[0].casefold(), ()):
                found = pattern.match(text, word.start(), end)
                if found:
                    yield Found(owner, found.start(), found.end())
                    at = found.end()
                    break


@functools.lru_cache(maxsize=4096)
def own_forms(label: Label) -> Forms:
    """The label's value (each item of a sequence: its own id) and its aliases."""
    values = label.value if label.kind == "sequence" else (label.value, *label.aliases)
    return Forms((i if label.kind == "sequence" else 0, value) for i, value in enumerate(values))


class Names:
    """The closed sets behind the labels, with the aliases that the questions give.

    An alias that belongs to two labels of a set, or is the name of another one, names nothing and is left out.
    """

    def __init__(self, questions: Iterable[Question], label_sets: Mapping[str, Sequence[str]]) -> None:
        self._sets: dict[str, tuple[str, ...]] = {}
        self._aliases: dict[str, dict[str, set[str]]] = {}
        listed = {name: dict.fromkeys(map(fold, names)) for name, names in label_sets.items()}
        found: dict[str, dict[str, str]] = {name: {fold(x): x for x in reversed(y)} for name, y in label_sets.items()}
        for label in dict.fromkeys(x for question in questions for x in question.labels):
            if label.set is None or not isinstance(label.value, (str, tuple)):
                continue
            values = label.value if isinstance(label.value, tuple) else (label.value,)
            for value in values:
                found.setdefault(label.set, {}).setdefault(fold(value), value)
                listed.setdefault(label.set, {}).setdefault(fold(value))
            if isinstance(label.value, str) and label.aliases:
                held = self._aliases.setdefault(label.set, {}).setdefault(fold(label.value), set())
                held.update(label.aliases)
        for name, keys in listed.items():
            self._sets[name] = tuple(found[name][key] for key in keys)
        self._closed: dict[str, ClosedSet] = {}

    def closed(self, label: Label) -> ClosedSet | None:
        """The label's set, or None for a label without one."""
        if label.set is None:
            return None
        if label.set not in self._closed:
            given = self._aliases.get(label.set, {})
            aliases = tuple((key, tuple(sorted(given[key]))) for key in sorted(given))
            self._closed[label.set] = closed_set(self._sets[label.set], aliases)
        return self._closed[label.set]


@functools.lru_cache(maxsize=65536)
def fold(name: str) -> str:
    """A name as names are compared: one case, one separator."""
    return " ".join(_SPLIT.split(unicodedata.normalize("NFC", name).casefold())).strip()


class ClosedSet(NamedTuple):
    """Names of a set, id by folded name (aliases too), usable aliases by name, and their forms."""

    names: tuple[str, ...]
    ids: dict[str, int]
    aliases: dict[str, list[str]]
    forms: Forms

    def id(self, value: str) -> int:
        return self.ids[fold(value)]


@functools.lru_cache(maxsize=64)
def closed_set(names: tuple[str, ...], aliases: tuple[tuple[str, tuple[str, ...]], ...]) -> ClosedSet:
    """The set of `names` with aliases by folded name; ambiguous aliases are dropped."""
    ids = {fold(name): i for i, name in enumerate(names)}
    claims: dict[str, set[str]] = {}
    for key, others in aliases:
        for other in others:
            claims.setdefault(fold(other), set()).add(key)
    usable: dict[str, list[str]] = {}
    for key, others in aliases:
        good = [x for x in others if claims[fold(x)] == {key} and fold(x) not in ids]
        if good:
            usable[names[ids[key]]] = good
    written = [(i, name) for i, name in enumerate(names)]
    written += [(ids[fold(name)], alias) for name, others in usable.items() for alias in others]
    return ClosedSet(names, ids, usable, Forms(written))


_NEGATION = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|without|cannot|rather than|instead of|other than|anything but)|n['\u2019]t)"
    r"(?:[\s\"'*_\-]+(?!but\b|only\b|just\b|doubt\b)\w+){0,3}[\s\"'\u201c\u2018*_(\-]*$",
    re.IGNORECASE,
)
_MAYBE_NEGATED = re.compile(r"n['\u2019]t|no|neither|never|without|than|instead|but", re.IGNORECASE)


def negated(text: str, start: int, at: int) -> bool:
    """Whether what stands at `at` is denied in the same clause: "not a backflip", "isn't a backflip"."""
    before = text[max(start, at - 60) : at]
    return bool(_MAYBE_NEGATED.search(before) and _NEGATION.search(before))
