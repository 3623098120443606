"""`LabelMatch`: what `label_match` found, as columns of one integer table."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import torch

from vstar_fast.errors import DataError

from .labels import LabelSet

ROW_INTS = 16
"""Columns of a result row: spans of the first and the last occurrence in bytes (0-3), tokens (6-9) and characters
(10-13), searched from (4), flags (5), position of an id outside the vocabulary (14), bytes of the row (15)."""

INSIDE_LONGER, NEGATED = 1, 2
"""Bits of the flags column."""


@dataclasses.dataclass(frozen=True, slots=True)
class LabelMatch:
    """What was found in B rows; spans are [begin, end), (-1, -1) for none."""

    table: torch.Tensor
    """[B, ROW_INTS] int32: all columns, as the backend wrote them."""
    which_bits: torch.Tensor | None
    """[B, ceil(N / 32)] int32: bit l % 32 of word l // 32 is set when label l occurs; None unless asked for."""
    labels: LabelSet
    backend: str

    @property
    def matched(self) -> torch.Tensor:
        """[B] bool: the row's own label occurs."""
        return self.table[:, 0] >= 0

    @property
    def first(self) -> torch.Tensor:
        """[B, 2] int32: bytes of its first occurrence."""
        return self.table[:, 0:2]

    @property
    def last(self) -> torch.Tensor:
        """[B, 2] int32: bytes of its last occurrence."""
        return self.table[:, 2:4]

    @property
    def first_tokens(self) -> torch.Tensor:
        """[B, 2] int32: from the token with the first occurrence's first byte to behind that with its last byte.

        (-1, -1) in every row of a call on text.
        """
        return self.table[:, 6:8]

    @property
    def last_tokens(self) -> torch.Tensor:
        """[B, 2] int32: tokens of the last occurrence."""
        return self.table[:, 8:10]

    @property
    def first_chars(self) -> torch.Tensor:
        """[B, 2] int32: characters of the first occurrence; a byte that is not valid UTF-8 counts as one."""
        return self.table[:, 10:12]

    @property
    def last_chars(self) -> torch.Tensor:
        """[B, 2] int32: characters of the last occurrence."""
        return self.table[:, 12:14]

    @property
    def searched_from(self) -> torch.Tensor:
        """[B] int32: byte where the search began: 0, or behind the `after` literal; -1 when that literal is absent."""
        return self.table[:, 4]

    @property
    def inside_longer(self) -> torch.Tensor:
        """[B] bool: the own label occurs only inside longer labels ("kick" where the text says "spin kick")."""
        return self.table[:, 5] & INSIDE_LONGER != 0

    @property
    def negated(self) -> torch.Tensor:
        """[B] bool: an occurrence of the own label is denied ("not a kick"); all False unless asked for."""
        return self.table[:, 5] & NEGATED != 0

    @property
    def length(self) -> torch.Tensor:
        """[B] int32: bytes of the row."""
        return self.table[:, 15]

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
        return tuple(32 * w + b for w, word in enumerate(words) if word for b in range(32) if word >> b & 1)

    def check(self) -> LabelMatch:
        """Raise DataError when a row has an id outside the vocabulary, else return self.

        On the CPU `label_match` has done so. On a GPU it would make the host wait, so there such rows match nothing
        and this tells.
        """
        rows = (self.table[:, 14] >= 0).nonzero()
        if rows.numel():
            bad_token(int(rows[0]), int(self.table[rows[0], 14]))
        return self

    def _bits(self) -> torch.Tensor:
        if self.which_bits is None:
            raise DataError("which labels occur was not asked for; call label_match(..., which=True)")
        return self.which_bits


def bad_token(row: int, position: int) -> NoReturn:
    """Raise the error for an id outside the vocabulary."""
    raise DataError(f"row {row} has an id at position {position} that is outside the vocabulary of `tokens`")


def char_span(text: str, begin: int, end: int) -> tuple[int, int]:
    """Byte span [begin, end) of a text's UTF-8 form as a span of its characters."""
    data = encode(text)
    first = len(data[:begin].decode("utf-8", errors="surrogateescape"))
    return first, first + len(data[begin:end].decode("utf-8", errors="surrogateescape"))


def encode(text: str | bytes) -> bytes:
    """The UTF-8 bytes of a text; a lone surrogate becomes bytes that belong to no label."""
    return text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass")
