"""`match_number` and `match_interval` in plain Python: the specification, and the oracle of the tests.

Reads what `vstar_fast.match.numbers` reads, but for: digits and letters of numbers and units are ASCII, marks count as
letters, and a denial is found by `label_match`'s pattern.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from vstar_fast.kernels.label_match.labels import LabelSet, fold_literal
from vstar_fast.kernels.label_match.reference import characters, denied, occurrences, search_start, token_span, units
from vstar_fast.kernels.label_match.rows import Rows, TokenRows
from vstar_fast.kernels.number_words import NUMBER_WORDS, OFTEN, ONES, SCALES, SMALL, TENS, UNITS

from .job import Call, Found
from .own import INTERVAL, SEQUENCE, UNIT_NAMES, Own
from .result import ITEM_INTS, ROW_INTS

_CLOCK = r"(?P<clock>[0-9]{1,3}:[0-5][0-9](?::[0-5][0-9])?(?:\.[0-9]+)?)"
_PLAIN = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|\.[0-9]+"
_THOUSANDS = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|"
_SPELT = (
    rf"(?P<often>{'|'.join(OFTEN)})\b|(?P<tens>{'|'.join(TENS)})(?:[-\s](?P<ones>{'|'.join(ONES[1:])}))?\b"
    rf"|(?P<small>{'|'.join(sorted(SMALL, key=len, reverse=True))})\b"
)
_REST = (
    rf"(?:\s*(?P<scale>{'|'.join(SCALES)})\b)?(?P<half>\s+and\s+a\s+half\b)?"
    r"(?:(?P<gap>[\s\-]*)(?P<unit>%|\u00b0|[a-z\u00b5]+))?"
)


def _pattern(digits: str, sign: str, glue: str) -> re.Pattern[str]:
    number = rf"(?:{_CLOCK}|(?P<digits>{digits}))(?![{glue}]?[0-9])|{_SPELT}"
    return re.compile(rf"(?<![\w.])(?<![0-9][{glue}])(?P<sign>{sign})?(?:{number}){_REST}", re.IGNORECASE)


_NUMBER = _pattern(_THOUSANDS + _PLAIN, r"(?<![\w)\]%])[+\-\u2212]", ".,:")
_TIME = _pattern(_PLAIN, r"(?!)", ".:")
_OTHER = re.compile(r"\s*(?:or|to|-|\u2013|\u2014|~)\s*(?=[0-9.]|" + "|".join(NUMBER_WORDS) + ")", re.IGNORECASE)
_OR = re.compile(r"\s*,?\s*or\b", re.IGNORECASE)

OK, NO_SLOT, NO_VALUE, WRONG_UNIT, AMBIGUOUS, OFF_TOLERANCE, WRONG_ORDER, LOW_IOU, WRONG_VALUE, WRONG_LENGTH = range(10)


class Number(NamedTuple):
    """A number as read; `start` and `end` are characters, `digits`: not in words, `clock`: mm:ss or hh:mm:ss."""

    value: float
    unit: str | None
    start: int
    end: int
    digits: bool
    clock: bool


def plain(text: str) -> str:
    """The text with marks, and letters that only case folding makes ASCII, as a letter of no number or unit."""
    return "".join(
        "\u0101" if c in "\u017f\u212a\u0130\u0131" or unicodedata.category(c)[0] == "M" else c for c in text
    )


def read(text: str, start: int, pattern: re.Pattern[str]) -> Iterator[Number]:
    """Numbers of a `plain` text from character `start` on."""
    for found in pattern.finditer(text, start):
        unit = (found["unit"] or "").lower()
        digits, known = bool(found["digits"] or found["clock"]), unit in UNITS
        if unit and not known and not found["gap"] and digits:
            continue
        groups = ("clock", "digits", "often", "tens", "ones", "small", "scale", "half")
        end = found.end("unit") if known else max(found.end(group) for group in groups)
        yield Number(_value(found), unit if known else None, found.start(), end, digits, bool(found["clock"]))


def _value(found: re.Match[str]) -> float:
    value = 0.0
    if found["clock"]:
        for part in found["clock"].split(":"):
            value = value * 60 + float(part)
    elif found["digits"]:
        value = float(found["digits"].replace(",", ""))
    elif found["often"]:
        value = OFTEN[found["often"].lower()]
    else:
        value = sum(NUMBER_WORDS[part.lower()] for part in (found["tens"], found["ones"], found["small"]) if part)
    value = value * SCALES.get((found["scale"] or "").lower(), 1) + (0.5 if found["half"] else 0)
    return -value if found["sign"] and found["sign"][0] != "+" else float(value)


def in_unit(number: Number, own: str) -> float | None:
    """The number in the unit `own` ("" for none); None when its own unit is of another dimension."""
    if number.clock:
        dimension, factor = "time", 1.0
    elif number.unit is None:
        return number.value
    else:
        dimension, factor = UNITS[number.unit]
    if own not in UNITS:
        return number.value * 0.01 if dimension == "share" and not own else number.value
    own_dimension, own_factor = UNITS[own]
    if number.unit == "m" and not number.clock and own_dimension == "time":
        dimension, factor = "time", 60.0
    if dimension != own_dimension:
        return None
    return number.value if factor == own_factor else number.value * factor / own_factor


class Read(NamedTuple):
    """One row: status, byte span, whether it is denied, byte where reading began, best gold, two values, score."""

    status: int
    span: tuple[int, int] = (-1, -1)
    denied: bool = False
    start: int = -1
    best: int = -1
    values: tuple[float, float] = (math.nan, math.nan)
    score: float = 0.0


class _Row:
    """A row's text as characters, with the way back to bytes."""

    def __init__(self, data: bytes, after: Sequence[int], pick: str) -> None:
        self.data = data
        self.begin = search_start(units(data), after)
        self.last = pick == "last" or (pick == "slot" and self.begin < 0)
        if pick == "slot":
            self.begin = max(self.begin, 0)
        raw = data.decode("utf-8", errors="surrogateescape")
        self.text = plain(raw)
        self.sizes = [0]
        for char in raw:
            self.sizes.append(self.sizes[-1] + len(char.encode("utf-8", errors="surrogateescape")))

    def read(self, pattern: re.Pattern[str]) -> list[Number]:
        return list(read(self.text, self.sizes.index(self.begin), pattern))

    def result(
        self, status: int, first: Number, last: Number, best: int, values: tuple[float, float], score: float
    ) -> Read:
        span = (self.sizes[first.start], self.sizes[last.end])
        return Read(status, span, denied(self.data, self.begin, span[0]), self.begin, best, values, score)


