"""The compiled backends: tensors of one call, and the call."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from vstar_fast.kernels.label_match.labels import LabelSet, fold_literal
from vstar_fast.kernels.label_match.result import bad_token
from vstar_fast.kernels.label_match.rows import Rows, TextList, TokenRows, offsets_of
from vstar_fast.kernels.number_words import UNITS

from vstar_fast.errors import BackendError, DataError

from .result import ITEM_INTS, ROW_INTS

PICKS = ("first", "last", "slot")
NUMBER, INTERVAL, SEQUENCE = 0, 1, 2


class Found(NamedTuple):
    """What a backend gives: table [B, ROW_INTS] int32, score [B] float64, and values or items."""

    table: torch.Tensor
    score: torch.Tensor
    more: torch.Tensor
    """Values [B, 2] float64, or items [B, M, ITEM_INTS] int32."""


class Call(NamedTuple):
    """Checked arguments.

    `own` by kind: (gold, absolute, relative, units); (spans, least IoU); (sequences of label ids, LabelSet).
    """

    kind: int
    rows: Rows
    own: tuple[Any, ...]
    pick: str
    after: str | None
    threads: int | None = None

    @property
    def most(self) -> int:
        """Items of a row that are told, M."""
        return max(map(len, self.own[0]), default=0) if self.kind == SEQUENCE else 0

    def tables(self, device: torch.device) -> torch.Tensor:
        """Character classes, the literal, and for sequences the labels, as compiled."""
        if self.kind != SEQUENCE:
            return _tables(self.after, device)
        labels: LabelSet = self.own[1]
        return labels.tables(() if self.after is None else fold_literal(self.after), device)


class _Job:
    """Tensors of one call of the compiled functions, on one device."""

    def __init__(self, call: Call, device: torch.device) -> None:
        inputs, labels = (_number, _interval, _sequence)[call.kind](*call.own)
        self.inputs, self.labels = [x.to(device) for x in inputs], labels.to(device)
        self.kind, rows = call.kind, call.rows.size
        pairs = 0 if call.kind == SEQUENCE else rows
        self.out = torch.empty((rows, ROW_INTS), dtype=torch.int32, device=device)
        self.score = torch.empty(rows, dtype=torch.float64, device=device)
        self.values = torch.empty((pairs, 2), dtype=torch.float64, device=device)
        self.items = torch.empty((rows, call.most, ITEM_INTS), dtype=torch.int32, device=device)
        self.common = torch.empty(labels.numel() + rows, dtype=torch.int32, device=device)
        outputs = (self.out, self.values, self.score, self.labels, self.items, self.common)
        pointers = [x.data_ptr() for x in (*self.inputs, *outputs)]
        self.arguments = (pointers, rows, PICKS.index(call.pick), call.kind, call.most)

    @property
    def found(self) -> Found:
        return Found(self.out, self.score, self.items if self.kind == SEQUENCE else self.values)


Inputs = tuple[list[torch.Tensor], torch.Tensor]
"""Gold, absolute and relative tolerances, units and offsets; own labels."""

_NO_FLOATS, _NO_INTS = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int32)


def _number(gold: torch.Tensor, absolute: torch.Tensor, relative: torch.Tensor, names: list[str]) -> Inputs:
    from vstar_fast import _C

    found = {name: _C.find_unit(name) if name in UNITS else -2 if name else -1 for name in set(names)}
    units = [found[name] for name in names]
    return [gold, absolute, relative, torch.tensor(units, dtype=torch.int32), offsets_of([])], _NO_INTS


def _interval(spans: list[list[tuple[float, float]]], least: float) -> Inputs:
    flat = torch.tensor([x for row in spans for span in row for x in span], dtype=torch.float64)
    bound = torch.tensor([least], dtype=torch.float64)
    return [flat, bound, bound, _NO_INTS, offsets_of(list(map(len, spans)))], _NO_INTS


def _sequence(sequences: list[list[int]], _labels: LabelSet) -> Inputs:
    flat = torch.tensor([x for row in sequences for x in row], dtype=torch.int32)
    return [_NO_FLOATS, _NO_FLOATS, _NO_FLOATS, _NO_INTS, offsets_of(list(map(len, sequences)))], flat


@functools.lru_cache(maxsize=64)
def _tables(after: str | None, device: torch.device) -> torch.Tensor:
    """Character classes and the literal, without labels."""
    from vstar_fast import _C

    if device.type != "cpu":
        return _tables(after, torch.device("cpu")).to(device)
    literal = "" if after is None else "".join(map(chr, fold_literal(after)))
    return torch.frombuffer(bytearray(_C.compile_labels([], [], literal)), dtype=torch.uint8)


def cpp(call: Call) -> Found:
    """On the CPU."""
    from vstar_fast import _C

    cpu = torch.device("cpu")
    here = call.rows if call.rows.device.type == "cpu" else call.rows.to(cpu)
    job, tables = _Job(call, cpu), call.tables(cpu).data_ptr()
    threads = call.threads or torch.get_num_threads()
    if isinstance(here, TokenRows):
        _C.match_values_ids_cpu(tables, here.tokens.table().data_ptr(), here.arguments(), job.arguments, threads)
        bad = (job.out[:, 10] >= 0).nonzero()
        if bad.numel():
            bad_token(int(bad[0]), int(job.out[bad[0], 10]))
    elif isinstance(here, TextList):
        try:
            _C.match_values_texts_cpu(tables, here.texts, job.arguments, threads)
        except ValueError as error:
            raise DataError(str(error)) from None
    else:
        _C.match_values_cpu(tables, here.text.data_ptr(), here.offsets.data_ptr(), job.arguments, threads)
    return Found(*(x.to(call.rows.device) for x in job.found))


_SCRATCH_BYTES = 1 << 28
_MOST_WORKERS = 1 << 16


def cuda(call: Call) -> Found:
    """On the GPU where the rows are; lists of texts are on the host, and never come here."""
    from vstar_fast import _C

    rows, device = call.rows, call.rows.device
    job, host = _Job(call, device), call.tables(torch.device("cpu"))
    with torch.cuda.device(device):
        tables = (host.data_ptr(), call.tables(device).data_ptr())
        stream = torch.cuda.current_stream().cuda_stream
        try:
            if isinstance(rows, TokenRows):
                tokens = (rows.tokens.table().data_ptr(), rows.tokens.table(device).data_ptr())
                each = max(1, rows.columns * rows.tokens.longest)
                workers = max(1, min(rows.size, _MOST_WORKERS, _SCRATCH_BYTES // each))
                scratch = torch.empty(workers * each, dtype=torch.uint8, device=device)
                room = (scratch.data_ptr(), each, workers)
                _C.match_values_ids_cuda(*tables, *tokens, rows.arguments(), job.arguments, *room, stream)
            else:
                assert not isinstance(rows, TextList)
                _C.match_values_cuda(*tables, rows.text.data_ptr(), rows.offsets.data_ptr(), job.arguments, stream)
        except RuntimeError as error:
            raise BackendError(f"{error}; rebuild for this GPU with VSTAR_CUDA_ARCH, or use backend='cpp'") from None
    return job.found
