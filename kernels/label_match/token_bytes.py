"""`TokenBytes`: the bytes each id of a vocabulary stands for, so that generated ids are matched without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vstar_fast.kernels.spelling import spelling

from vstar_fast.errors import DataError

from .handles import hold


class TokenBytes:
    """A table of bytes by token id, for ids 0 to `len(self) - 1`.

    `pieces[id]` is what the token adds to the text; None for specials, padding and unused ids, which add nothing.
    Raises DataError for an empty table or a piece that is neither bytes nor None.
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        if not pieces:
            raise DataError("the token table is empty; give one piece of bytes (or None) for each id")
        for at, piece in enumerate(pieces):
            if piece is not None and not isinstance(piece, bytes):
                raise DataError(f"token {at} is {piece!r} ({type(piece).__name__}); a piece is bytes or None")
        self.pieces: tuple[bytes | None, ...] = tuple(pieces)
        self.longest = max(len(piece or b"") for piece in self.pieces)
        self._tables: dict[torch.device, torch.Tensor] = {}
        self.handle = hold(self)

    @classmethod
    def from_hf(cls, tokenizer: Any, size: int | None = None) -> TokenBytes:
        """The table of a Hugging Face tokenizer: byte-level BPE, or SentencePiece with or without byte fallback.

        `size` is the width of the model's logits where it is padded beyond the vocabulary. The table is compared with
        `tokenizer.decode`; DataError when they differ or when the kind of tokenizer is unknown.
        """
        pieces = spelling(tokenizer, DataError)
        spoken = max((at for at, piece in enumerate(pieces) if piece is not None), default=-1)
        if size is not None and size <= spoken:
            raise DataError(f"the vocabulary has ids up to {spoken}, but size is {size}; give the logits' width")
        return cls(pieces + [None] * ((size or 0) - len(pieces)))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has a handle of its own: the number of this one may be another's in another process."""
        return TokenBytes, (self.pieces,)

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return f"TokenBytes({len(self)} ids, longest {self.longest} bytes)"

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of a row of ids, in plain Python; DataError for an id outside the table."""
        for at in ids:
            if not 0 <= at < len(self.pieces):
                raise DataError(f"token id {at} is outside the vocabulary, 0 to {len(self) - 1}")
        return b"".join(self.pieces[at] or b"" for at in ids)

    def table(self, device: torch.device | None = None) -> torch.Tensor:
        """The compiled block [bytes] uint8 on `device` (CPU by default); kept."""
        where = device or torch.device("cpu")
        if where not in self._tables:
            if where.type == "cpu":
                from vstar_fast import _C

                self._tables[where] = torch.frombuffer(bytearray(_C.compile_tokens(self.pieces)), dtype=torch.uint8)
            else:
                self._tables[where] = self.table().to(where)
        return self._tables[where]