def number_row(
    data: bytes, after: Sequence[int], pick: str, gold: float, unit: str, absolute: float, relative: float
) -> Read:
    """The number that counts, in the row's unit, and its error."""
    row = _Row(data, after, pick)
    if row.begin < 0:
        return Read(NO_SLOT)
    numbers = row.read(_NUMBER)
    if not numbers:
        return Read(NO_VALUE, start=row.begin)
    number = numbers[-1 if row.last else 0]
    value = in_unit(number, unit)
    if value is None:
        return row.result(WRONG_UNIT, number, number, -1, (number.value, math.nan), 0.0)
    error = abs(value - gold)
    near = error <= absolute + relative * abs(gold) + 1e-9 * max(1.0, abs(gold))
    status = AMBIGUOUS if _OTHER.match(row.text, number.end) else OK if near else OFF_TOLERANCE
    return row.result(status, number, number, -1, (value, error), 0.0)


def iou(begin: float, end: float, gold: Sequence[float]) -> float:
    """Share of two spans of time in their hull; 0 for a gold span that is reversed or not a number."""
    if not gold[0] < gold[1]:
        return 0.0
    return max(0.0, (min(end, gold[1]) - max(begin, gold[0])) / (max(end, gold[1]) - min(begin, gold[0])))


def interval_row(data: bytes, after: Sequence[int], pick: str, golds: Sequence[Sequence[float]], least: float) -> Read:
    """The two times that count, in seconds, and their IoU with the best of the row's own spans."""
    row = _Row(data, after, pick)
    if row.begin < 0:
        return Read(NO_SLOT)
    numbers = row.read(_TIME)
    written = [x for x in numbers if x.digits]
    numbers = written if len(written) >= 2 else numbers
    if len(numbers) < 2:
        return Read(NO_VALUE, start=row.begin)
    first, second = numbers[-2:] if row.last else numbers[:2]
    if first.unit is None and not first.clock:
        first = first._replace(unit=second.unit)
    begin, end = in_unit(first, "s"), in_unit(second, "s")
    if begin is None or end is None:
        return row.result(WRONG_UNIT, first, second, -1, (first.value, second.value), 0.0)
    if not begin < end:
        return row.result(WRONG_ORDER, first, second, -1, (begin, end), 0.0)
    scores = [iou(begin, end, gold) for gold in golds]
    score = max(scores, default=0.0)
    choice = not row.last and len(numbers) > 2 and _OR.match(row.text, second.end, numbers[2].start)
    status = AMBIGUOUS if choice else OK if score >= least - 1e-9 else LOW_IOU
    return row.result(status, first, second, scores.index(score) if score > 0 else -1, (begin, end), score)


Item = tuple[int, int, int]
"""Label, begin and end of one item of a sequence."""


