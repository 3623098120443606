"""What a character is to `label_match`: part of a word, a separator or neither, and how its case is folded.

`csrc/unicode_tables.py` writes the C++ tables from these two functions.
"""

from __future__ import annotations

import unicodedata

WORD, SEPARATOR = 1, 2

_SPACE_CONTROLS = "\t\n\v\f\r\x85"


def kind(char: str) -> int:
    """WORD for letters, marks and numbers; SEPARATOR for spaces, dashes and connectors such as `_`; else 0."""
    category = unicodedata.category(char)
    if category[0] in "LMN":
        return WORD
    if category in ("Zs", "Zl", "Zp", "Pd", "Pc") or char in _SPACE_CONTROLS:
        return SEPARATOR
    return 0


def fold(char: str) -> str:
    """Simple case folding (statuses C and S of Unicode's CaseFolding.txt): always one character."""
    for folded in (char.casefold(), char.lower()):
        if len(folded) == 1:
            return folded
    return char


def fold_name(name: str) -> tuple[int, ...]:
    """A name as it is compared: folded code points, runs of separators one space, none at the edges."""
    points: list[int] = []
    for char in name:
        if kind(char) != SEPARATOR:
            points.append(ord(fold(char)))
        elif points and points[-1] != 0x20:
            points.append(0x20)
    if points and points[-1] == 0x20:
        points.pop()
    return tuple(points)
