"""Class names: found by the `label_match` op, once per label set; doubtful rows are read again word by word."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vstar_fast import backends
from vstar_fast.match.text import Case, ClosedSet, Extracted, Names, closed_set, fold, negated
from vstar_fast.records import Label

if TYPE_CHECKING:
    import torch

    from vstar_fast.kernels.label_match import LabelSet


def extract(cases: Sequence[Case], names: Names) -> list[Extracted]:
    """The label of the set that each slot names; one op call a set."""
    groups: dict[int, tuple[ClosedSet, list[int]]] = {}
    for i, case in enumerate(cases):
        closed = names.closed(case.label) or alone(case.label)
        groups.setdefault(id(closed), (closed, []))[1].append(i)
    out = [Extracted()] * len(cases)
    for closed, rows in groups.values():
        for i, extracted in zip(rows, _group([cases[i] for i in rows], closed), strict=True):
            out[i] = extracted
    return out


def alone(label: Label) -> ClosedSet:
    """A set of one: the label has no set to be told apart from."""
    return closed_set((label.value,), ((fold(label.value), label.aliases),) if label.aliases else ())


def compiled(closed: ClosedSet) -> LabelSet:
    """The set as the op takes it."""
    return _compiled(closed.names, tuple((name, tuple(others)) for name, others in closed.aliases.items()))


@functools.lru_cache(maxsize=64)
def _compiled(names: tuple[str, ...], aliases: tuple[tuple[str, tuple[str, ...]], ...]) -> LabelSet:
    from vstar_fast.kernels.label_match import LabelSet

    return LabelSet(names, aliases=dict(aliases))


def _group(cases: Sequence[Case], closed: ClosedSet) -> list[Extracted]:
    from vstar_fast.kernels.label_match import label_match

    own = [closed.id(case.label.value) for case in cases]
    found = label_match([case.slot for case in cases], compiled(closed), own, which=True)
    backends.ran("match", found.backend)
    assert found.which_bits is not None
    rows = zip(cases, own, found.which_bits.tolist(), found.first.tolist(), found.last.tolist(), strict=True)
    return [_row(case, mine, label_ids(words), spans, closed) for case, mine, words, *spans in rows]


def set_bits(bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows [n], labels [n]) of the bits set in `which_bits` [B, W] int32, row by row in ascending order."""
    import torch

    rows, words = bits.nonzero(as_tuple=True)
    at, places = (bits[rows, words, None] >> torch.arange(32, dtype=torch.int32) & 1).nonzero(as_tuple=True)
    return rows[at], 32 * words[at] + places


def label_ids(words: list[int]) -> list[int]:
    """Labels whose bits are set in a row of `which_bits`."""
    return [32 * w + b for w, word in enumerate(words) if word for b in range(32) if word >> b & 1]


def _row(case: Case, own: int, present: list[int], spans: list[list[int]], closed: ClosedSet) -> Extracted:
    if not present:
        return Extracted(reason="no_value")
    if present == [own]:
        first, last = (_chars(case, *span) for span in spans)
        reason = "negated" if any(negated(case.text, case.start, at) for at, _ in (first, last)) else "ok"
        return Extracted(case.label.value, first, reason)
    found = list(closed.forms.scan(case.text, case.start, case.end))
    seen = list(dict.fromkeys(x.owner for x in found))
    mine = next((x for x in found if x.owner == own), None)
    if mine is None or len(seen) == 1:
        at = mine or (found[0] if found else None)
        if at is None:
            return Extracted(closed.names[present[0]])
        denied = mine is not None and any(negated(case.text, case.start, x.start) for x in found)
        return Extracted(closed.names[at.owner], (at.start, at.end), "negated" if denied else "ok")
    return Extracted(" | ".join(closed.names[i] for i in seen), (mine.start, mine.end), "ambiguous")


def _chars(case: Case, begin: int, end: int) -> tuple[int, int]:
    """Bytes of the slot as characters of the text."""
    slot = case.slot
    if not slot.isascii():
        data = slot.encode(errors="surrogatepass")
        begin, end = (len(data[:x].decode(errors="surrogatepass")) for x in (begin, end))
    return case.start + begin, case.start + end
