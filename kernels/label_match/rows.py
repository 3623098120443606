"""The rows of a call, checked: texts as they are, texts as bytes in a tensor, or token ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from vstar_fast.kernels.given import address

from vstar_fast.errors import DataError

from .result import encode
from .token_bytes import TokenBytes

Texts: TypeAlias = Sequence[str] | Sequence[bytes] | tuple[torch.Tensor, torch.Tensor]
Ids: TypeAlias = torch.Tensor | Sequence[Sequence[int]] | Sequence[torch.Tensor] | tuple[torch.Tensor, torch.Tensor]


class TextList(NamedTuple):
    """B strings or UTF-8 bytes on the host."""

    texts: Sequence[str] | Sequence[bytes]

    @property
    def size(self) -> int:
        return len(self.texts)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> TextRows:
        """The same texts as bytes in a tensor on `device`."""
        rows = self.bytes()
        joined = bytearray(b"".join(rows))
        text = (
            torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0, dtype=torch.uint8, device="cpu")
        )
        return TextRows(text.to(device), offsets_of([len(row) for row in rows]).to(device))

    def bytes(self) -> list[bytes]:
        return [encode(text) for text in self.texts]


class TextRows(NamedTuple):
    """UTF-8 text [total] uint8; row r is text[offsets[r] : offsets[r + 1]], offsets [B + 1] int64."""

    text: torch.Tensor
    offsets: torch.Tensor

    @property
    def size(self) -> int:
        return self.offsets.numel() - 1

    @property
    def device(self) -> torch.device:
        return self.text.device

    def to(self, device: torch.device | str) -> TextRows:
        return TextRows(self.text.to(device), self.offsets.to(device))

    def bytes(self) -> list[bytes]:
        data, bounds = self.text.cpu().numpy().tobytes(), self.offsets.tolist()
        return [data[low:high] for low, high in zip(bounds, bounds[1:], strict=False)]


class TokenRows(NamedTuple):
    """Token ids: [B, T] with `lengths` [B] int64 or None, or [total] with `offsets` [B + 1] int64."""

    ids: torch.Tensor
    offsets: torch.Tensor | None
    lengths: torch.Tensor | None
    tokens: TokenBytes

    @property
    def size(self) -> int:
        return self.ids.shape[0] if self.offsets is None else self.offsets.numel() - 1

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def columns(self) -> int:
        """The most ids a row can have."""
        return self.ids.shape[-1]

    def to(self, device: torch.device | str) -> TokenRows:
        offsets, lengths = (None if x is None else x.to(device) for x in (self.offsets, self.lengths))
        return TokenRows(self.ids.to(device), offsets, lengths, self.tokens)

    def lists(self) -> list[list[int]]:
        """The ids of each row."""
        if self.offsets is not None:
            flat, bounds = self.ids.tolist(), self.offsets.tolist()
            return [flat[low:high] for low, high in zip(bounds, bounds[1:], strict=False)]
        lengths = [self.columns] * self.size if self.lengths is None else self.lengths.tolist()
        return [row[:length] for row, length in zip(self.ids.tolist(), lengths, strict=True)]

    def bytes(self) -> list[bytes]:
        return [self.tokens.spell(row) for row in self.lists()]

    def arguments(self) -> tuple[int, int, int, int, int, bool]:
        """What the compiled functions take: pointers, stride, columns, whether ids are int64."""
        pointers = (0 if x is None else address(x) for x in (self.ids, self.offsets, self.lengths))
        stride = self.ids.stride(0) if self.offsets is None else 0
        return *pointers, stride, self.columns, self.ids.dtype == torch.int64  # type: ignore[return-value]


Rows: TypeAlias = TextList | TextRows | TokenRows


def rows_of(texts: Texts | Ids, tokens: TokenBytes | None, lengths: torch.Tensor | Sequence[int] | None) -> Rows:
    """Rows of texts, or of token ids when `tokens` says what they spell."""
    if not hasattr(texts, "__len__"):
        raise DataError(f"texts must be a list, one a row, or tensors, not a {type(texts).__name__}")
    if tokens is not None:
        if not isinstance(tokens, TokenBytes):
            raise DataError(f"tokens must be TokenBytes of the vocabulary, not a {type(tokens).__name__}")
        return token_rows(texts, lengths, tokens)  # type: ignore[arg-type]
    if lengths is not None:
        raise DataError("`lengths` are lengths of rows of token ids; give `tokens` too, or leave it out")
    return text_rows(texts)  # type: ignore[arg-type]


def text_rows(texts: Texts) -> TextList | TextRows:
    """Texts as given, checked."""
    if isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[0], torch.Tensor):
        return _checked_text(*texts)
    if isinstance(texts, (str, bytes)):
        raise DataError("label_match takes a list of texts, one a row, not one text")
    if isinstance(texts, torch.Tensor):
        raise DataError("a tensor of token ids needs `tokens`, the vocabulary's TokenBytes")
    return TextList(texts)


def token_rows(ids: Ids, lengths: torch.Tensor | Sequence[int] | None, tokens: TokenBytes) -> TokenRows:
    """Ids as given, checked; lists of ids become ragged rows."""
    if isinstance(ids, tuple) and len(ids) == 2 and isinstance(ids[0], torch.Tensor) and ids[0].dim() == 1:
        if lengths is not None:
            raise DataError("ids with offsets have their lengths already; leave `lengths` out")
        return _checked_ragged(*ids, tokens)
    if not isinstance(ids, torch.Tensor):
        if lengths is not None:
            raise DataError("lists of ids have their lengths already; leave `lengths` out")
        try:
            rows = [row.tolist() if isinstance(row, torch.Tensor) else list(map(operator.index, row)) for row in ids]
            flat = torch.tensor([x for row in rows for x in row], dtype=torch.int64, device="cpu")
        except TypeError:
            raise DataError("rows of ids must be lists of whole numbers, one list a row") from None
        return TokenRows(flat, offsets_of([len(row) for row in rows]), None, tokens)
    if ids.dim() != 2:
        raise DataError(f"ids must be [B, T], or (ids [total], offsets [B + 1]), not {tuple(ids.shape)}")
    _check_ids(ids)
    ids = ids if ids.stride(1) == 1 else ids.contiguous()
    return TokenRows(ids, None, None if lengths is None else _checked_lengths(lengths, ids), tokens)


def sizes_beside(lengths: torch.Tensor | Sequence[int] | None, ids: Any) -> torch.Tensor | None:
    """Lengths as a tensor: where the ids lie, if they were given as a list."""
    if lengths is None or isinstance(lengths, torch.Tensor):
        return lengths
    return torch.tensor(lengths, device=ids.device)


def offsets_of(sizes: list[int]) -> torch.Tensor:
    """[B + 1] int64 offsets of rows with these sizes."""
    offsets = torch.zeros(len(sizes) + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(torch.tensor(sizes, dtype=torch.int64, device="cpu"), 0, out=offsets[1:])
    return offsets


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; from the host to a GPU by way of pinned memory, so that nothing waits.

    Raises DataError while a CUDA graph is captured: a replay would read host memory that is long gone.
    """
    if tensor.device == device or tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise DataError("a CUDA graph cannot take lists or tensors on the host; give tensors that lie on the GPU")
    return tensor.pin_memory().to(device, non_blocking=True)


