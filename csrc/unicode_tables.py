"""Write csrc/unicode_tables.h: word and separator ranges, and simple case folding, from this Python's Unicode data.

Run once per Unicode version, with vstar-fast installed: python csrc/unicode_tables.py
"""

import sys
import unicodedata
from pathlib import Path

from vstar_fast.kernels.label_match.characters import SEPARATOR, WORD, fold, kind


def runs(values: list[int]) -> list[tuple[int, int, int]]:
    """(first, last, value) of each maximal run of equal non-zero values."""
    found: list[tuple[int, int, int]] = []
    for point, value in enumerate(values):
        if not value:
            continue
        if found and found[-1][1] == point - 1 and found[-1][2] == value:
            found[-1] = (found[-1][0], point, value)
        else:
            found.append((point, point, value))
    return found


def fold_runs() -> list[tuple[int, int, int, int]]:
    """(first, last, step, delta): point + delta is the folding of each step-th point from first to last."""
    found: list[tuple[int, int, int, int]] = []
    for point in range(sys.maxunicode + 1):
        delta = ord(fold(chr(point))) - point
        if not delta:
            continue
        if found:
            first, last, step, known = found[-1]
            gap = point - last
            if known == delta and gap <= 2 and (first == last or gap == step):
                found[-1] = (first, point, gap, delta)
                continue
        found.append((point, point, 1, delta))
    return found


def rows(items: list[tuple[int, ...]]) -> str:
    """C initialisers, wrapped to 110 columns."""
    lines, line = [], "   "
    for item in items:
        text = " {" + ", ".join(str(value) for value in item) + "},"
        if len(line) + len(text) > 110:
            lines.append(line)
            line = "   "
        line += text
    return "\n".join([*lines, line])


def header() -> str:
    """The whole text of unicode_tables.h."""
    kinds = runs([kind(chr(point)) for point in range(sys.maxunicode + 1)])
    folds = fold_runs()
    return f"""// Written by csrc/unicode_tables.py; do not edit.
#pragma once
#include <cstdint>

namespace vstar::unicode {{

// clang-format off
constexpr const char* kVersion = "{unicodedata.unidata_version}";

struct KindRun {{ int32_t first, last, kind; }};        // kind: {WORD} word character, {SEPARATOR} separator
struct FoldRun {{ int32_t first, last, step, delta; }};  // each step-th code point folds to itself + delta

constexpr KindRun kKinds[] = {{
{rows(kinds)}
}};

constexpr FoldRun kFolds[] = {{
{rows(folds)}
}};
// clang-format on

}}  // namespace vstar::unicode
"""


if __name__ == "__main__":
    Path(__file__).with_suffix(".h").write_text(header())
