"""`label_match` in plain Python: the specification, and the oracle of the tests."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .characters import SEPARATOR, WORD, fold, kind
from .result import INSIDE_LONGER, NEGATED
from .rows import Rows, TokenRows
from .token_bytes import TokenBytes

_DENIED = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|without|cannot|rather than|instead of|other than|anything but)|n['\u2019]t)"
    r"(?:[\s\"'*_\-]+(?!but\b|only\b|just\b|doubt\b)\w+){0,3}[\s\"'\u201c\u2018*_(\-]*\Z",
    re.IGNORECASE,
)
_WINDOW = 60


class Unit(NamedTuple):
    """One folded character, or a run of separators as one space; `begin` and `end` are byte positions."""

    point: int
    begin: int
    end: int
    kind: int


def units(text: bytes) -> list[Unit]:
    """The units of a text. Bytes that are not UTF-8 are one unit each, of no word."""
    found: list[Unit] = []
    at = 0
    for char in text.decode("utf-8", errors="surrogateescape"):
        size = 1 if "\udc80" <= char <= "\udcff" else len(char.encode("utf-8"))
        what = kind(char)
        if what == SEPARATOR and found and found[-1].kind == SEPARATOR:
            found[-1] = found[-1]._replace(end=at + size)
        else:
            found.append(Unit(0x20 if what == SEPARATOR else ord(fold(char)), at, at + size, what))
        at += size
    return found


def spells(text: list[Unit], at: int, points: Sequence[int]) -> bool:
    """Whether the units from index `at` on are exactly `points`."""
    return [unit.point for unit in text[at : at + len(points)]] == list(points)


def search_start(text: list[Unit], after: Sequence[int]) -> int:
    """Byte position after the last occurrence of the literal; 0 without a literal, -1 when it is absent."""
    if not after:
        return 0
    for at in range(len(text) - len(after), -1, -1):
        if spells(text, at, after):
            return text[at + len(after) - 1].end
    return -1


def occurrences(text: list[Unit], points: Sequence[int], start: int) -> list[tuple[int, int]]:
    """Byte spans, from byte `start` on, where `points` stand with no word character on either side."""
    spans = []
    for at in range(len(text) - len(points) + 1):
        stop = at + len(points)
        word_before = at > 0 and text[at - 1].kind == WORD
        word_after = stop < len(text) and text[stop].kind == WORD
        if text[at].begin >= start and not word_before and not word_after and spells(text, at, points):
            spans.append((text[at].begin, text[stop - 1].end))
    return spans


def denied(text: bytes, start: int, at: int) -> bool:
    """Whether what stands at byte `at` is denied in the 60 characters before it, from byte `start` on.

    Marks count as letters of the word they stand in.
    """
    before = text[start:at].decode("utf-8", errors="surrogateescape")[-_WINDOW:]
    return bool(_DENIED.search("".join("x" if unicodedata.category(char)[0] == "M" else char for char in before)))


def characters(text: bytes, stop: int) -> int:
    """Characters before byte `stop`, where one ends; a byte that is not valid UTF-8 counts as one."""
    return len(text[:stop].decode("utf-8", errors="surrogateescape"))


def token_span(ids: Sequence[int], tokens: TokenBytes, begin: int, end: int) -> tuple[int, int]:
    """Tokens that hold the first and the last byte of a span, as a span of tokens."""
    holders = [i for i, token in enumerate(ids) for _ in tokens.pieces[token] or b""]
    return holders[begin], holders[end - 1] + 1


class Row(NamedTuple):
    """What was found in one row: byte spans of the own label, where the search began, flags, all labels."""

    spans: tuple[int, int, int, int]
    searched_from: int
    flags: int
    labels: set[int]


def match_row(
    text: bytes,
    forms: Sequence[tuple[int, ...]],
    owners: Sequence[int],
    own: int,
    after: Sequence[int],
    negation: bool = False,
) -> Row:
    """One row in one way: every form at every place."""
    row = units(text)
    start = search_start(row, after)
    nothing = Row((-1, -1, -1, -1), start, 0, set())
    if start < 0:
        return nothing
    every = {(span, owner) for form, owner in zip(forms, owners, strict=True) for span in occurrences(row, form, start)}
    labels = {owner for _, owner in every}
    longest_own: dict[int, int] = {}
    for (begin, end), owner in every:
        if owner == own:
            longest_own[begin] = max(end, longest_own.get(begin, 0))
    if not longest_own:
        return nothing._replace(labels=labels)
    inside = all(
        any(b <= begin and end <= e and (b, e) != (begin, end) for (b, e), _ in every)
        for begin, end in longest_own.items()
    )
    flags = INSIDE_LONGER if inside else 0
    if negation and any(denied(text, start, begin) for begin in longest_own):
        flags |= NEGATED
    return Row((*min(longest_own.items()), *max(longest_own.items())), start, flags, labels)


def result_row(text: bytes, found: Row, ids: Sequence[int], tokens: TokenBytes | None) -> list[int]:
    """The ROW_INTS integers of one row."""
    token_spans, char_spans = [-1] * 4, [-1] * 4
    if found.spans[0] >= 0:
        char_spans = [characters(text, at) for at in found.spans]
        if tokens is not None:
            spans = (found.spans[:2], found.spans[2:])
            token_spans = [x for begin, end in spans for x in token_span(ids, tokens, begin, end)]
    return [*found.spans, found.searched_from, found.flags, *token_spans, *char_spans, -1, len(text)]


def run(
    rows: Rows,
    own: torch.Tensor,
    forms: Sequence[tuple[int, ...]],
    owners: Sequence[int],
    after: Sequence[int],
    negation: bool,
    out: torch.Tensor,
    which: torch.Tensor | None,
) -> None:
    """Fill `out` [B, ROW_INTS] int32 and `which` [B, ceil(N / 32)] int32."""
    ids = rows.lists() if isinstance(rows, TokenRows) else [[] for _ in range(rows.size)]
    tokens = rows.tokens if isinstance(rows, TokenRows) else None
    for r, (text, label) in enumerate(zip(rows.bytes(), own.tolist(), strict=True)):
        found = match_row(text, forms, owners, label, after, negation)
        out[r] = torch.tensor(result_row(text, found, ids[r], tokens), dtype=torch.int32)
        if which is not None:
            for seen in found.labels:
                word, bit = divmod(seen, 32)
                which[r, word] |= (1 << bit) - (1 << 32 if bit == 31 else 0)
