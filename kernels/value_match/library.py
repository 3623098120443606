"""Matches of values in ids [B, T] as operators `vstar_fast::match_*`: torch.compile keeps them in its graphs.

Strings and whole label lists pass as constants; `tokens` and `labels` are handles (see label_match).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vstar_fast.kernels.label_match.handles import held
from vstar_fast.kernels.label_match.labels import LabelSet
from vstar_fast.kernels.label_match.token_bytes import TokenBytes

from .result import ITEM_INTS, ROW_INTS

Tensor = torch.Tensor
Three = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("vstar_fast::match_number", mutates_args=())
def number(
    ids: Tensor, lengths: Tensor | None, gold: Tensor, absolute: Tensor, relative: Tensor, units: str, tokens: int,
    pick: str, after: str | None, backend: str,
) -> Three:  # fmt: skip
    """(table [B, ROW_INTS] int32, score [B] float64, values [B, 2] float64); `units`: one, or B in as many lines."""
    from . import match_number

    names = units.split("\n") if "\n" in units else units
    match = match_number(
        ids, gold, unit=names, abs_tolerance=absolute, rel_tolerance=relative, pick=pick, after=after,
        tokens=held(tokens, TokenBytes), lengths=lengths, backend=backend,
    )  # fmt: skip
    return match.table, match.score, match.values


@number.register_fake
def _(ids, lengths, gold, absolute, relative, units, tokens, pick, after, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return *_rows(ids), ids.new_empty((ids.shape[0], 2), dtype=torch.float64)


@torch.library.custom_op("vstar_fast::match_interval", mutates_args=())
def interval(
    ids: Tensor, lengths: Tensor | None, gold: Tensor, iou: float, tokens: int, pick: str, after: str | None,
    backend: str,
) -> Three:  # fmt: skip
    """As `number`; gold [B, 2] or [B, S, 2]."""
    from . import match_interval

    match = match_interval(
        ids, gold, iou=iou, pick=pick, after=after, tokens=held(tokens, TokenBytes), lengths=lengths, backend=backend
    )
    return match.table, match.score, match.values


@interval.register_fake
def _(ids, lengths, gold, iou, tokens, pick, after, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return *_rows(ids), ids.new_empty((ids.shape[0], 2), dtype=torch.float64)


@torch.library.custom_op("vstar_fast::match_sequence", mutates_args=())
def sequence(
    ids: Tensor, lengths: Tensor | None, gold: Tensor, labels: int, tokens: int, after: str | None, backend: str
) -> Three:
    """(table, score, items [B, M, ITEM_INTS] int32); gold [B, M]."""
    from . import match_sequence

    known, table = held(labels, LabelSet), held(tokens, TokenBytes)
    match = match_sequence(ids, known, gold, after=after, tokens=table, lengths=lengths, backend=backend)
    return match.table, match.score, match.items


@sequence.register_fake
def _(ids, lengths, gold, labels, tokens, after, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return *_rows(ids), ids.new_empty((ids.shape[0], gold.shape[1], ITEM_INTS), dtype=torch.int32)


def padded(rows: Sequence[Sequence[Any]], empty: Any, tail: Sequence[int] = ()) -> Tensor:
    """[B, longest, *tail]: rows of different lengths, `empty` behind their ends."""
    width = max([0, *map(len, rows)])
    return torch.tensor([[*row, *[empty] * (width - len(row))] for row in rows], device="cpu").reshape(
        len(rows), width, *tail
    )


def _rows(ids: Tensor) -> tuple[Tensor, Tensor]:
    rows = ids.shape[0]
    return ids.new_empty((rows, ROW_INTS), dtype=torch.int32), ids.new_empty(rows, dtype=torch.float64)
