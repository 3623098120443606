"""`match_number` and `match_interval`: the value each row states, against its own, from text or token ids.

Numbers may have a sign, decimals, thousands, a unit or percent, be clock times (mm:ss, hh:mm:ss) or be written in
words ("twenty-five", "two and a half"). Ordinals and names (3rd, 3D, v2, 1.2.3) are none. `pick` says which one counts:

    "slot"     the first behind the last `after` literal, or the last of the text where that literal is absent
    "first"    the first behind the literal; rows without it have no value. The first of the text when after=None
    "last"     the last, likewise
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from vstar_fast.kernels.label_match.labels import fold_literal
from vstar_fast.kernels.label_match.result import bad_token
from vstar_fast.kernels.label_match.rows import Ids, Rows, TextList, Texts, TokenRows, rows_of
from vstar_fast.kernels.label_match.token_bytes import TokenBytes
from vstar_fast.kernels.number_words import UNITS

from vstar_fast import backends
from vstar_fast.errors import BackendError, DataError

from .reference import Read

__all__ = ["STATUSES", "UNITS", "ValueMatch", "match_interval", "match_number"]

STATUSES = (
    "ok",
    "no_slot",
    "no_value",
    "wrong_unit",
    "ambiguous",
    "off_tolerance",
    "wrong_order",
    "low_iou",
)
"""What `ValueMatch.status` counts: fits, the literal is absent, nothing to read, another dimension, "3 or 4", too far
off, an interval that ends before it starts, too little overlap."""

PICKS = ("first", "last", "slot")


@dataclasses.dataclass(frozen=True, slots=True)
class ValueMatch:
    """What B rows state."""

    table: torch.Tensor
    """[B, 6] int32: status, byte span (2), denied, byte where reading began, best own interval."""
    values: torch.Tensor
    """[B, 2] float64: the number in the row's unit and its error, or begin and end in seconds; NaN where none."""
    score: torch.Tensor
    """[B] float64: IoU with the best own interval; 0 for numbers."""
    backend: str

    @property
    def matched(self) -> torch.Tensor:
        """[B] bool: the value fits the row's own."""
        return self.table[:, 0] == 0

    @property
    def status(self) -> torch.Tensor:
        """[B] int32: index of STATUSES."""
        return self.table[:, 0]

    @property
    def span(self) -> torch.Tensor:
        """[B, 2] int32: bytes of the value (of both times) in the row, (-1, -1) for none."""
        return self.table[:, 1:3]

    @property
    def negated(self) -> torch.Tensor:
        """[B] bool: the value is denied ("not 3")."""
        return self.table[:, 3] != 0

    @property
    def searched_from(self) -> torch.Tensor:
        """[B] int32: byte where reading began, -1 without a slot."""
        return self.table[:, 4]

    @property
    def best(self) -> torch.Tensor:
        """[B] int32: which of the row's own intervals overlaps most, -1 when none does."""
        return self.table[:, 5]

    def reasons(self) -> list[str]:
        """The status of each row as a word."""
        return [STATUSES[x] for x in self.status.tolist()]


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
) -> ValueMatch:
    """Whether the number of each row x fits: |x - gold| <= abs_tolerance + rel_tolerance |gold|, up to rounding.

    Args:
        texts: as `label_match` takes them, or ids with `tokens` (and `lengths`).
        gold: [B] own numbers; NaN fits nothing.
        unit: in which gold is given, for all rows or each; a number with a unit of another dimension is a
            "wrong_unit", "" takes numbers as they are, percent as shares.
        abs_tolerance, rel_tolerance: for all rows or each.
        pick, after: which number counts; see above.
        backend: "auto", "cpp", "cuda" (texts as bytes on a GPU) or "reference".

    Raises DataError for wrong shapes, ids outside the vocabulary or an unknown pick.
    """
    rows = rows_of(texts, tokens, lengths)
    own = _doubles(gold, rows.size, "gold")
    absolute, relative = _doubles(abs_tolerance, rows.size, "abs_tolerance"), _doubles(rel_tolerance, rows.size, "rel")
    names = [unit] * rows.size if isinstance(unit, str) else list(unit)
    if len(names) != rows.size:
        raise DataError(f"unit names {len(names)} units for {rows.size} rows; give one, or one a row")
    names = [name.strip().lower() for name in names]
    return _run("match_number", rows, (own, absolute, relative, names), pick, after, backend)


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
) -> ValueMatch:
    """Whether the two times that each row states overlap one of its own spans by at least `iou`.

    `gold` is [B, 2] seconds, or per row a list of (begin, end); a span that is reversed or NaN overlaps nothing, and
    neither does an answer that is reversed ("wrong_order"). The rest is as in `match_number`.
    """
    rows = rows_of(texts, tokens, lengths)
    spans = [_spans(row) for row in (gold.tolist() if isinstance(gold, torch.Tensor) else gold)]
    if len(spans) != rows.size:
        raise DataError(f"gold has spans for {len(spans)} rows, but there are {rows.size} rows")
    return _run("match_interval", rows, (spans, float(iou)), pick, after, backend)


def _doubles(given: float | Sequence[float] | torch.Tensor, rows: int, what: str) -> torch.Tensor:
    held = torch.as_tensor(given, dtype=torch.float64).cpu()
    held = held.expand(rows) if held.dim() == 0 else held
    if held.shape != (rows,):
        raise DataError(f"{what} must be one number, or [{rows}], not {tuple(held.shape)}")
    return held.contiguous()


