"""Templates: literal text with slots, such as `template("Answer: {label}", label=choice(names))`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from math import floor
from string import Formatter
from typing import Any

from vstar_fast.errors import ConstrainError

from .nodes import Choice, Literal, Node, Repeat, Seq, Tagged, Text
from .numbers import (
    LARGEST,
    MOST_STARTS,
    Interval,
    Range,
    decimals_range,
    exact,
    number_node,
    time_layout,
)

Number = float | int | str | Fraction
Part = str | Node
SPACES = re.compile(" +")


def node(part: Part) -> Node:
    """A slot as it is, a string as a literal."""
    if isinstance(part, Node):
        return part
    if not isinstance(part, str):
        raise ConstrainError(f"a template is made of strings and slots, not {part!r} ({type(part).__name__})")
    return Literal(_utf8(part, "literal text"))


def _utf8(text: str, what: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConstrainError(f"{what} {text!r} is not valid Unicode; was it read with the wrong encoding?")
    return text


def template(pattern: str, **slots: Part) -> Node:
    """Literal text with {named} slots; write {{ and }} for braces. The value of an answer is {name: value}.

    A `text()` slot without `until` that stands before literal text goes up to the first occurrence of all of
    that text. Raises ConstrainError for a name without a slot, a slot without a name, or a name used twice.
    """
    parts: list[Node] = []
    names: list[str | None] = []
    try:
        pieces = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ConstrainError(f"{pattern!r} cannot be read: {error}; write {{{{ and }}}} for braces") from None
    for literal, name, spec, conversion in pieces:
        if literal:
            parts.append(node(literal))
            names.append(None)
        if name is None:
            continue
        if spec or conversion or name not in slots:
            raise ConstrainError(f"{pattern!r} has {{{name}}}, but the slots are: {', '.join(slots) or 'none'}")
        if name in names:
            raise ConstrainError(f"{pattern!r} has {{{name}}} twice; give each slot a name of its own")
        parts.append(node(slots[name]))
        names.append(name)
    unused = [name for name in slots if name not in names]
    if unused:
        raise ConstrainError(f"{pattern!r} has no {{{unused[0]}}} for the slot of that name")
    return Seq(*_close_texts(parts, names))


def _close_texts(parts: list[Node], names: list[str | None]) -> tuple[tuple[Node, ...], tuple[str | None, ...]]:
    """Free texts take the literal behind them as their trigger."""
    out: list[Node] = []
    kept: list[str | None] = []
    for part, name in zip(parts, names, strict=True):
        before = out[-1] if out else None
        if isinstance(before, Text) and not before.until:
            if not isinstance(part, Literal):
                raise ConstrainError(f"free text {kept[-1]!r} is followed by a slot; give text(until=...) its end")
            out[-1] = Text((part.text,), before.least, before.most)
            continue
        out.append(part)
        kept.append(name)
    return tuple(out), tuple(kept)


def choice(names: Iterable[str], aliases: Mapping[str, Sequence[str]] | None = None) -> Node:
    """One of the labels, or of their aliases; the value is the label.

    Raises ConstrainError for an empty set, an empty label, and two labels that are the same once case, spaces,
    `_` and `-` are treated as equal (label matching could not tell them apart).
    """
    if isinstance(names, str):
        raise ConstrainError(f"choice takes a list of labels, not one string ({names!r})")
    listed = list(names)
    values = dict(zip(listed, listed, strict=True))
    if not values:
        raise ConstrainError("the label set is empty; give at least one label")
    if aliases:
        listed += _add_aliases(values, aliases)
    if set(map(type, listed)) != {str} and not all(isinstance(name, str) for name in listed):
        wrong = next(name for name in listed if not isinstance(name, str))
        raise ConstrainError(f"label {wrong!r} is a {type(wrong).__name__}; a label is a string")
    if "" in values:
        raise ConstrainError("a label is empty; remove it, or use optional(choice(...))")
    _check_folded(listed, values)
    return Choice(values)


def _add_aliases(values: dict[str, str], aliases: Mapping[str, Sequence[str]]) -> list[str]:
    added = []
    for label, others in aliases.items():
        if values.get(label) != label:
            raise ConstrainError(f"aliases are given for {label!r}, which is no label")
        for alias in [others] if isinstance(others, str) else others:
            if values.setdefault(alias, label) != label:
                raise ConstrainError(f"{alias!r} is an alias of {label!r}, but stands for {values[alias]!r}")
            added.append(alias)
    return added


def _check_folded(listed: list[str], values: dict[str, str]) -> None:
    """All labels in one pass: folding them one by one would cost more than compiling them."""
    joined = "\n".join(listed)
    if not joined.isascii():
        _utf8(joined, "a label")
    folded = _fold(joined).split("\n")
    if len(folded) != len(listed):
        folded = [_fold(name) for name in listed]
    if len(set(folded)) == len(listed):
        return
    owner: dict[str, str] = {}
    seen: set[str] = set()
    for name, form in zip(listed, folded, strict=True):
        other = owner.setdefault(form, name)
        if values[other] != values[name] or (name in seen and name == values[name]):
            raise ConstrainError(
                f"labels {other!r} and {name!r} are the same once case, spaces, '_' and '-' are treated as equal; "
                "rename or remove one"
            )
        seen.add(name)


def _fold(text: str) -> str:
    folded = text.casefold().replace("_", " ").replace("-", " ")
    return SPACES.sub(" ", folded) if "  " in folded else folded


def number(
    low: Number | None = None,
    high: Number | None = None,
    *,
    digits: int | None = None,
    decimals: int | tuple[int, int] = 0,
) -> Node:
    """A decimal number in [low, high]; the value is an int, or a float where `decimals` allows a fraction.

    digits: most digits before the point, default 9. decimals: digits behind it, exactly or (least, most).
    Numbers have no leading zeros and no plus; negative ones occur where `low` is below 0.
    """
    places = decimals_range(decimals)
    if digits is not None and not 1 <= digits <= 17:
        raise ConstrainError(f"digits is {digits}; give 1 to 17")
    bounds = [None if value is None else exact(value, name) for value, name in ((low, "low"), (high, "high"))]
    return number_node(bounds[0], bounds[1], digits, places, float if places[-1] else int)


def time(high_s: Number, *, low_s: Number = 0, form: str = "s", decimals: int = 0) -> Node:
    """A moment in [low_s, high_s] seconds, as "s" (75), "mm:ss" (01:15), "m:ss" or "hh:mm:ss"; the value in seconds."""
    low, high, scale = _time_bounds(low_s, high_s, decimals)
    return Tagged(Range(time_layout(form, decimals), low, high, scale), float if decimals else int)


def interval(
    high_s: Number,
    *,
    low_s: Number = 0,
    least_s: Number = 0,
    form: str = "s",
    decimals: int = 0,
    separator: str = " - ",
) -> Node:
    """Start and end in [low_s, high_s] seconds, the end at least `least_s` after the start; the value is a pair.

    Each possible start costs states: round `high_s` (a video's duration) so that grammars can be shared, and
    use few decimals. Raises ConstrainError when no interval fits or more than 50,000 starts do.
    """
    low, high, scale = _time_bounds(low_s, high_s, decimals)
    least = -floor(-exact(least_s, "least_s") * scale)
    if least < 0 or low + least > high:
        raise ConstrainError(f"no interval of {least_s} s fits into [{low_s}, {high_s}] s")
    if not separator or separator[0] in "0123456789.:":
        raise ConstrainError(f"separator is {separator!r}; it must begin with something that no number contains")
    if high - low - least >= MOST_STARTS:
        raise ConstrainError(f"{high - low - least + 1} starts are more than {MOST_STARTS}; use fewer decimals")
    convert = float if decimals else int
    parts = Interval(time_layout(form, decimals), low, high, least, _utf8(separator, "separator"), scale)
    return Tagged(parts, partial(_both, convert))


def _time_bounds(low_s: Number, high_s: Number, decimals: int) -> tuple[int, int, int]:
    scale = 10 ** decimals_range(decimals)[0]
    low, high = -floor(-exact(low_s, "low_s") * scale), floor(exact(high_s, "high_s") * scale)
    if low < 0 or high < low or high >= LARGEST:
        raise ConstrainError(f"no time lies in [{low_s}, {high_s}] s with {decimals} decimals; times start at 0")
    return low, high, scale


def sequence(
    items: Part | Sequence[Part], *, separator: str = ", ", least: int = 1, most: int | None = None
) -> Node:  # fmt: skip
    """Several items in order, with a separator; the value is a tuple.

    One slot: `least` to `most` of it. A list: each of them once, in the order given.
    """
    if isinstance(items, (str, Node)):
        _check_times(least, most)
        return Repeat(node(items), least, most, _utf8(separator, "separator"))
    parts = [node(item) for item in items]
    if not parts:
        raise ConstrainError("the sequence is empty; give at least one item")
    spaced: list[Node] = []
    for part in parts:
        spaced += [part, Literal(separator)]
    if not separator:
        return Seq(tuple(parts))
    return Tagged(Seq(tuple(spaced[:-1])), _items)


def _check_times(least: int, most: int | None) -> None:
    if least < 0 or (most is not None and (most < least or most == 0 or most > 10_000)):
        raise ConstrainError(f"least is {least} and most is {most}; give 0 <= least <= most <= 10000, most above 0")


def optional(part: Part) -> Node:
    """The part or nothing; the value is the part's, or None."""
    return Tagged(Repeat(node(part), 0, 1), _only)


def repeat(part: Part, least: int = 0, most: int | None = None) -> Node:
    """The part `least` to `most` times (None: without end), back to back; the value is a tuple."""
    _check_times(least, most)
    return Repeat(node(part), least, most)


def text(until: str | Sequence[str] | None = None, *, least_chars: int = 0, most_chars: int | None = None) -> Node:
    """Free UTF-8 text; the value is the text before its end.

    until: the text ends with the first occurrence of (one of) these, which belong to the slot. None: up to the
    literal behind it in a `template`, else to the end of the answer. most_chars: each character that is counted
    costs a row of bits, so that a budget in tokens (`max_new_tokens`) is the better limit for long texts.
    """
    words = [until] if isinstance(until, str) else list(until or ())
    if not all(words):
        raise ConstrainError("text(until=...) has an empty trigger")
    if least_chars < 0 or (most_chars is not None and not least_chars <= most_chars <= 4096):
        raise ConstrainError(f"least_chars is {least_chars}, most_chars {most_chars}; give least <= most <= 4096")
    return Text(tuple(_utf8(word, "trigger") for word in words), least_chars, most_chars)


def _both(convert: type, pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return convert(pair[0]), convert(pair[1])


def _items(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return values[::2]


def _only(values: tuple[Any, ...]) -> Any:
    return values[0] if values else None
