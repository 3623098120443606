"""The compiled backends: tensors of one call, and the call."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from vstar_fast.kernels.label_match.labels import fold_literal
from vstar_fast.kernels.label_match.result import bad_token
from vstar_fast.kernels.label_match.rows import Rows, TextList, TokenRows
from vstar_fast.kernels.number_words import UNITS

from vstar_fast.errors import BackendError, DataError

from .result import ROW_INTS

PICKS = ("first", "last", "slot")
NUMBER, INTERVAL = 0, 1

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Call(NamedTuple):
    """Checked arguments: for numbers own = (gold, absolute, relative, units), for intervals (spans, least IoU)."""

    rows: Rows
    own: tuple[Any, ...]
    pick: str
    after: str | None
    threads: int | None = None

    @property
    def interval(self) -> bool:
        return len(self.own) == 2


class _Job:
    """Tensors of one call of the compiled functions, on one device."""

    def __init__(self, call: Call, device: torch.device) -> None:
        inputs = _interval(*call.own) if call.interval else _number(*call.own)
        self.inputs, rows = [x.to(device) for x in inputs], call.rows.size
        self.out = torch.empty((rows, ROW_INTS), dtype=torch.int32, device=device)
        self.values = torch.empty((rows, 2), dtype=torch.float64, device=device)
        self.score = torch.zeros(rows, dtype=torch.float64, device=device)
        pointers = [x.data_ptr() for x in (*self.inputs, self.out, self.values, self.score)]
        self.arguments = (pointers, rows, PICKS.index(call.pick), INTERVAL if call.interval else NUMBER)

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
    job, tables = _Job(call, cpu), _tables(call.after, cpu).data_ptr()
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
    out, values, score = (x.to(call.rows.device) for x in job.found)
    return out, values, score


_SCRATCH_BYTES = 1 << 28
_MOST_WORKERS = 1 << 16


def cuda(call: Call) -> Found:
    """On the GPU where the rows are; lists of texts are on the host, and never come here."""
    from vstar_fast import _C

    rows, device = call.rows, call.rows.device
    job, host = _Job(call, device), _tables(call.after, torch.device("cpu"))
    with torch.cuda.device(device):
        tables = (host.data_ptr(), _tables(call.after, device).data_ptr())
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