def _spans(row: Any) -> list[tuple[float, float]]:
    items = list(row)
    items = [items] if len(items) == 2 and not hasattr(items[0], "__len__") else items
    if any(len(item) != 2 for item in items):
        raise DataError(f"an own interval is (begin, end) in seconds, not {row!r}")
    return [(float(begin), float(end)) for begin, end in items]


@functools.lru_cache(maxsize=64)
def _tables(after: str | None) -> torch.Tensor:
    """Character classes and the literal, without labels."""
    from vstar_fast import _C

    literal = "" if after is None else "".join(map(chr, fold_literal(after)))
    return torch.frombuffer(bytearray(_C.compile_labels([], [], literal)), dtype=torch.uint8)


def _run(op: str, rows: Rows, own: tuple[Any, ...], pick: str, after: str | None, backend: str) -> ValueMatch:
    if pick not in PICKS:
        raise DataError(f"unknown pick {pick!r}; known: {', '.join(PICKS)}")
    if pick == "slot" and after is None:
        raise DataError("pick='slot' needs the literal of the slot in `after`")
    choice = backends.choose(op, rows.device, backend)
    run = {"cpp": _cpp, "cuda": _cuda, "reference": _reference}[choice.name]
    found = run(rows, own, pick, after)
    backends.ran(op, choice.name)
    return ValueMatch(*found, choice.name)


Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _Job:
    """Tensors of one call of the compiled functions, on one device."""

    def __init__(self, own: tuple[Any, ...], rows: int, pick: str, device: torch.device) -> None:
        self.interval = len(own) == 2
        golds, absolute, relative, units, offsets = _interval(*own) if self.interval else _number(*own)
        self.inputs = [x.to(device) for x in (golds, absolute, relative, units, offsets)]
        self.out = torch.empty((rows, 6), dtype=torch.int32, device=device)
        self.values = torch.empty((rows, 2), dtype=torch.float64, device=device)
        self.score = torch.zeros(rows, dtype=torch.float64, device=device)
        pointers = [x.data_ptr() for x in (*self.inputs, self.out, self.values, self.score)]
        self.arguments = (pointers, rows, PICKS.index(pick), self.interval)

    @property
    def found(self) -> Found:
        return self.out, self.values, self.score


def _number(gold: torch.Tensor, absolute: torch.Tensor, relative: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
    from vstar_fast import _C

    units = [_C.find_unit(name) if name in UNITS else -2 if name else -1 for name in names]
    return [gold, absolute, relative, torch.tensor(units, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)]


def _interval(spans: list[list[tuple[float, float]]], least: float) -> list[torch.Tensor]:
    flat = torch.tensor([x for row in spans for span in row for x in span], dtype=torch.float64)
    offsets = torch.tensor([0, *map(len, spans)], dtype=torch.int64).cumsum(0)
    bound = torch.tensor([least], dtype=torch.float64)
    return [flat, bound, bound, torch.zeros(1, dtype=torch.int32), offsets]


def _cpp(rows: Rows, own: tuple[Any, ...], pick: str, after: str | None) -> Found:
    from vstar_fast import _C

    here = rows if rows.device.type == "cpu" else rows.to("cpu")
    job, tables = _Job(own, rows.size, pick, torch.device("cpu")), _tables(after).data_ptr()
    if isinstance(here, TokenRows):
        table = here.tokens.table().data_ptr()
        row, position = _C.match_values_ids_cpu(tables, table, here.arguments(), job.arguments)
        if row >= 0:
            bad_token(row, position)
    else:
        _C.match_values_cpu(tables, here.bytes(), job.arguments)
    out, values, score = (x.to(rows.device) for x in job.found)
    return out, values, score


def _cuda(rows: Rows, own: tuple[Any, ...], pick: str, after: str | None) -> Found:
    from vstar_fast import _C

    if isinstance(rows, (TokenRows, TextList)):
        raise BackendError("backend 'cuda' reads numbers from text bytes on the GPU; for token ids use backend='cpp'")
    job, host = _Job(own, rows.size, pick, rows.device), _tables(after)
    with torch.cuda.device(rows.device):
        there, stream = host.to(rows.device), torch.cuda.current_stream().cuda_stream
        text = (rows.text.data_ptr(), rows.offsets.data_ptr())
        try:
            _C.match_values_cuda(host.data_ptr(), there.data_ptr(), *text, job.arguments, stream)
        except RuntimeError as error:
            raise BackendError(f"{error}; rebuild for this GPU with VSTAR_CUDA_ARCH, or use backend='cpp'") from None
    return job.found


def _reference(rows: Rows, own: tuple[Any, ...], pick: str, after: str | None) -> Found:
    from .reference import interval_row, number_row

    literal = () if after is None else fold_literal(after)
    found: list[Read] = []
    for r, data in enumerate(rows.bytes()):
        if len(own) == 2:
            found.append(interval_row(data, literal, pick, own[0][r], own[1]))
        else:
            gold, absolute, relative = (float(x[r]) for x in own[:3])
            found.append(number_row(data, literal, pick, gold, own[3][r], absolute, relative))
    table = torch.tensor([[x.status, *x.span, x.denied, x.start, x.best] for x in found], dtype=torch.int32)
    values = torch.tensor([x.values for x in found], dtype=torch.float64).reshape(-1, 2)
    score = torch.tensor([0.0 if math.isnan(x.score) else x.score for x in found], dtype=torch.float64)
    device = rows.device
    return table.reshape(-1, 6).to(device), values.to(device), score.to(device)
