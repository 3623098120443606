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
from .reference import ROW_INTS

__all__ = ["LabelMatch", "LabelSet", "char_span", "label_match"]

Texts = Sequence[str] | Sequence[bytes] | tuple[torch.Tensor, torch.Tensor]


class LabelMatch(NamedTuple):
    """What was found in B rows; spans are byte positions [begin, end) in the row's UTF-8 text, (-1, -1) for none."""

    matched: torch.Tensor
    """[B] bool: the row's own label occurs."""
    first: torch.Tensor
    """[B, 2] int32: its first occurrence."""
    last: torch.Tensor
    """[B, 2] int32: its last occurrence."""
    searched_from: torch.Tensor
    """[B] int32: byte where the search began: 0, or behind the `after` literal; -1 when that literal is absent."""
    inside_longer: torch.Tensor
    """[B] bool: the own label occurs only inside longer labels ("kick" where the text says "spin kick")."""
    which_bits: torch.Tensor | None
    """[B, ceil(N / 32)] int32: bit l % 32 of word l // 32 is set when label l occurs; None unless asked for."""
    labels: LabelSet
    backend: str

    @property
    def which(self) -> torch.Tensor:
        """[B, N] bool: label l occurs in row b."""
        bits = self._bits()
        shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
        spread = (bits[:, :, None] >> shifts) & 1
        return spread.flatten(1)[:, : len(self.labels)].bool()

    def labels_in(self, row: int) -> tuple[int, ...]:
        """Ids of the labels that occur in one row, ascending."""
        words = self._bits()[row].tolist()
        return tuple(32 * w + b for w, word in enumerate(words) for b in range(32) if word >> b & 1)

    def _bits(self) -> torch.Tensor:
        if self.which_bits is None:
            raise DataError("which labels occur was not asked for; call label_match(..., which=True)")
        return self.which_bits


