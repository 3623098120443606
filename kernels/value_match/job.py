"""The compiled backends: tensors of one call, and the call."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from vstar_fast.kernels.label_match.labels import fold_literal
from vstar_fast.kernels.label_match.result import bad_token
from vstar_fast.kernels.label_match.rows import Rows, TextList, TokenRows

from vstar_fast.errors import BackendError, DataError

from .own import SEQUENCE, Own
from .result import ITEM_INTS, ROW_INTS

PICKS = ("first", "last", "slot")


class Found(NamedTuple):
    """What a backend gives: table [B, ROW_INTS] int32, score [B] float64, and values or items."""

    table: torch.Tensor
    score: torch.Tensor
    more: torch.Tensor
    """Values [B, 2] float64, or items [B, M, ITEM_INTS] int32."""


class Call(NamedTuple):
    """Checked arguments."""

    rows: Rows
    own: Own
    pick: str
    after: str | None
    threads: int | None = None

    def tables(self, device: torch.device) -> torch.Tensor:
        """Character classes, the literal, and for sequences the labels, as compiled."""
        if self.own.labels is None:
            return _tables(self.after, device)
        return self.own.labels.tables(() if self.after is None else fold_literal(self.after), device)


class _Job:
    """Tensors of one call of the compiled functions, on the device of `own`."""

    def __init__(self, own: Own, rows: int, pick: str) -> None:
        self.own, device = own, own.offsets.device
        pairs = 0 if own.kind == SEQUENCE else rows
        self.out = torch.empty((rows, ROW_INTS), dtype=torch.int32, device=device)
        self.score = torch.empty(rows, dtype=torch.float64, device=device)
        self.values = torch.empty((pairs, 2), dtype=torch.float64, device=device)
        self.items = torch.empty((rows, own.most, ITEM_INTS), dtype=torch.int32, device=device)
        self.common = torch.empty(own.items.numel() + rows, dtype=torch.int32, device=device)
        inputs = (own.gold, own.absolute, own.relative, own.units, own.offsets)
        outputs = (self.out, self.values, self.score, own.items, self.items, self.common)
        pointers = [x.data_ptr() for x in (*inputs, *outputs)]
        self.arguments = (pointers, rows, PICKS.index(pick), own.kind, own.most)

    @property
    def found(self) -> Found:
        return Found(self.out, self.score, self.items if self.own.kind == SEQUENCE else self.values)


@functools.cache
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
    job, tables = _Job(call.own.to(cpu), call.rows.size, call.pick), call.tables(cpu).data_ptr()
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
    job, host = _Job(call.own, rows.size, call.pick), call.tables(torch.device("cpu"))
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
