"""How `prefix_attention` is cut into programs on a GPU: sizes of a tile, and how often a segment is split.

Nothing here needs Triton or a GPU: the kernel's launcher, its tests, the ahead-of-time compiler and the cost model
all ask the same functions.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_SPLITS = 64
LEAST_SPLIT = 256
"""Positions that a program should read at least; less is not worth the merge."""
GOOD_ENOUGH = 0.9
"""The fewest splits are taken whose last wave is at least this share as full as the best."""


class Tile(NamedTuple):
    """Query rows and key columns of one program's products, and how it is run."""

    rows: int
    columns: int
    warps: int
    stages: int

    @property
    def resident(self) -> int:
        """Programs that lie on one multiprocessor at once: registers allow one of 8 warps, two of 4."""
        return 8 // self.warps


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def tile(rows: int, width: int, itemsize: int, masked: bool = False) -> Tile:
    """For `rows` = members x query heads a key head, and the larger width of keys and values.

    A tile has all rows of a group where it can (64 fit the registers), so that each byte of its keys and values is read
    once; 16 is the least that tensor cores multiply. Keys and values of one stage take 32 KiB or less. `masked`: each
    row has a mask of its own, which takes registers too.
    """
    wide = power_of_two(width)
    held = min(16 if itemsize > 2 else 32 if masked else 64, max(16, power_of_two(rows)))
    columns = max(16, min(128 if held == 16 else 64, (32 << 10) // (2 * wide * itemsize)))
    warps = 8 if held * wide >= 64 * 128 or itemsize > 2 else 4
    return Tile(held, min(columns, 32) if masked else columns, warps, 3 if held * wide <= 32 * 128 else 2)


def splits(programs: int, positions: int, places: int) -> int:
    """Parts that `positions` are read in by programs of their own, so that `programs` x parts fill a GPU's places."""
    most = max(1, min(MOST_SPLITS, positions // LEAST_SPLIT))
    if programs >= places or most == 1:
        return 1
    filled = [_filled(programs * n, places) for n in range(1, most + 1)]
    best = max(filled)
    return next(n for n, share in enumerate(filled, 1) if share >= GOOD_ENOUGH * best)


def _filled(programs: int, places: int) -> float:
    """Share of the places that are busy, over all waves."""
    return programs / (-(-programs // places) * places)
