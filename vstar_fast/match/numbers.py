"""Numbers and times: explicit reading of sign, decimals, thousands, clock times, words, percent and units."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from vstar_fast.kernels.number_words import NUMBER_WORDS, OFTEN, ONES, SCALES, SMALL, TENS, UNITS
from vstar_fast.match.text import Case, Extracted, Names, negated
from vstar_fast.records import Label

_CLOCK = r"(?P<clock>\d{1,3}:[0-5]\d(?::[0-5]\d)?(?:\.\d+)?)"
_PLAIN = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+"
_THOUSANDS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|"
_WORDS = rf"(?P<often>{'|'.join(OFTEN)})\b|(?P<tens>{'|'.join(TENS)})(?:[-\s](?P<ones>{'|'.join(ONES[1:])}))?\b"
_WORDS += rf"|(?P<small>{'|'.join(sorted(SMALL, key=len, reverse=True))})\b"
_REST = (
    rf"(?:\s*(?P<scale>{'|'.join(SCALES)})\b)?(?P<half>\s+and\s+a\s+half\b)?"
    r"(?:(?P<gap>[\s\-]*)(?P<unit>%|\u00b0|[a-z\u00b5]+))?"
)


def _pattern(digits: str, sign: str, glue: str) -> re.Pattern[str]:
    """`glue`: characters that make two runs of digits one thing that is not a number (`1.2.3`)."""
    number = rf"(?:{_CLOCK}|(?P<digits>{digits}))(?![{glue}]?\d)|{_WORDS}"
    return re.compile(rf"(?<![\w.])(?<!\d[{glue}])(?P<sign>{sign})?(?:{number}){_REST}", re.IGNORECASE)


_NUMBER = _pattern(_THOUSANDS + _PLAIN, r"(?<![\w)\]%])[+\-\u2212]", ".,:")
TIME = _pattern(_PLAIN, r"(?!)", ".:")
_OTHER = re.compile(r"\s*(?:or|to|-|\u2013|\u2014|~)\s*(?=[\d.]|" + "|".join(NUMBER_WORDS) + ")", re.IGNORECASE)
_OR = re.compile(r"\s*,?\s*or\b", re.IGNORECASE)


class Number(NamedTuple):
    """A number as read: `unit` is None when no known unit follows; `clock`: it was written as mm:ss."""

    value: float
    unit: str | None
    start: int
    end: int
    digits: bool
    clock: bool = False


def read_numbers(text: str, start: int, end: int, pattern: re.Pattern[str] = _NUMBER) -> Iterator[Number]:
    """Numbers in `text[start:end]`, left to right. Ordinals and names (`3rd`, `3D`, `v2`, `1.2.3`) are none."""
    for found in pattern.finditer(text, start, end):
        unit = (found["unit"] or "").lower()
        known = unit in UNITS
        if unit and not known and not found["gap"] and (found["digits"] or found["clock"]):
            continue
        stop = found.end("unit") if known else _end(found)
        yield Number(_value(found), unit if known else None, found.start(), stop, _small(found), bool(found["clock"]))


def _small(found: re.Match[str]) -> bool:
    return found["digits"] is not None or found["clock"] is not None


def _end(found: re.Match[str]) -> int:
    groups = ("clock", "digits", "often", "tens", "ones", "small", "scale", "half")
    return max(found.end(group) for group in groups)


def _value(found: re.Match[str]) -> float:
    if found["clock"]:
        value = 0.0
        for part in found["clock"].split(":"):
            value = value * 60 + float(part)
    elif found["digits"]:
        value = float(found["digits"].replace(",", ""))
    elif found["often"]:
        value = OFTEN[_word(found["often"])]
    else:
        parts = (found["tens"], found["ones"], found["small"])
        value = sum(NUMBER_WORDS[_word(part)] for part in parts if part)
    value = value * SCALES.get(_word(found["scale"] or ""), 1) + (0.5 if found["half"] else 0)
    return -value if found["sign"] and found["sign"][0] != "+" else float(value)


def _word(text: str) -> str:
    """One spelling for all that a pattern without case takes for it: also the long s, dotted and dotless i."""
    return text.casefold().replace("i\u0307", "i").replace("\u0131", "i")


def first_number(case: Case, _names: Names) -> Extracted:
    """The first number of the slot, in the label's unit. `3 or 4` is ambiguous, `3 s` for a count a wrong unit."""
    return _judge(case, next(read_numbers(case.text, case.start, case.end), None))


def last_number(case: Case, _names: Names) -> Extracted:
    """The last number of the slot, in the label's unit."""
    return _judge(case, functools.reduce(lambda _, x: x, read_numbers(case.text, case.start, case.end), None))


def _judge(case: Case, number: Number | None) -> Extracted:
    if number is None:
        return Extracted(reason="no_value")
    span = (number.start, number.end)
    value = in_unit(number, case.label)
    if value is None:
        return Extracted(number.value, span, "wrong_unit")
    if _OTHER.match(case.text, number.end, case.end):
        return Extracted(value, span, "ambiguous")
    return Extracted(value, span, "negated" if negated(case.text, case.start, number.start) else "ok")


def in_unit(number: Number, label: Label) -> float | None:
    """The number in the label's unit; None when its own unit is of another dimension."""
    if number.clock:
        dimension, factor = "time", 1.0
    elif number.unit is None:
        return number.value
    else:
        dimension, factor = UNITS[number.unit]
    own = (label.unit or "").strip().lower()
    if own not in UNITS:
        return number.value * 0.01 if dimension == "share" and not own else number.value
    own_dimension, own_factor = UNITS[own]
    if number.unit == "m" and own_dimension == "time":
        dimension, factor = "time", 60.0
    if dimension != own_dimension:
        return None
    return number.value if factor == own_factor else number.value * factor / own_factor


def first_interval(case: Case, _names: Names) -> Extracted:
    """The first two times of the slot in seconds; a unit after the second counts for both."""
    return _pair(case, 0)


def last_interval(case: Case, _names: Names) -> Extracted:
    """The last two times of the slot in seconds."""
    return _pair(case, -2)


_SECONDS = Label("number", "time", 0, unit="s")


def _pair(case: Case, at: int) -> Extracted:
    numbers = list(read_numbers(case.text, case.start, case.end, TIME))
    written = [x for x in numbers if x.digits]
    numbers = written if len(written) >= 2 else numbers
    if len(numbers) < 2:
        return Extracted(reason="no_value")
    first, second = numbers[at], numbers[at + 1]
    if first.unit is None and not first.clock:
        first = first._replace(unit=second.unit)
    span = (first.start, second.end)
    start, end = in_unit(first, _SECONDS), in_unit(second, _SECONDS)
    if start is None or end is None:
        return Extracted((first.value, second.value), span, "wrong_unit")
    if start >= end:
        return Extracted((start, end), span, "wrong_order")
    if at == 0 and len(numbers) > 2 and _OR.match(case.text, second.end, numbers[2].start):
        return Extracted((start, end), span, "ambiguous")
    return Extracted((start, end), span, "negated" if negated(case.text, case.start, first.start) else "ok")
