"""What templates are made of. A node writes itself as a program for the C++ compiler, and reads a finished answer.

write()             bytes of the program (csrc/constrain_program.cpp reads them)
read(text, at)      each (end, value) such that text[at:end] is a member of the node
members(most)       every member as a string, or None where there are more than `most`
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

Reading = Iterator[tuple[int, Any]]


def _block(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


class Node:
    """One part of a template."""

    def write(self) -> bytes:
        """This node's program."""
        raise NotImplementedError

    def read(self, text: str, at: int) -> Reading:
        """Every way in which the node matches `text` from character `at` on."""
        raise NotImplementedError

    def members(self, most: int) -> list[str] | None:  # noqa: ARG002 - most nodes have no end of members
        """All members when there are at most `most`."""
        return None


@dataclass(frozen=True)
class Literal(Node):
    """Fixed text."""

    text: str

    def write(self) -> bytes:
        return b"L" + _block(self.text.encode())

    def read(self, text: str, at: int) -> Reading:
        if text.startswith(self.text, at):
            yield at + len(self.text), self.text

    def members(self, most: int) -> list[str] | None:  # noqa: ARG002 - there is one
        return [self.text]


@dataclass(frozen=True)
class Chars(Node):
    """One character of some ASCII ranges, such as ("09", "af")."""

    ranges: tuple[str, ...]

    def write(self) -> bytes:
        return b"C" + struct.pack("<I", len(self.ranges)) + b"".join(r.encode("ascii") for r in self.ranges)

    def read(self, text: str, at: int) -> Reading:
        if at < len(text) and any(r[0] <= text[at] <= r[1] for r in self.ranges):
            yield at + 1, text[at]


class Choice(Node):
    """One of many strings; the value of each is the label it stands for."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.lengths = sorted({len(text) for text in values}, reverse=True)

    def write(self) -> bytes:
        names = sorted(self.values)  # code points are in the order of their UTF-8
        joined = "".join(names)
        sizes = map(len, names) if joined.isascii() else (len(name.encode()) for name in names)
        return struct.pack(f"<cI{len(names)}I", b"K", len(names), *sizes) + joined.encode()

    def read(self, text: str, at: int) -> Reading:
        for length in self.lengths:
            found = text[at : at + length]
            if len(found) == length and found in self.values:
                yield at + length, self.values[found]

    def members(self, most: int) -> list[str] | None:
        return list(self.values) if len(self.values) <= most else None


@dataclass(frozen=True)
class Seq(Node):
    """Parts one after another; the value is a dict of the named ones, or a tuple when `names` is empty."""

    parts: tuple[Node, ...]
    names: tuple[str | None, ...] = ()

    def write(self) -> bytes:
        return b"S" + struct.pack("<I", len(self.parts)) + b"".join(part.write() for part in self.parts)

    def read(self, text: str, at: int) -> Reading:
        return ((end, self._value(values)) for end, values in self._read(text, at, 0))

    def _read(self, text: str, at: int, index: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        if index == len(self.parts):
            yield at, ()
            return
        for middle, value in self.parts[index].read(text, at):
            for end, values in self._read(text, middle, index + 1):
                yield end, (value, *values)

    def _value(self, values: tuple[Any, ...]) -> Any:
        if not self.names:
            return values
        return {name: value for name, value in zip(self.names, values, strict=True) if name is not None}

    def members(self, most: int) -> list[str] | None:
        out = [""]
        for part in self.parts:
            inner = part.members(most)
            if inner is None or len(out) * len(inner) > most:
                return None
            out = [head + tail for head in out for tail in inner]
        return out


@dataclass(frozen=True)
class Alt(Node):
    """One of some parts; the value is that part's."""

    parts: tuple[Node, ...]

    def write(self) -> bytes:
        return b"A" + struct.pack("<I", len(self.parts)) + b"".join(part.write() for part in self.parts)

    def read(self, text: str, at: int) -> Reading:
        for part in self.parts:
            yield from part.read(text, at)

    def members(self, most: int) -> list[str] | None:
        out: list[str] = []
        for part in self.parts:
            inner = part.members(most)
            if inner is None or len(out) + len(inner) > most:
                return None
            out += inner
        return out


@dataclass(frozen=True)
class Repeat(Node):
    """`least` to `most` times a part (None: without end) with a separator; the value is a tuple."""

    part: Node
    least: int
    most: int | None
    separator: str = ""

    def write(self) -> bytes:
        if not self.separator:
            return self._times(self.part, self.least, self.most)
        rest = self._times(
            Seq((Literal(self.separator), self.part)),
            max(self.least - 1, 0),
            None if self.most is None else max(self.most - 1, 0),
        )
        first = b"S" + struct.pack("<I", 2) + self.part.write() + rest
        if self.most == 0:
            return Literal("").write()
        return b"A" + struct.pack("<I", 2) + Literal("").write() + first if self.least == 0 else first

    @staticmethod
    def _times(part: Node, least: int, most: int | None) -> bytes:
        return b"R" + struct.pack("<ii", least, -1 if most is None else most) + part.write()

    def read(self, text: str, at: int) -> Reading:
        return self._read(text, at, ())

    def _read(self, text: str, at: int, values: tuple[Any, ...]) -> Reading:
        if self.most is None or len(values) < self.most:
            start = at + len(self.separator) if values and text.startswith(self.separator, at) else at
            if not values or not self.separator or start > at:
                for end, value in self.part.read(text, start):
                    if end > at or len(values) < self.least:
                        yield from self._read(text, end, (*values, value))
        if len(values) >= self.least:
            yield at, values

    def members(self, most: int) -> list[str] | None:
        inner = self.part.members(most)
        if inner is None or self.most is None:
            return None
        out: list[str] = [""] if self.least == 0 else []
        level = [""]
        for count in range(1, self.most + 1):
            if len(level) * len(inner) > most:
                return None
            level = [head + (self.separator if count > 1 else "") + tail for head in level for tail in inner]
            if count >= self.least:
                out += level
            if len(out) > most:
                return None
        return out


@dataclass(frozen=True)
class Text(Node):
    """Free text before the first of some triggers (the value), and that trigger; or up to the answer's end."""

    until: tuple[str, ...]
    least: int
    most: int | None

    def write(self) -> bytes:
        sizes = struct.pack("<iiI", self.least, -1 if self.most is None else self.most, len(self.until))
        return b"T" + sizes + b"".join(_block(word.encode()) for word in self.until)

    def read(self, text: str, at: int) -> Reading:
        if not self.until:
            ends: Sequence[tuple[int, int]] = [(end, end) for end in range(len(text), at - 1, -1)]
        else:
            found = [(place + len(word), place) for word in self.until if (place := text.find(word, at)) >= 0]
            ends = sorted(found)[:1]
        for end, stop in ends:
            if self.least <= stop - at and (self.most is None or stop - at <= self.most):
                yield end, text[at:stop]


@dataclass(frozen=True)
class Tagged(Node):
    """A part whose value is replaced: a name for a form that stands for something else."""

    part: Node
    convert: Any

    def write(self) -> bytes:
        return self.part.write()

    def read(self, text: str, at: int) -> Reading:
        return ((end, self.convert(value)) for end, value in self.part.read(text, at))

    def members(self, most: int) -> list[str] | None:
        return self.part.members(most)


def read_whole(node: Node, text: str) -> tuple[bool, Any]:
    """(whether `text` is a member of `node`, its value)."""
    whole = (value for end, value in node.read(text, 0) if end == len(text))
    found = list(islice(whole, 1))
    return bool(found), found[0] if found else None
