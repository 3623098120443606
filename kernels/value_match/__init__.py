"""`match_number`, `match_interval`, `match_sequence`: what each row states, against its own, from text or token ids.

Numbers may have a sign, decimals, thousands, a unit or percent, be clock times (mm:ss, hh:mm:ss) or be written in
words ("twenty-five", "two and a half"). Ordinals and names (3rd, 3D, v2, 1.2.3) are none. `pick` says which one counts:

    "slot"     the first behind the last `after` literal, or the last of the text where that literal is absent
    "first"    the first behind the literal; rows without it have no value. The first of the text when after=None
    "last"     the last, likewise

On a GPU nothing waits for the host: own values that are tensors there are taken as they lie, lists go there through
pinned memory. CUDA graphs take tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from vstar_fast.kernels.label_match.labels import LabelSet
from vstar_fast.kernels.label_match.rows import Ids, Texts, rows_of, sizes_beside
from vstar_fast.kernels.label_match.token_bytes import TokenBytes
from vstar_fast.kernels.number_words import UNITS

from vstar_fast import backends
from vstar_fast.errors import DataError

from . import job, own, reference
from .job import PICKS, Call, Found
from .result import STATUSES, SequenceMatch, ValueMatch

__all__ = ["STATUSES", "UNITS", "SequenceMatch", "ValueMatch", "match_interval", "match_number", "match_sequence"]


def match_number(
    texts: Texts | Ids,
    gold: Sequence[float] | torch.Tensor,
    *,
    unit: str | Sequence[str] = "",
    abs_tolerance: float | Sequence[float] | torch.Tensor = 0.0,
    rel_tolerance: float | Sequence[float] | torch.Tensor = 0.0,
    pick: str = "slot",
    after: str | None = "Answer:",
    tokens: TokenBytes | None = None,
    lengths: torch.Tensor | Sequence[int] | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> ValueMatch:
    """Whether the number of each row x fits: |x - gold| <= abs_tolerance + rel_tolerance |gold|, up to rounding.

    Args:
        texts: as `label_match` takes them, or ids with `tokens` (and `lengths`).
        gold: [B] own numbers; NaN fits nothing.
        unit: in which gold is given, for all rows or each; a number with a unit of another dimension is a
            "wrong_unit", "" takes numbers as they are, percent as shares.
        abs_tolerance, rel_tolerance: for all rows or each.
        pick, after: which number counts; see above.
        backend: "auto", "cpp", "cuda" (ids, or texts as bytes, on a GPU) or "reference".
        threads: CPU threads at most; default torch's number.

    Raises DataError for wrong shapes, an unknown pick, and ids outside the vocabulary (on a GPU: from
    `ValueMatch.check()`).
    """
    if _in_graph(texts, tokens):
        from . import library

        units = unit if isinstance(unit, str) else "\n".join(unit)
        given = ((gold, "gold"), (abs_tolerance, "abs_tolerance"), (rel_tolerance, "rel_tolerance"))
        doubles = [own.doubles(x, len(texts), what, texts.device) for x, what in given]  # type: ignore[union-attr]
        options = (units, tokens.handle, pick, after, backend)  # type: ignore[union-attr]
        table, score, values = library.number(texts, sizes_beside(lengths, texts), *doubles, *options)
        return ValueMatch(table, score, backend, values)
    rows = rows_of(texts, tokens, lengths)
    wanted = own.of_numbers(gold, abs_tolerance, rel_tolerance, unit, rows.size, rows.device)
    found, name = _run("match_number", Call(rows, wanted, pick, after, threads), backend)
    return ValueMatch(found.table, found.score, name, found.more)


def match_interval(
    texts: Texts | Ids,
    gold: Sequence[Any] | torch.Tensor,
    *,
    iou: float = 0.5,
    pick: str = "slot",
    after: str | None = "Answer:",
    tokens: TokenBytes | None = None,
    lengths: torch.Tensor | Sequence[int] | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> ValueMatch:
    """Whether the two times that each row states overlap one of its own spans by at least `iou`.

    `gold` is [B, 2] or [B, S, 2] seconds, or per row a list of (begin, end); a span that is reversed or NaN overlaps
    nothing, and neither does an answer that is reversed ("wrong_order"). The rest is as in `match_number`.
    """
    if _in_graph(texts, tokens):
        from . import library

        spans = gold
        if not isinstance(gold, torch.Tensor):
            spans = library.padded([own.span_list(row) for row in gold], (math.nan, math.nan), [2])
        options = (float(iou), tokens.handle, pick, after, backend)  # type: ignore[union-attr]
        table, score, values = library.interval(texts, sizes_beside(lengths, texts), spans, *options)
        return ValueMatch(table, score, backend, values)
    if not 0 <= iou <= 1:
        raise DataError(f"iou is {iou}; give the least overlap that counts, 0 to 1")
    rows = rows_of(texts, tokens, lengths)
    wanted = own.of_intervals(gold, iou, rows.size, rows.device)
    found, name = _run("match_interval", Call(rows, wanted, pick, after, threads), backend)
    return ValueMatch(found.table, found.score, name, found.more)


def match_sequence(
    texts: Texts | Ids,
    labels: LabelSet,
    gold: Sequence[Sequence[int | str]] | torch.Tensor,
    *,
    after: str | None = "Answer:",
    tokens: TokenBytes | None = None,
    lengths: torch.Tensor | Sequence[int] | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> SequenceMatch:
    """Whether the labels that each row names are its own sequence, no more, no fewer, and in its order.

    Labels are found as `label_match` finds them; of labels that begin at one place the longest counts, and none inside
    another. What stands between them does not matter. `score` is the longest common subsequence over the longer one.

    Args:
        labels: the names to know.
        gold: own sequences of the B rows: lists of label ids or names, or ids [B, M] with -1 for no item.
        after: read only behind the last occurrence of this literal; rows without it are "no_slot".

    The rest is as in `match_number`. A status is "ok", "no_slot", "no_value" (no label is named), "wrong_length",
    "wrong_order" (the right labels) or "wrong_value"; `negated` tells that an item is denied.
    """
    if _in_graph(texts, tokens):
        from . import library

        items = gold
        if not isinstance(gold, torch.Tensor):
            items = library.padded(own.item_lists(gold, labels), -1).long()
        options = (labels.handle, tokens.handle, after, backend)  # type: ignore[union-attr]
        table, score, found_items = library.sequence(texts, sizes_beside(lengths, texts), items, *options)
        return SequenceMatch(table, score, backend, found_items)
    rows = rows_of(texts, tokens, lengths)
    wanted = own.of_sequences(gold, labels, rows.size, rows.device)
    found, name = _run("match_sequence", Call(rows, wanted, "first", after, threads), backend)
    return SequenceMatch(found.table, found.score, name, found.more)


def _in_graph(texts: Texts | Ids, tokens: TokenBytes | None) -> bool:
    """Whether torch.compile traces a call that its operators take: on ids [B, T]."""
    return torch.compiler.is_compiling() and tokens is not None and isinstance(texts, torch.Tensor)


def _run(op: str, call: Call, backend: str) -> tuple[Found, str]:
    if call.pick not in PICKS:
        raise DataError(f"unknown pick {call.pick!r}; known: {', '.join(PICKS)}")
    if call.pick == "slot" and call.after is None:
        raise DataError("pick='slot' needs the literal of the slot in `after`")
    choice = backends.choose(op, call.rows.device, backend)
    run = {"cpp": job.cpp, "cuda": job.cuda, "reference": reference.run}[choice.name]
    found = run(call)
    backends.ran(op, choice.name)
    return found, choice.name
