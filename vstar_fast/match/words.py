"""Sequences of names and free-text answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vstar_fast.kernels.number_words import NUMBER_WORDS
from vstar_fast.match import hedge
from vstar_fast.match.text import WORD, Case, Extracted, Forms, Found, Names, fold, negated, own_forms

_ARTICLES = ("a", "an", "the")
_POLAR = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_WORD_OF = {str(value): word for word, value in NUMBER_WORDS.items() if value <= 20}
_PARTS = re.compile(
    r"\s*(?:[,;\n]|->|\u2192|\b(?:and then|followed by|then|and)\b)+\s*|(?:^|\s)\d+[.)]\s+", re.IGNORECASE
)


def sequence(case: Case, names: Names) -> Extracted:
    """Names of the slot in their order; without a label set, the parts of the list it holds."""
    closed = names.closed(case.label)
    if closed is not None:
        found = list(closed.forms.scan(case.text, case.start, case.end))
        items = tuple(closed.names[x.owner] for x in found)
    else:
        found = list(own_forms(case.label).scan(case.text, case.start, case.end))
        items = tuple(_open_items(case, found))
    if not items:
        return Extracted(reason="no_value")
    span = (found[0].start, found[-1].end) if found else None
    denied = any(negated(case.text, case.start, x.start) for x in found)
    return Extracted(items, span, "negated" if denied else "ok")


def _open_items(case: Case, found: Sequence[Found]) -> list[str]:
    """Items of a list whose label has no set: what is none of the label's own names counts by its words."""
    items = []
    at = 0
    slot = case.slot
    for mark in (*_PARTS.finditer(slot), None):
        end = len(slot) if mark is None else mark.start()
        own = [x for x in found if at <= x.start - case.start < end]
        if own:
            items += [case.label.value[x.owner] for x in own]
        elif WORD.search(slot, at, end):
            items.append(slot[at:end].strip())
        at = end if mark is None else mark.end()
    return items


def sequence_score(value: Sequence[str], gold: Sequence[str]) -> tuple[float, str]:
    """Share matched in order (longest common subsequence), and how the order is wrong."""
    got, want = [fold(x) for x in value], [fold(x) for x in gold]
    if got == want:
        return 1.0, "ok"
    score = _common(got, want) / max(len(got), len(want))
    if len(got) != len(want):
        return score, "wrong_length"
    return score, "wrong_order" if sorted(got) == sorted(want) else "wrong_value"


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        last = 0
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], last + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def answer(case: Case, _names: Names) -> Extracted:
    """The gold answer (or an alias) when the slot equals it in words or holds it whole, else the slot itself.

    Held beside something else to choose from (`red or blue`), it is ambiguous.
    """
    label = case.label
    if fold(label.value) in _POLAR:
        return _polar(case)
    words = _words(case.slot)
    if not words:
        return Extracted(reason="no_value")
    whole = _trimmed(case)
    if any(words == _words(x) for x in (label.value, *label.aliases)):
        return Extracted(label.value, whole)
    forms = _bare_forms(label.value, *label.aliases)
    found = next(forms.scan(case.text, case.start, case.end), None)
    if found is None:
        return Extracted(case.text[slice(*whole)], whole)
    offered = hedge.choice(case, forms)
    if offered:
        return Extracted(offered, (found.start, found.end), "ambiguous")
    reason = "negated" if negated(case.text, case.start, found.start) else "ok"
    return Extracted(label.value, (found.start, found.end), reason)


def _polar(case: Case) -> Extracted:
    """Yes/no: the first word, or the one such word of a slot of at most four words."""
    words = list(WORD.finditer(case.text, case.start, case.end))
    if not words:
        return Extracted(reason="no_value")
    polar = [w for w in (words if len(words) <= 4 else words[:1]) if w[0].casefold() in _POLAR]
    if not polar:
        return Extracted(case.text[slice(*_trimmed(case))], _trimmed(case))
    kinds = {w[0].casefold() for w in (*polar, *words[1:3]) if w[0].casefold() in _POLAR}
    said = polar[0][0].casefold()
    if _POLAR[said] in kinds:
        return Extracted(" | ".join(sorted(kinds)), polar[0].span(), "ambiguous")
    reason = "negated" if negated(case.text, case.start, polar[0].start()) else "ok"
    return Extracted(said, polar[0].span(), reason)


def _words(text: str) -> list[str]:
    words = [x.casefold() for x in WORD.findall(text)]
    return [_WORD_OF.get(x, x) for x in words if x not in _ARTICLES] or words


def _bare_forms(*values: str) -> Forms:
    return Forms((0, re.sub(r"^\s*(?:a|an|the)\s+(?=\S)", "", x, flags=re.IGNORECASE)) for x in values)


def _trimmed(case: Case) -> tuple[int, int]:
    slot = case.slot
    start = case.start + len(slot) - len(slot.lstrip())
    return start, max(start, case.start + len(slot.rstrip()))
