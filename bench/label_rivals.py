"""Rivals of `label_match` that search for every label in every row; each only where its package is installed.

All give the labels that occur in each row of ASCII text: case-insensitive, on word boundaries, one space between words.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

Labels = list[tuple[int, ...]]
Rival = Callable[[list[bytes]], Labels]


def hyperscan(names: list[str]) -> Rival:
    """Boundaries and case in the patterns, without start offsets; one scan a row."""
    import hyperscan as hs

    database = hs.Database()
    flags = hs.HS_FLAG_CASELESS | hs.HS_FLAG_SINGLEMATCH
    database.compile(
        expressions=[rf"\b{re.escape(name)}\b".encode() for name in names],
        ids=list(range(len(names))),
        elements=len(names),
        flags=[flags] * len(names),
    )

    def run(rows: list[bytes]) -> Labels:
        found: list[int] = []
        out = []

        def hit(label: int, _start: int, _end: int, _flags: int, _context: object) -> None:
            found.append(label)

        for row in rows:
            found.clear()
            database.scan(row, match_event_handler=hit)
            out.append(tuple(sorted(found)))
        return out

    return run


def ahocorasick_rs(names: list[str]) -> Rival:
    """Overlapping matches of lowered text; boundaries checked in Python."""
    import ahocorasick_rs as ac

    machine = ac.AhoCorasick([name.lower() for name in names])

    def run(rows: list[bytes]) -> Labels:
        out = []
        for row in rows:
            text = row.decode().lower()
            hits = machine.find_matches_as_indexes(text, overlapping=True)
            out.append(tuple(sorted({i for i, begin, end in hits if _alone(text, begin, end)})))
        return out

    return run


def pyahocorasick(names: list[str]) -> Rival:
    """As ahocorasick_rs."""
    import ahocorasick as ac

    machine = ac.Automaton()
    for i, name in enumerate(names):
        machine.add_word(name.lower(), (i, len(name)))
    machine.make_automaton()

    def run(rows: list[bytes]) -> Labels:
        out = []
        for row in rows:
            text = row.decode().lower()
            hits = ((i, last + 1 - size, last + 1) for last, (i, size) in machine.iter(text))
            out.append(tuple(sorted({i for i, begin, end in hits if _alone(text, begin, end)})))
        return out

    return run


def re2(names: list[str]) -> Rival:
    """re2.Set: which patterns match, without positions."""
    import re2 as engine

    options = engine.Options()
    options.case_sensitive = False
    options.max_mem = 1 << 30
    patterns = engine.Set.SearchSet(options)
    for name in names:
        patterns.Add(rf"\b{re.escape(name)}\b")
    patterns.Compile()
    return lambda rows: [tuple(sorted(patterns.Match(row.decode()) or ())) for row in rows]


def _alone(text: str, begin: int, end: int) -> bool:
    return not (begin and text[begin - 1].isalnum()) and not (end < len(text) and text[end].isalnum())


RIVALS: dict[str, tuple[str, Callable[[list[str]], Rival]]] = {
    "hyperscan": ("hyperscan", hyperscan),
    "ahocorasick_rs": ("ahocorasick_rs", ahocorasick_rs),
    "pyahocorasick": ("ahocorasick", pyahocorasick),
    "re2.Set": ("re2", re2),
}


def installed() -> list[str]:
    """Rivals that can be imported here."""
    return [name for name, (module, _) in RIVALS.items() if importlib.util.find_spec(module) is not None]
