"""`match_number`, `match_interval`, `match_sequence`: what each row states, against its own, from text or token ids.

Numbers may have a sign, decimals, thousands, a unit or percent, be clock times (mm:ss, hh:mm:ss) or be written in
words ("twenty-five", "two and a half"). Ordinals and names (3rd, 3D, v2, 1.2.3) are none. `pick` says which one counts:

    "slot"     the first behind the last `after` literal, or the last of the text where that literal is absent
    "first"    the first behind the literal; rows without it have no value. The first of the text when after=None
    "last"     the last, likewise
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from vstar_fast.kernels.label_match.labels import LabelSet
from vstar_fast.kernels.label_match.rows import Ids, Texts, rows_of
from vstar_fast.kernels.label_match.token_bytes import TokenBytes
from vstar_fast.kernels.number_words import UNITS

from vstar_fast import backends
from vstar_fast.errors import DataError

from . import job, reference
from .job import INTERVAL, NUMBER, PICKS, SEQUENCE, Call, Found
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
        doubles = [_doubles(x, len(texts), what) for x, what in given]
        options = (units, tokens.handle, pick, after, backend)  # type: ignore[union-attr]
        table, score, values = library.number(texts, _sizes(lengths), *doubles, *options)
        return ValueMatch(table, score, backend, values)
    rows = rows_of(texts, tokens, lengths)
    own = _doubles(gold, rows.size, "gold")
    absolute, relative = (
        _tolerances(given, rows.size, what)
        for given, what in ((abs_tolerance, "abs_tolerance"), (rel_tolerance, "rel_tolerance"))
    )
    names = [unit.strip().lower()] * rows.size if isinstance(unit, str) else [x.strip().lower() for x in unit]
    if len(names) != rows.size:
        raise DataError(f"unit names {len(names)} units for {rows.size} rows; give one, or one a row")
    found, name = _run(
        "match_number", Call(NUMBER, rows, (own, absolute, relative, names), pick, after, threads), backend
    )
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

    `gold` is [B, 2] seconds, or per row a list of (begin, end); a span that is reversed or NaN overlaps nothing, and
    neither does an answer that is reversed ("wrong_order"). The rest is as in `match_number`.
    """
    if _in_graph(texts, tokens):
        from . import library

        own, counts = gold, []
        if not isinstance(gold, torch.Tensor):
            rows_spans = [_spans(row) for row in gold]
            own, counts = torch.tensor([x for row in rows_spans for x in row]), list(map(len, rows_spans))
        options = (float(iou), tokens.handle, pick, after, backend)  # type: ignore[union-attr]
        table, score, values = library.interval(texts, _sizes(lengths), own, counts, *options)
        return ValueMatch(table, score, backend, values)
    if not 0 <= iou <= 1:
        raise DataError(f"iou is {iou}; give the least overlap that counts, 0 to 1")
    rows = rows_of(texts, tokens, lengths)
    spans = [_spans(row) for row in (gold.tolist() if isinstance(gold, torch.Tensor) else gold)]
    if len(spans) != rows.size:
        raise DataError(f"gold has spans for {len(spans)} rows, but there are {rows.size} rows")
    found, name = _run("match_interval", Call(INTERVAL, rows, (spans, float(iou)), pick, after, threads), backend)
    return ValueMatch(found.table, found.score, name, found.more)


def match_sequence(
    texts: Texts | Ids,
    labels: LabelSet,
    gold: Sequence[Sequence[int | str]],
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
        gold: own sequences of the B rows, as label ids or names.
        after: read only behind the last occurrence of this literal; rows without it are "no_slot".

    The rest is as in `match_number`. A status is "ok", "no_slot", "no_value" (no label is named), "wrong_length",
    "wrong_order" (the right labels) or "wrong_value"; `negated` tells that an item is denied.
    """
    if _in_graph(texts, tokens):
        from . import library

        items = [[labels.id(item) if isinstance(item, str) else item for item in row] for row in gold]
        options = (labels.handle, tokens.handle, after, backend)  # type: ignore[union-attr]
        flat, counts = list(chain.from_iterable(items)), list(map(len, items))
        table, score, found_items = library.sequence(texts, _sizes(lengths), flat, counts, *options)
        return SequenceMatch(table, score, backend, found_items)
    rows = rows_of(texts, tokens, lengths)
    sequences = [[labels.id(item) if isinstance(item, str) else item for item in row] for row in gold]
    _check_labels(sequences, len(labels))
    if len(sequences) != rows.size:
        raise DataError(f"gold has sequences for {len(sequences)} rows, but there are {rows.size} rows")
    found, name = _run("match_sequence", Call(SEQUENCE, rows, (sequences, labels), "first", after, threads), backend)
    return SequenceMatch(found.table, found.score, name, found.more)


def _in_graph(texts: Texts | Ids, tokens: TokenBytes | None) -> bool:
    """Whether torch.compile traces a call that its operators take: on ids [B, T]."""
    return torch.compiler.is_compiling() and tokens is not None and isinstance(texts, torch.Tensor)


def _sizes(lengths: torch.Tensor | Sequence[int] | None) -> torch.Tensor | None:
    return torch.tensor(lengths) if lengths is not None and not isinstance(lengths, torch.Tensor) else lengths


def _check_labels(sequences: list[list[int]], count: int) -> None:
    items = set(chain.from_iterable(sequences))
    bad = [x for x in items if not isinstance(x, int) or not 0 <= x < count]
    if bad:
        raise DataError(f"gold has label id {bad[0]!r}; ids are integers from 0 to {count - 1}")


def _doubles(given: float | Sequence[float] | torch.Tensor, rows: int, what: str) -> torch.Tensor:
    try:
        held = torch.as_tensor(given, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{what} must be numbers, not {given!r:.80}; NaN is a row that nothing fits") from None
    held = held.expand(rows) if held.dim() == 0 else held
    if held.shape != (rows,):
        raise DataError(f"{what} must be one number, or [{rows}], not {tuple(held.shape)}")
    return held.contiguous()


def _tolerances(given: float | Sequence[float] | torch.Tensor, rows: int, what: str) -> torch.Tensor:
    held = _doubles(given, rows, what)
    bad = held[~(held >= 0)]
    if len(bad):
        raise DataError(f"{what} is {float(bad[0])}; give 0 or more, how far off a number may be")
    return held


def _spans(row: Any) -> list[tuple[float, float]]:
    items = list(row)
    items = [items] if len(items) == 2 and not hasattr(items[0], "__len__") else items
    if any(not hasattr(item, "__len__") or len(item) != 2 for item in items):
        raise DataError(f"an own interval is (begin, end) in seconds, not {row!r}")
    return [(float(begin), float(end)) for begin, end in items]


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
