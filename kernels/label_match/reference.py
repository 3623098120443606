"""`label_match` in plain Python: the specification, and the oracle of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .characters import SEPARATOR, WORD, fold, kind

ROW_INTS = 6
"""Columns of a result row: first begin, first end, last begin, last end, searched from, inside longer."""


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


def match_row(
    text: bytes, forms: Sequence[tuple[int, ...]], owners: Sequence[int], own: int, after: Sequence[int]
) -> tuple[list[int], set[int]]:
    """One row: its result row of ROW_INTS integers, and the labels that occur in it."""
    row = units(text)
    start = search_start(row, after)
    if start < 0:
        return [-1, -1, -1, -1, -1, 0], set()
    every = {(span, owner) for form, owner in zip(forms, owners, strict=True) for span in occurrences(row, form, start)}
    longest_own: dict[int, int] = {}
    for (begin, end), owner in every:
        if owner == own:
            longest_own[begin] = max(end, longest_own.get(begin, 0))
    if not longest_own:
        return [-1, -1, -1, -1, start, 0], {owner for _, owner in every}
    first, last = min(longest_own.items()), max(longest_own.items())
    inside = all(
        any(b <= begin and end <= e and (b, e) != (begin, end) for (b, e), _ in every)
        for begin, end in longest_own.items()
    )
    return [*first, *last, start, int(inside)], {owner for _, owner in every}


def run(
    text: torch.Tensor,
    offsets: torch.Tensor,
    own: torch.Tensor,
    forms: Sequence[tuple[int, ...]],
    owners: Sequence[int],
    after: Sequence[int],
    out: torch.Tensor,
    which: torch.Tensor | None,
) -> None:
    """Fill `out` [B, ROW_INTS] int32 and `which` [B, ceil(N / 32)] int32 for text [bytes] uint8 and offsets [B + 1]."""
    data, bounds = bytes(text.cpu().numpy().tobytes()), offsets.tolist()
    for r, label in enumerate(own.tolist()):
        row, seen = match_row(data[bounds[r] : bounds[r + 1]], forms, owners, label, after)
        out[r] = torch.tensor(row, dtype=torch.int32)
        if which is not None:
            for found in seen:
                word, bit = divmod(found, 32)
                which[r, word] |= (1 << bit) - (1 << 32 if bit == 31 else 0)