def label_match(
    texts: Texts,
    labels: LabelSet,
    own: Sequence[int | str] | torch.Tensor,
    *,
    after: str | None = None,
    which: bool = False,
    device: torch.device | str | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> LabelMatch:
    """Look for each row's own label in its text.

    Args:
        texts: B strings (or UTF-8 bytes), or (bytes [total] uint8, offsets [B + 1] int64) on one device.
        labels: the names to know; compiled once and reusable.
        own: per row the label id or name, or -1 for a row that has none. [B] or B items.
        after: search only behind the last occurrence of this literal (such as "Answer:"), compared like labels
            but without word boundaries. Rows without it match nothing and have `searched_from` -1.
        which: also tell which of all N labels occur.
        device: where the results are made when `texts` are strings; default CPU.
        backend: "auto", "cpp", "cuda" or "reference"; all give the same integers.
        threads: CPU threads at most; default torch's number.
    """
    text, offsets = _rows(texts, device)
    ids = _own_ids(own, labels, offsets.numel() - 1).to(text.device)
    choice = backends.choose("label_match", text.device, backend)
    points = () if after is None else fold_literal(after)
    out = torch.empty((ids.numel(), ROW_INTS), dtype=torch.int32, device=text.device)
    words = (len(labels) + 31) // 32
    bits = torch.zeros((ids.numel(), words), dtype=torch.int32, device=text.device) if which else None
    _BACKENDS[choice.name](_Call(text, offsets, ids, labels, points, out, bits, threads))
    backends.ran("label_match", choice.name)
    return LabelMatch(out[:, 0] >= 0, out[:, 0:2], out[:, 2:4], out[:, 4], out[:, 5] > 0, bits, labels, choice.name)


def char_span(text: str, begin: int, end: int) -> tuple[int, int]:
    """Byte span [begin, end) of a text's UTF-8 form as a span of its characters."""
    data = encode(text)
    first = len(data[:begin].decode("utf-8", errors="surrogateescape"))
    return first, first + len(data[begin:end].decode("utf-8", errors="surrogateescape"))


def encode(text: str | bytes) -> bytes:
    """The UTF-8 bytes of a text; a lone surrogate becomes bytes that belong to no label."""
    return text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass")


def _rows(texts: Texts, device: torch.device | str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(bytes [total] uint8, offsets [B + 1] int64), contiguous and on one device."""
    if isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[0], torch.Tensor):
        return _checked_rows(*texts)
    if isinstance(texts, (str, bytes)):
        raise DataError("label_match takes a list of texts, one a row, not one text")
    rows = [encode(text) for text in texts]
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor([len(row) for row in rows], dtype=torch.int64), 0, out=offsets[1:])
    joined = bytearray(b"".join(rows))
    text = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0, dtype=torch.uint8)
    return text.to(device or "cpu"), offsets.to(device or "cpu")


def _checked_rows(text: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if text.dtype != torch.uint8 or text.dim() != 1:
        raise DataError(f"text bytes must be uint8 [total], not {text.dtype} {tuple(text.shape)}")
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or offsets.numel() == 0:
        raise DataError(f"offsets must be int64 [B + 1], not {offsets.dtype} {tuple(offsets.shape)}")
    if text.device != offsets.device:
        raise DataError(f"text is on {text.device} and offsets are on {offsets.device}; put both on one device")
    if text.device.type == "cpu":
        bounds = torch.cat([offsets.new_zeros(1), offsets, offsets.new_tensor([text.numel()])])
        if (bounds.diff() < 0).any():
            raise DataError(f"offsets must ascend from 0 to at most the {text.numel()} bytes of text")
        if text.numel() and (offsets.diff() >= 1 << 31).any():
            raise DataError("a row is longer than 2 GiB; split it")
    return text.contiguous(), offsets.contiguous()


def _own_ids(own: Sequence[int | str] | torch.Tensor, labels: LabelSet, rows: int) -> torch.Tensor:
    """[B] int32 label ids on the device of `own`; ids and names are checked where that needs no GPU sync."""
    if not isinstance(own, torch.Tensor):
        own = torch.tensor([labels.id(item) if isinstance(item, str) else item for item in own], dtype=torch.int32)
    if own.dim() != 1 or own.numel() != rows:
        raise DataError(f"own names {tuple(own.shape)} labels for {rows} texts; give one label a text")
    if own.dtype not in (torch.int32, torch.int64):
        raise DataError(f"own must hold label ids (int32 or int64) or names, not {own.dtype}")
    if own.device.type == "cpu" and rows and not (int(own.min()) >= -1 and int(own.max()) < len(labels)):
        raise DataError(f"own has label id {int(own.max())} or {int(own.min())}; ids are -1 to {len(labels) - 1}")
    return own.to(torch.int32).contiguous()


class _Call(NamedTuple):
    """Checked arguments of one call, on one device; `out` and `bits` are to be filled."""

    text: torch.Tensor
    offsets: torch.Tensor
    own: torch.Tensor
    labels: LabelSet
    after: tuple[int, ...]
    out: torch.Tensor
    bits: torch.Tensor | None
    threads: int | None

    def pointers(self) -> tuple[int, int, int, int, int, int, int]:
        """Arguments of the compiled functions, from `text` to `which_words`."""
        rows, words = self.own.numel(), 0 if self.bits is None else self.bits.shape[1]
        inputs = (self.text.data_ptr(), self.offsets.data_ptr(), self.own.data_ptr())
        return *inputs, rows, self.out.data_ptr(), 0 if self.bits is None else self.bits.data_ptr(), words

    def on_cpu(self) -> _Call:
        """The same call with every tensor in host memory."""
        bits = None if self.bits is None else self.bits.cpu()
        text, offsets, own, out = (t.cpu() for t in (self.text, self.offsets, self.own, self.out))
        return self._replace(text=text, offsets=offsets, own=own, out=out, bits=bits)


def _cpp(call: _Call) -> None:
    from vstar_fast import _C

    here = call.on_cpu()
    tables = call.labels.tables(call.after)
    _C.label_match_cpu(tables.data_ptr(), *here.pointers(), call.threads or torch.get_num_threads())
    if call.out.device.type != "cpu":
        call.out.copy_(here.out)
        if call.bits is not None and here.bits is not None:
            call.bits.copy_(here.bits)


def _cuda(call: _Call) -> None:
    from vstar_fast import _C

    host, device = call.labels.tables(call.after), call.labels.tables(call.after, call.text.device)
    with torch.cuda.device(call.text.device):
        stream = torch.cuda.current_stream().cuda_stream
        try:
            _C.label_match_cuda(host.data_ptr(), device.data_ptr(), *call.pointers(), stream)
        except RuntimeError as error:
            raise BackendError(f"{error}; rebuild for this GPU with VSTAR_CUDA_ARCH, or use backend='cpp'") from None


def _reference(call: _Call) -> None:
    from .reference import run

    run(call.text, call.offsets, call.own, call.labels.forms, call.labels.owners, call.after, call.out, call.bits)


_BACKENDS = {"cpp": _cpp, "cuda": _cuda, "reference": _reference}
