"""Answers that hold the label and still leave a choice: `at least 3`, `3, 4 or 5`, `3/4`, `red or blue`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vstar_fast.kernels.number_words import NUMBER_WORDS
from vstar_fast.match.numbers import Number, first_number, in_unit, read_numbers
from vstar_fast.match.text import Case, Extracted, Forms, Names

_ABOUT = r"(?:\s+(?:about|around|roughly|approximately|some|even|just|only|rather|a|the|as many as|up to))*"
_BOUND = re.compile(
    r"(?:\b(?:between|(?:less|more|fewer|greater|higher|lower|other) than|at (?:least|most|minimum|maximum)|over|under"
    r"|above|below|beyond|up to|upwards of|exceed(?:s|ing)|half(?: of)?|as (?:many|few|much) as"
    r"|(?:minimum|maximum|min|max)(?: of)?)"
    rf"|(?<![-=\w\"'/])>=?|<=?|[\u2264\u2265]){_ABOUT}[\s\"'*_(:]*$",
    re.IGNORECASE,
)
_OPEN = re.compile(
    r"\s*\+(?!\s*\d)|(?:\s+[^\W\d_]+)?[\s,(]*\b(?:(?:or|and) (?:more|less|fewer|higher|lower|greater|above|below"
    r"|over|under|up|several)|at (?:least|most|minimum|maximum)|plus|minimum|maximum|tops)\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(r"(?:[)\]\"'\u201d\u2019]|\*\*|__)*")
_NUMBER = rf"(?=[+\-\u2212]?\.?\d|(?:{'|'.join(NUMBER_WORDS)})\b)"
_SUM = re.compile(
    r"(?:\s+|\s*(?:\+\s*/\s*-|[/+*^=\u00b1\u00b7\u00d7\u00f7]"
    r"|\b(?:minus|plus|less|x|times|over|(?:divided|multiplied) by))\s*)" + _NUMBER,
    re.IGNORECASE,
)
_MAYBE = r"(?:or|maybe|perhaps|possibly|probably|if not)"
_NEXT = re.compile(
    rf"(?:(?:\s*(?:[,(&~\-\u2013\u2014]|\.\.+|\u2026|\b(?:{_MAYBE}|and|to|through|till|until|but|versus|vs\.?)(?!\w))){{1,3}}"
    rf"|(?:\s+[^\W\d_]+){{1,2}}[\s,(]*\b{_MAYBE}\b(?:\s+{_MAYBE}\b)?){_ABOUT}\s*{_NUMBER}",
    re.IGNORECASE,
)


def only_number(case: Case, names: Names) -> Extracted:
    """The first number of the slot when it stands for itself; a bound, a list, a fraction or a sum is ambiguous."""
    found = first_number(case, names)
    numbers = list(read_numbers(case.text, case.start, case.end)) if found.reason == "ok" else []
    return found._replace(reason="ambiguous") if numbers and _hedged(case, numbers) else found


def _hedged(case: Case, numbers: Sequence[Number]) -> bool:
    text, first = case.text, in_unit(numbers[0], case.label)
    if _BOUND.search(text[max(case.start, numbers[0].start - 60) : numbers[0].start]):
        return True
    for number, after in zip(numbers, (*numbers[1:], None), strict=True):
        end = _CLOSING.match(text, number.end, case.end).end()  # type: ignore[union-attr]
        if _OPEN.match(text, end, case.end) or _SUM.match(text, end, case.end):
            return True
        joined = _NEXT.match(text, end, case.end)
        if not joined:
            return False
        if after is None or after.start > joined.end() + 1:
            return True
        value = in_unit(after, case.label)
        if value != first:
            return value is not None
    return False


# Every repetition is bounded or atomic: an answer may be one word 500 times.
_WORD = r"(?<![^\W_])(?>[^\W_]+(?:['\u2019\-][^\W_]+)*)"
_ITEM = rf"(?!or\b){_WORD}(?:[ \t]{{1,3}}(?!or\b){_WORD}){{0,3}}"
_CLAUSE = (
    r"(?:because|since|as|so|he|she|it|they|we|i|you|this|that|there|which|who|but|while|when|where|after|before|then"
    r"|the (?:person|man|woman|video))\b"
)
_OR = r"\s{0,3}(?:,?\s{0,3}\bor\b|/)\s{0,3}"
_LIST = re.compile(
    rf"{_ITEM}(?:\s{{0,3}},\s{{0,3}}(?!or\b|{_CLAUSE}){_ITEM}){{0,9}}(?:{_OR}{_ITEM}){{1,9}}", re.IGNORECASE
)
_CHOICE = re.compile(r"\bor\b|/", re.IGNORECASE)


def choice(case: Case, forms: Forms) -> str | None:
    """The list of the slot that offers something else beside what `forms` name: `red, green or blue`."""
    if not _CHOICE.search(case.text, case.start, case.end):
        return None
    spans = [(x.start, x.end) for x in forms.scan(case.text, case.start, case.end)]
    text = case.text
    for start, end in spans:
        text = f"{text[:start]}{'x' * (end - start)}{text[end:]}"
    for found in _LIST.finditer(text, case.start, case.end):
        items = [x.span() for x in re.finditer(_ITEM, text[: found.end()][found.start() :], re.IGNORECASE)]
        held = [any(a - found.start() < e and s < b - found.start() for a, b in spans) for s, e in items]
        if any(held) and not all(held):
            return case.text[slice(*found.span())]
    return None