def _check_ids(ids: torch.Tensor) -> None:
    if ids.dtype not in (torch.int32, torch.int64):
        raise DataError(f"token ids must be int32 or int64, not {ids.dtype}")


def _checked_lengths(lengths: torch.Tensor | Sequence[int], ids: torch.Tensor) -> torch.Tensor:
    held = lengths if isinstance(lengths, torch.Tensor) else torch.tensor(lengths, device="cpu")
    held = held if held.numel() else held.long()
    if held.dtype not in (torch.int32, torch.int64) or held.shape != ids.shape[:1]:
        raise DataError(f"lengths must be integers [{ids.shape[0]}], not {held.dtype} {tuple(held.shape)}")
    if held.device != ids.device and isinstance(lengths, torch.Tensor):
        raise DataError(f"ids are on {ids.device} and lengths are on {held.device}; put both on one device")
    if held.device.type == "cpu" and held.numel() and not (int(held.min()) >= 0 and int(held.max()) <= ids.shape[1]):
        raise DataError(f"lengths are {int(held.min())} to {int(held.max())}, but rows have {ids.shape[1]} ids")
    return upload(held, ids.device).to(torch.int64).contiguous()


def _checked_ragged(ids: torch.Tensor, offsets: torch.Tensor, tokens: TokenBytes) -> TokenRows:
    _check_ids(ids)
    _check_offsets(offsets, ids, "ids")
    return TokenRows(ids.contiguous(), offsets.contiguous(), None, tokens)


def _checked_text(text: torch.Tensor, offsets: torch.Tensor) -> TextRows:
    if text.dtype != torch.uint8 or text.dim() != 1:
        raise DataError(f"text bytes must be uint8 [total], not {text.dtype} {tuple(text.shape)}")
    _check_offsets(offsets, text, "bytes of text")
    return TextRows(text.contiguous(), offsets.contiguous())


def _check_offsets(offsets: torch.Tensor, items: torch.Tensor, what: str) -> None:
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or offsets.numel() == 0:
        raise DataError(f"offsets must be int64 [B + 1], not {offsets.dtype} {tuple(offsets.shape)}")
    if items.device != offsets.device:
        raise DataError(f"{what} are on {items.device} and offsets are on {offsets.device}; put both on one device")
    if offsets.device.type != "cpu":
        return
    bounds = torch.cat([offsets.new_zeros(1), offsets, offsets.new_tensor([items.numel()])])
    if (bounds.diff() < 0).any():
        raise DataError(f"offsets must ascend from 0 to at most the {items.numel()} {what}")
    if items.numel() >= 1 << 31 and (offsets.diff() >= 1 << 31).any():
        raise DataError("a row is longer than 2 GiB; split it")