def items_of(data: bytes, forms: Sequence[tuple[int, ...]], owners: Sequence[int], start: int) -> list[Item]:
    """The labels from byte `start` on: the longest at each place, none inside another."""
    row = units(data)
    longest: dict[int, tuple[int, int]] = {}
    for form, owner in zip(forms, owners, strict=True):
        for begin, end in occurrences(row, form, start):
            longest[begin] = max((end, owner), longest.get(begin, (0, 0)))
    items: list[Item] = []
    for begin, (end, owner) in sorted(longest.items()):
        if not items or begin >= items[-1][2]:
            items.append((owner, begin, end))
    return items


def sequence_row(data: bytes, after: Sequence[int], own: Sequence[int], labels: LabelSet) -> tuple[Read, list[Item]]:
    """The labels named, against the row's own; `best` is how many there are, `score` the share in order."""
    start = search_start(units(data), after)
    if start < 0:
        return Read(NO_SLOT, best=0), []
    items = items_of(data, labels.forms, labels.owners, start)
    if not items:
        return Read(NO_VALUE, start=start, best=0), []
    found = [label for label, _, _ in items]
    if len(found) != len(own):
        status = WRONG_LENGTH
    elif found == list(own):
        status = OK
    else:
        status = WRONG_ORDER if sorted(found) == sorted(own) else WRONG_VALUE
    said = any(denied(data, start, begin) for _, begin, _ in items)
    score = common(found, own) / max(len(found), len(own))
    return Read(status, (items[0][1], items[-1][2]), said, start, len(items), score=score), items


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence."""
    best = {(i, j): 0 for i in range(len(a) + 1) for j in range(len(b) + 1)}
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            best[i, j] = best[i - 1, j - 1] + 1 if x == y else max(best[i - 1, j], best[i, j - 1])
    return best[len(a), len(b)]


def run(call: Call) -> Found:
    """What the call finds, row by row."""
    literal = () if call.after is None else fold_literal(call.after)
    texts = call.rows.bytes()
    ids = call.rows.lists() if isinstance(call.rows, TokenRows) else [None] * len(texts)
    most, lists = call.own.most, _Lists(call.own)
    rows = [_row_of(call, lists, r, data, literal) for r, data in enumerate(texts)]
    table, told = [], []
    for (found, items), data, row in zip(rows, texts, ids, strict=True):
        places = placed(found.span, data, call.rows, row)
        table.append([found.status, *found.span, found.denied, found.start, found.best, *places, -1])
        seen = [[label, *span, *placed((span[0], span[1]), data, call.rows, row)] for label, *span in items[:most]]
        told.append(seen + [[-1] * ITEM_INTS] * (most - len(seen)))
    out = torch.tensor(table, dtype=torch.int32).reshape(len(rows), ROW_INTS)
    score = torch.tensor([0.0 if math.isnan(x.score) else x.score for x, _ in rows], dtype=torch.float64)
    if call.own.kind == SEQUENCE:
        more = torch.tensor(told, dtype=torch.int32).reshape(len(rows), most, ITEM_INTS)
    else:
        more = torch.tensor([x.values for x, _ in rows], dtype=torch.float64).reshape(len(rows), 2)
    return Found(*(x.to(call.rows.device) for x in (out, score, more)))


class _Lists:
    """The own values as Python lists."""

    def __init__(self, own: Own) -> None:
        bounds = own.offsets.tolist()
        self.gold, self.absolute, self.relative = (x.tolist() for x in (own.gold, own.absolute, own.relative))
        self.units = [UNIT_NAMES[x] for x in own.units.tolist()]
        spans = own.gold.reshape(-1, 2).tolist() if own.kind == INTERVAL else []
        self.spans = [spans[low:high] for low, high in itertools.pairwise(bounds)]
        items = own.items.tolist()
        self.items = [items[low:high] for low, high in itertools.pairwise(bounds)]


def _row_of(call: Call, own: _Lists, r: int, data: bytes, literal: Sequence[int]) -> tuple[Read, list[Item]]:
    if call.own.labels is not None:
        return sequence_row(data, literal, own.items[r], call.own.labels)
    if call.own.kind == INTERVAL:
        return interval_row(data, literal, call.pick, own.spans[r], own.absolute[0]), []
    numbers = (own.gold[r], own.units[r], own.absolute[r], own.relative[r])
    return number_row(data, literal, call.pick, *numbers), []


def placed(span: tuple[int, int], text: bytes, rows: Rows, ids: Sequence[int] | None) -> list[int]:
    """A span of bytes as tokens, (-1, -1) for rows of text, and as characters."""
    if span[0] < 0:
        return [-1] * 4
    tokens = (-1, -1) if ids is None or not isinstance(rows, TokenRows) else token_span(ids, rows.tokens, *span)
    return [*tokens, *(characters(text, at) for at in span)]
