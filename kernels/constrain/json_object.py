"""JSON objects of slots, written as `json.dumps` writes them."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

from vstar_fast.errors import ConstrainError

from .nodes import Alt, Chars, Choice, Literal, Node, Reading, Repeat, Seq, Tagged, Text
from .numbers import Interval, Range
from .template import Part, node


def json(fields: Mapping[str, Part]) -> Node:
    """A JSON object with these keys in this order, as `json.dumps` writes it; the value is a dict.

    Numbers stand as they are, choices, times and literals as strings, `text()` as a string with escapes.
    """
    if not fields:
        raise ConstrainError("the JSON object has no fields; give at least one")
    parts: list[Node] = []
    names: list[str | None] = []
    for i, (key, part) in enumerate(fields.items()):
        parts.append(Literal(("{" if i == 0 else ", ") + json_module.dumps(key, ensure_ascii=False) + ": "))
        parts.append(_json_value(node(part)))
        names += [None, key]
    return Seq((*parts, Literal("}")), (*names, None))


def _json_value(part: Node) -> Node:
    plain = part.part if isinstance(part, Tagged) else part
    if isinstance(plain, Text):
        return _json_string(plain)
    if isinstance(plain, Choice):
        return Choice({json_module.dumps(text, ensure_ascii=False): value for text, value in plain.values.items()})
    if isinstance(plain, Literal):
        return Tagged(Literal(json_module.dumps(plain.text, ensure_ascii=False)), json_module.loads)
    quoted = isinstance(plain, Interval) or (isinstance(plain, Range) and ord(":") in plain.layout.tail)
    return Tagged(Seq((Literal('"'), part, Literal('"'))), itemgetter(1)) if quoted else part


def _json_string(part: Text) -> Node:
    """A string of any UTF-8 with JSON's escapes; `until` has no meaning here."""
    if part.until:
        raise ConstrainError("a text in a JSON object ends with its quote; leave `until` out")
    hexes = Chars(("09", "af", "AF"))
    # \u escapes of surrogates are left out: one alone would be no character.
    unicode = Alt(
        (
            Seq((Literal("\\u"), Chars(("09", "ac", "AC", "ef", "EF")), hexes, hexes, hexes)),
            Seq((Literal("\\u"), Chars(("dd", "DD")), Chars(("07",)), hexes, hexes)),
        )
    )
    escape = Seq((Literal("\\"), Chars(('""', "\\\\", "//", "bb", "ff", "nn", "rr", "tt"))))
    character = Alt((Chars((" !", "#[", "]\x7f")), WIDE, escape, unicode))
    body = Repeat(character, part.least, part.most)
    return _String(Seq((Literal('"'), body, Literal('"'))), part.least, part.most)


class _Wide(Node):
    """One character beyond ASCII."""

    RUNS = (
        ((0xC2, 0xDF), (0x80, 0xBF)),
        ((0xE0, 0xE0), (0xA0, 0xBF), (0x80, 0xBF)),
        ((0xE1, 0xEC), (0x80, 0xBF), (0x80, 0xBF)),
        ((0xED, 0xED), (0x80, 0x9F), (0x80, 0xBF)),
        ((0xEE, 0xEF), (0x80, 0xBF), (0x80, 0xBF)),
        ((0xF0, 0xF0), (0x90, 0xBF), (0x80, 0xBF), (0x80, 0xBF)),
        ((0xF1, 0xF3), (0x80, 0xBF), (0x80, 0xBF), (0x80, 0xBF)),
        ((0xF4, 0xF4), (0x80, 0x8F), (0x80, 0xBF), (0x80, 0xBF)),
    )

    def write(self) -> bytes:
        def one(ranges: tuple[tuple[int, int], ...]) -> bytes:
            parts = b"".join(b"C\x01\0\0\0" + bytes(pair) for pair in ranges)
            return b"S" + len(ranges).to_bytes(4, "little") + parts

        return b"A" + len(self.RUNS).to_bytes(4, "little") + b"".join(map(one, self.RUNS))

    def read(self, text: str, at: int) -> Reading:
        if at < len(text) and text[at] > "\x7f":
            yield at + 1, text[at]


@dataclass(frozen=True)
class _String(Node):
    """A quoted string; the value is the text it stands for, which has `least` to `most` characters."""

    part: Node
    least: int
    most: int | None

    def write(self) -> bytes:
        return self.part.write()

    def read(self, text: str, at: int) -> Reading:
        try:
            value, end = json_module.JSONDecoder().raw_decode(text, at)
        except ValueError:
            return
        if isinstance(value, str) and self.least <= len(value) and (self.most is None or len(value) <= self.most):
            yield end, value


WIDE = _Wide()
