"""Nodes for numbers, times and intervals: all are integers n of some unit, written in a layout.

A layout is a leading decimal number of at least `lead` digits, then a tail of digits with a radix and of
literal bytes: tenths of a second as mm:ss.s are lead 2, tail ":", 6, 10, ".", 10.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import ceil, floor
from typing import Any

from vstar_fast.errors import ConstrainError

from .nodes import Alt, Literal, Node, Reading, Seq, Tagged

LARGEST = 10**17
MOST_STARTS = 50_000
"""Places an interval may begin at: each costs a few states."""

Convert = Callable[[Fraction], object]


@dataclass(frozen=True)
class Layout:
    """How n is written; `tail` items above 10 are literal bytes."""

    lead: int
    tail: tuple[int, ...]

    @property
    def units(self) -> int:
        """n of one leading unit."""
        product = 1
        for item in self.tail:
            product *= item if item <= 10 else 1
        return product

    def write(self) -> bytes:
        """The layout's part of a program."""
        return struct.pack("<iI", self.lead, len(self.tail)) + bytes(self.tail)

    def text(self, n: int) -> str:
        """n in this layout."""
        head, rest = divmod(n, self.units)
        out, scale = str(head).zfill(self.lead), self.units
        for item in self.tail:
            if item > 10:
                out += chr(item)
            else:
                scale //= item
                out += str(rest // scale)
                rest %= scale
        return out

    def read(self, text: str, at: int) -> Iterator[tuple[int, int]]:
        """(end, n) of each number in this layout that starts at `at`."""
        digits = 0
        while text[at + digits : at + digits + 1].isascii() and text[at + digits : at + digits + 1].isdigit():
            digits += 1
        for count in range(digits, self.lead - 1, -1):
            if count > self.lead and text[at] == "0":
                continue
            end, n = at + count, int(text[at : at + count])
            for item in self.tail:
                char = text[end : end + 1]
                if item > 10:
                    if char != chr(item):
                        break
                elif char and char in "0123456789"[:item]:
                    n = n * item + int(char)
                else:
                    break
                end += 1
            else:
                yield end, n


@dataclass(frozen=True)
class Range(Node):
    """n in [low, high]; the value is n / units_per_value."""

    layout: Layout
    low: int
    high: int
    scale: int

    def write(self) -> bytes:
        return b"N" + self.layout.write() + struct.pack("<qq", self.low, self.high)

    def read(self, text: str, at: int) -> Reading:
        for end, n in self.layout.read(text, at):
            if self.low <= n <= self.high:
                yield end, Fraction(n, self.scale)

    def members(self, most: int) -> list[str] | None:
        if self.high - self.low >= most:
            return None
        return [self.layout.text(n) for n in range(self.low, self.high + 1)]


@dataclass(frozen=True)
class Interval(Node):
    """Two of the numbers, the second at least `least` after the first; the value is a pair."""

    layout: Layout
    low: int
    high: int
    least: int
    separator: str
    scale: int

    def write(self) -> bytes:
        separator = self.separator.encode()
        bounds = struct.pack("<qqqI", self.low, self.high, self.least, len(separator))
        return b"I" + self.layout.write() + bounds + separator

    def read(self, text: str, at: int) -> Reading:
        for middle, start in self.layout.read(text, at):
            if not text.startswith(self.separator, middle) or start < self.low:
                continue
            for end, stop in self.layout.read(text, middle + len(self.separator)):
                if start + self.least <= stop <= self.high:
                    yield end, (Fraction(start, self.scale), Fraction(stop, self.scale))

    def members(self, most: int) -> list[str] | None:
        pairs = (
            (a, b)
            for a in range(self.low, self.high + 1 - self.least)
            for b in range(a + self.least, self.high + 1)
        )  # fmt: skip
        found = list(islice(pairs, most + 1))
        if len(found) > most:
            return None
        return [self.layout.text(a) + self.separator + self.layout.text(b) for a, b in found]


def exact(value: float | int | str | Fraction, what: str) -> Fraction:
    """A number as written: 0.1 is one tenth."""
    try:
        return Fraction(value) if isinstance(value, (int, Fraction)) else Fraction(str(value))
    except (ValueError, TypeError, ZeroDivisionError):
        raise ConstrainError(f"{what} is {value!r}; give a finite number") from None


def decimals_range(value: int | tuple[int, int]) -> range:
    """How many digits behind the point are allowed."""
    low, high = (value, value) if isinstance(value, int) else value
    if not 0 <= low <= high <= 9:
        raise ConstrainError(f"decimals is {value!r}; give 0 to 9, or a pair (least, most)")
    return range(low, high + 1)


def decimal_layout(decimals: int) -> Layout:
    """Plain numbers with so many digits behind the point."""
    return Layout(1, (ord("."), *([10] * decimals)) if decimals else ())


def number_node(
    low: Fraction | None, high: Fraction | None, digits: int | None, decimals: range, convert: Convert
) -> Node:
    """Numbers in [low, high] (None: as far as `digits` reach), signed where the range is."""
    most = Fraction(10 ** (digits or 9))
    parts: list[Node] = []
    for places in decimals:
        scale = 10**places
        top = most - Fraction(1, scale)
        least = ceil((Fraction(0) if low is None else max(low, -top)) * scale)
        greatest = floor((top if high is None else min(high, top)) * scale)
        parts += _signed(decimal_layout(places), least, greatest, scale)
    if not parts:
        raise ConstrainError(
            f"no number lies in [{_shown(low)}, {_shown(high)}] with {digits or 9} digits before the point and "
            f"{decimals[0]} to {decimals[-1]} behind it"
        )
    return Tagged(parts[0] if len(parts) == 1 else Alt(tuple(parts)), convert)


def _signed(layout: Layout, low: int, high: int, scale: int) -> list[Node]:
    if max(abs(low), abs(high)) >= LARGEST:
        raise ConstrainError("the range has numbers of more than 17 digits; narrow it")
    parts: list[Node] = []
    if high >= max(low, 0):
        parts.append(Range(layout, max(low, 0), high, scale))
    if low < 0 and min(high, -1) >= low:
        below = Range(layout, max(-high, 1), -low, scale)
        parts.append(Tagged(Seq((Literal("-"), below)), _negative))
    return parts


def _shown(value: Fraction | None) -> str:
    return "any" if value is None else str(float(value))


TIME_FORMATS = ("s", "mm:ss", "m:ss", "hh:mm:ss")


def time_layout(form: str, decimals: int) -> Layout:
    """Layout of a time format, in units of 10^-decimals seconds."""
    tail = {
        "s": (),
        "mm:ss": (ord(":"), 6, 10),
        "m:ss": (ord(":"), 6, 10),
        "hh:mm:ss": (ord(":"), 6, 10, ord(":"), 6, 10),
    }
    if form not in tail:
        raise ConstrainError(f"unknown time format {form!r}; there are: {', '.join(TIME_FORMATS)}")
    fraction = (ord("."), *([10] * decimals)) if decimals else ()
    return Layout(2 if form in ("mm:ss", "hh:mm:ss") else 1, tail[form] + fraction)


def _negative(pair: tuple[str, Any]) -> Any:
    return -pair[1]
