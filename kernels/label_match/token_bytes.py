"""`TokenBytes`: the bytes each id of a vocabulary stands for, so that generated ids are matched without decoding."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vstar_fast.errors import DataError

from .handles import hold

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


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
        `tokenizer.decode` on some ids; DataError when they differ or when the kind of tokenizer is unknown.
        """
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        count = max(max(vocabulary.values(), default=-1) + 1, size or 0)
        added = tokenizer.added_tokens_decoder
        special = {int(at) for at, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        spoken = max((at for at in vocabulary.values() if at not in special), default=-1)
        if size is not None and size <= spoken:
            raise DataError(f"the vocabulary has ids up to {spoken}, but size is {size}; give the logits' width")
        spell = _speller(tokenizer, vocabulary)
        pieces: list[bytes | None] = [None] * count
        for token, at in vocabulary.items():
            # an added token is decoded as it was normalised, which its entry in the vocabulary does not show
            pieces[at] = None if at in special else spell(tokenizer.convert_ids_to_tokens(at) if at in added else token)
        table = cls(pieces)
        _compare(table, tokenizer)
        return table

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


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte, as GPT-2 chose them."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _speller(tokenizer: Any, vocabulary: dict[str, int]) -> Callable[[str], bytes]:
    """How a token of this kind of vocabulary is spelt."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoders = _decoders(json.loads(backend.to_str()).get("decoder")) if backend is not None else []
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds or (not kinds and "\u0120" in "".join(vocabulary)):
        alphabet = byte_alphabet()
        return lambda token: bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
    spaces = any("\u2581" in str(decoder.get("pattern", "")) for decoder in decoders) or "Metaspace" in kinds
    if spaces or (not kinds and "\u2581" in "".join(vocabulary)):
        fallback = "ByteFallback" in kinds or not kinds
        return lambda token: _sentencepiece(token, fallback)
    raise DataError(
        f"{type(tokenizer).__name__} is neither byte-level BPE nor SentencePiece (its decoder: "
        f"{', '.join(sorted(kinds)) or 'none'}); make TokenBytes from the bytes of each token yourself"
    )


def _decoders(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return [x for part in decoder["decoders"] for x in _decoders(part)] if decoder["type"] == "Sequence" else [decoder]


def _sentencepiece(token: str, fallback: bool) -> bytes:
    found = _BYTE_TOKEN.fullmatch(token) if fallback else None
    return bytes([int(found[1], 16)]) if found else token.replace("\u2581", " ").encode()


def _whole(piece: bytes) -> bool:
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


def _compare(table: TokenBytes, tokenizer: Any) -> None:
    """Some made rows must decode to what the table spells, but for spaces at the beginning.

    Tokens that are part of a character are left out: `decode` may garble their neighbours too.
    """
    rng = random.Random(0)
    known = [at for at, piece in enumerate(table.pieces) if piece and _whole(piece)]
    for _ in range(64 if known else 0):
        ids = rng.choices(known, k=8)
        ours = table.spell(ids).decode()
        theirs = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if ours.lstrip(" ") != theirs.lstrip(" "):
            raise DataError(
                f"ids {ids} are {ours!r} in the table, but {type(tokenizer).__name__} decodes them to {theirs!r}; "
                "make TokenBytes from the bytes of each token yourself"
            )
