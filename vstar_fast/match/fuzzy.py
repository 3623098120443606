"""Label words by similarity, anywhere in the answer: how the paper (80 %) and its code (over 85 %) match names."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence

from vstar_fast.match.text import WORD, Case, Extracted, Names

_STOP = frozenset("a an and are as at by for from in into is it of on onto or over the to up with".split())  # noqa: SIM905


@functools.lru_cache(maxsize=65536)
def similarity(a: str, b: str) -> float:
    """Share of matching characters of two words, 0 to 1."""
    return 1.0 if a == b else difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


@functools.lru_cache(maxsize=4096)
def keywords(name: str) -> tuple[str, ...]:
    """Words of a name over two letters that mean something; all of them when none does."""
    words = tuple(word.casefold() for word in WORD.findall(name.replace("_", " ")))
    return tuple(word for word in words if len(word) > 2 and word not in _STOP) or words


def name(least: Callable[[float], bool]) -> Callable[[Case, Names], Extracted]:
    """The label when every keyword of its value, or of an alias, has a word in the answer as similar as `least`."""

    def extract(case: Case, _names: Names) -> Extracted:
        words = _words(case)
        for value in (case.label.value, *case.label.aliases):
            places = [_place(key, words, 0, least) for key in keywords(value)]
            if all(place is not None for place in places):
                spans = [words[place][1] for place in places if place is not None]
                return Extracted(case.label.value, (min(s for s, _ in spans), max(e for _, e in spans)))
        return Extracted(reason="no_value")

    return extract


def sequence(least: Callable[[float], bool]) -> Callable[[Case, Names], Extracted]:
    """Items of the label that stand in the answer, each behind the one before; else in the order they stand in."""

    def extract(case: Case, _names: Names) -> Extracted:
        words = _words(case)
        places = _in_order(case.label.value, words, least)
        if places is not None:
            return Extracted(case.label.value, (words[places[0]][1][0], words[places[-1]][1][1]))
        first = {item: _place(keywords(item)[0], words, 0, least) for item in case.label.value}
        present = sorted((place, item) for item, place in first.items() if place is not None)
        if not present:
            return Extracted(reason="no_value")
        return Extracted(tuple(item for _, item in present), words[present[0][0]][1])

    return extract


Word = tuple[str, tuple[int, int]]


def _words(case: Case) -> list[Word]:
    return [(w[0].casefold(), w.span()) for w in WORD.finditer(case.text, case.start, case.end)]


def _place(key: str, words: Sequence[Word], start: int, least: Callable[[float], bool]) -> int | None:
    return next((i for i in range(start, len(words)) if least(similarity(key, words[i][0]))), None)


def _in_order(items: Sequence[str], words: Sequence[Word], least: Callable[[float], bool]) -> list[int] | None:
    places: list[int] = []
    for item in items:
        for key in keywords(item):
            place = _place(key, words, places[-1] + 1 if places else 0, least)
            if place is None:
                return None
            places.append(place)
    return places
