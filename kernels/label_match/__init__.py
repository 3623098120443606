"""`label_match`: does a row's own label occur in its text, where, and which other labels do.

A label occurs where the characters of its name (or of an alias) stand with no letter, mark or digit on either
side. Upper and lower case are equal (Unicode simple case folding), and so are spaces, `_`, `-` and other
dashes; a run of them equals one. Their absence is not equal: "backflip" is not "back flip" unless an alias
says so. Composed and decomposed accents are equal. Scripts written without spaces have no word boundaries, so
there a label is found only where punctuation or spaces set it apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vstar_fast import backends
from vstar_fast.errors import BackendError, DataError

from .labels import LabelSet, fold_literal
from .result import ROW_INTS, LabelMatch, bad_token, char_span, encode
from .rows import Ids, Rows, TextList, Texts, TokenRows, rows_of, sizes_beside, upload
from .token_bytes import TokenBytes

__all__ = ["LabelMatch", "LabelSet", "TokenBytes", "char_span", "encode", "label_match"]


def label_match(
    texts: Texts | Ids,
    labels: LabelSet,
    own: Sequence[int | str] | torch.Tensor,
    *,
    tokens: TokenBytes | None = None,
    lengths: torch.Tensor | Sequence[int] | None = None,
    after: str | None = None,
    which: bool = False,
    negation: bool = False,
    device: torch.device | str | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> LabelMatch:
    """Look for each row's own label in its text, or in the text that its token ids stand for.

    Args:
        texts: B strings (or UTF-8 bytes), or (bytes [total] uint8, offsets [B + 1] int64) on one device. With
            `tokens`: ids [B, T] int32 or int64, B lists of ids, or (ids [total], offsets [B + 1] int64).
        labels: the names to know; compiled once and reusable.
        own: per row the label id or name, or -1 for a row that has none. [B] or B items.
        tokens: the bytes of each id. The text of a row is those of its ids, joined; nothing is decoded.
        lengths: [B] ids that count in each row of ids [B, T]; default all T. Specials count nothing anyway.
        after: search only behind the last occurrence of this literal (such as "Answer:"), compared like labels
            but without word boundaries. Rows without it match nothing and have `searched_from` -1.
        which: also tell which of all N labels occur.
        negation: also tell where the own label is denied ("not a kick").
        device: where the results are made when `texts` are lists; default CPU.
        backend: "auto", "cpp", "cuda" or "reference"; all give the same integers.
        threads: CPU threads at most; default torch's number.

    Raises DataError for arguments of the wrong shape, type or range, and for ids outside the vocabulary (on a GPU:
    from `LabelMatch.check()`).
    """
    if torch.compiler.is_compiling() and tokens is not None and isinstance(texts, torch.Tensor):
        from .library import in_graph

        sizes = sizes_beside(lengths, texts)
        return in_graph(texts, labels, _as_ids(own, labels), tokens, sizes, after, which, negation, backend)
    return find(texts, labels, own, tokens, lengths, after, which, negation, device, backend, threads)


def find(
    texts: Texts | Ids,
    labels: LabelSet,
    own: Sequence[int | str] | torch.Tensor,
    tokens: TokenBytes | None,
    lengths: torch.Tensor | Sequence[int] | None,
    after: str | None,
    which: bool,
    negation: bool,
    device: torch.device | str | None,
    backend: str,
    threads: int | None,
) -> LabelMatch:
    """`label_match` outside of compiled graphs."""
    rows = rows_of(texts, tokens, lengths)
    where = rows.device if device is None or isinstance(texts, (torch.Tensor, tuple)) else torch.device(device)
    choice = backends.choose("label_match", where, backend)
    if where != rows.device or (isinstance(rows, TextList) and choice.name == "cuda"):
        rows = rows.to(where)
    ids = upload(_own_ids(own, labels, rows.size), where)
    points = () if after is None else fold_literal(after)
    out = torch.empty((rows.size, ROW_INTS), dtype=torch.int32, device=where)
    words = (len(labels) + 31) // 32
    bits = torch.zeros((rows.size, words), dtype=torch.int32, device=where) if which else None
    _BACKENDS[choice.name](_Call(rows, ids, labels, points, negation, out, bits, threads))
    backends.ran("label_match", choice.name)
    return LabelMatch(out, bits, labels, choice.name)


def _as_ids(own: Sequence[int | str] | torch.Tensor, labels: LabelSet) -> torch.Tensor:
    if not isinstance(labels, LabelSet):
        raise DataError(f"labels must be a LabelSet, not a {type(labels).__name__}")
    if isinstance(own, torch.Tensor):
        return own
    if isinstance(own, str) or not hasattr(own, "__len__"):
        raise DataError(f"own is {own!r}; give a list with a label id or name a text, and -1 for a row that has none")
    ids = [labels.id(item) if isinstance(item, str) else item for item in own]
    try:
        return torch.tensor(ids, device="cpu") if ids else torch.empty(0, dtype=torch.int32, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"own has {_odd_one(ids)!r}; give label ids or names, and -1 for a row that has none") from None


def _odd_one(ids: Sequence[object]) -> object:
    return next((item for item in ids if not isinstance(item, int)), ids[0])


def _own_ids(own: Sequence[int | str] | torch.Tensor, labels: LabelSet, rows: int) -> torch.Tensor:
    """[B] int32 label ids on the device of `own`; ids and names are checked where that needs no GPU sync."""
    own = _as_ids(own, labels)
    if own.dim() != 1 or own.numel() != rows:
        raise DataError(f"own names {tuple(own.shape)} labels for {rows} texts; give one label a text")
    if own.dtype not in (torch.int32, torch.int64):
        raise DataError(f"own must hold label ids (int32 or int64) or names, not {own.dtype}")
    if own.device.type == "cpu" and rows:
        low, high = (int(x) for x in torch.aminmax(own))
        if low < -1 or high >= len(labels):
            raise DataError(f"own has label id {high} or {low}; ids are -1 to {len(labels) - 1}")
    return own.to(torch.int32).contiguous()


class _Call(NamedTuple):
    """Checked arguments of one call, on one device; `out` and `bits` are to be filled."""

    rows: Rows
    own: torch.Tensor
    labels: LabelSet
    after: tuple[int, ...]
    negation: bool
    out: torch.Tensor
    bits: torch.Tensor | None
    threads: int | None

    def results(self) -> tuple[int, int, int, int, int, bool]:
        """What the compiled functions take for the results and the own labels."""
        words = 0 if self.bits is None else self.bits.shape[1]
        bits = 0 if self.bits is None else self.bits.data_ptr()
        return self.own.data_ptr(), self.out.data_ptr(), bits, self.rows.size, words, self.negation

    def on_cpu(self) -> _Call:
        """The same call with every tensor in host memory."""
        if self.out.device.type == "cpu":
            return self
        bits = None if self.bits is None else self.bits.cpu()
        return self._replace(rows=self.rows.to("cpu"), own=self.own.cpu(), out=self.out.cpu(), bits=bits)

    def copy_from(self, other: _Call) -> None:
        """Take over the results of a call on another device."""
        if other is self:
            return
        self.out.copy_(other.out)
        if self.bits is not None and other.bits is not None:
            self.bits.copy_(other.bits)


def _cpp(call: _Call) -> None:
    from vstar_fast import _C

    here = call.on_cpu()
    rows, results = here.rows, here.results()
    tables, threads = call.labels.tables(call.after).data_ptr(), call.threads or torch.get_num_threads()
    if isinstance(rows, TokenRows):
        hints = call.labels.hints_for(rows.size, rows.tokens, call.after)
        places = (rows.tokens.table().data_ptr(), 0 if hints is None else hints.data_ptr())
        bad = _C.label_match_ids_cpu(tables, *places, rows.arguments(), results, threads)
        if bad >= 0:
            bad_token(bad, int(here.out[bad, 14]))
    elif isinstance(rows, TextList):
        _texts(_C, tables, rows, results, threads)
    else:
        _C.label_match_cpu(tables, rows.text.data_ptr(), rows.offsets.data_ptr(), results, threads)
    call.copy_from(here)


def _texts(compiled, tables: int, rows: TextList, results: tuple, threads: int) -> None:  # type: ignore[no-untyped-def]
    try:
        compiled.label_match_texts_cpu(tables, rows.texts, results, threads)
    except ValueError as error:
        raise DataError(str(error)) from None


def _cuda(call: _Call) -> None:
    from vstar_fast import _C

    rows, where = call.rows, call.out.device
    host, there = call.labels.tables(call.after), call.labels.tables(call.after, where)
    tables = (host.data_ptr(), there.data_ptr())
    with torch.cuda.device(where):
        stream = torch.cuda.current_stream().cuda_stream
        try:
            if isinstance(rows, TokenRows):
                tokens = (rows.tokens.table().data_ptr(), rows.tokens.table(where).data_ptr())
                hints = call.labels.hints(rows.tokens, call.after, where).data_ptr()
                _C.label_match_ids_cuda(*tables, *tokens, hints, rows.arguments(), call.results(), stream)
            else:
                assert not isinstance(rows, TextList)
                _C.label_match_cuda(*tables, rows.text.data_ptr(), rows.offsets.data_ptr(), call.results(), stream)
        except RuntimeError as error:
            raise BackendError(f"{error}; rebuild for this GPU with VSTAR_CUDA_ARCH, or use backend='cpp'") from None


def _reference(call: _Call) -> None:
    from .reference import run

    run(call.rows, call.own, call.labels.forms, call.labels.owners, call.after, call.negation, call.out, call.bits)


_BACKENDS = {"cpp": _cpp, "cuda": _cuda, "reference": _reference}
