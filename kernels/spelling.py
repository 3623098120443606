"""The bytes that each id of a Hugging Face tokenizer stands for, read once for every op that works on ids."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from vstar_fast.errors import VstarError

SPACE = "\u2581"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
PLAIN = {"ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}
"""Decoders that join tokens as they stand, but for what SentencePiece writes for a space and for a byte."""

Spell = Callable[[str], bytes]


def spelling(tokenizer: Any, error: type[VstarError]) -> list[bytes | None]:
    """Bytes by id, None for specials and unused ids, of a byte-level BPE or a SentencePiece, with byte fallback or not.

    Every token is compared with `tokenizer.decode`, among others; `error` when they differ, or for another kind.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    if not isinstance(added, Mapping):  # mistral-common's
        raise error(f"{type(tokenizer).__name__} does not tell its tokens; give the bytes of each token yourself")
    special = {int(at) for at, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    spell = _speller(tokenizer, vocabulary, error)
    pieces: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, at in vocabulary.items():
        # an added token is decoded as it was normalised, which its entry in the vocabulary does not show
        pieces[at] = None if at in special else spell(tokenizer.convert_ids_to_tokens(at) if at in added else token)
    _compare(pieces, tokenizer, error)
    return pieces


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte, as GPT-2 chose them."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _speller(tokenizer: Any, vocabulary: dict[str, int], error: type[VstarError]) -> Spell:
    """How a token of this kind of vocabulary is spelt."""
    if any(isinstance(token, bytes) for token in vocabulary):  # tiktoken's own, as the first Qwen's
        return lambda token: token if isinstance(token, bytes) else token.encode()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoders = _decoders(json.loads(backend.to_str()).get("decoder")) if backend is not None else []
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds or (not kinds and "\u0120" in "".join(vocabulary)):
        alphabet = byte_alphabet()
        return lambda token: bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
    if kinds <= PLAIN if kinds else SPACE in "".join(vocabulary):
        return lambda token: _sentencepiece(token, fallback="ByteFallback" in kinds or not kinds)
    raise error(
        f"{type(tokenizer).__name__} is neither byte-level BPE nor SentencePiece (its decoder: "
        f"{', '.join(sorted(kinds)) or 'none'}); give the bytes of each token yourself"
    )


def _decoders(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return [x for part in decoder["decoders"] for x in _decoders(part)] if decoder["type"] == "Sequence" else [decoder]


def _sentencepiece(token: str, fallback: bool) -> bytes:
    found = BYTE_TOKEN.fullmatch(token) if fallback else None
    return bytes([int(found[1], 16)]) if found else token.replace(SPACE, " ").encode()


def _whole(piece: bytes) -> bool:
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


def _compare(pieces: list[bytes | None], tokenizer: Any, error: type[VstarError]) -> None:
    """Rows of all tokens, each once, must decode to what they are here, but for spaces at the ends.

    Tokens that are part of a character are left out: `decode` may garble their neighbours too.
    """
    known = [at for at, piece in enumerate(pieces) if piece and _whole(piece)]
    random.Random(0).shuffle(known)
    rows = [known[at : at + 8] for at in range(0, len(known), 8)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for ids, theirs in zip(rows, texts, strict=True):
        ours = b"".join(pieces[at] or b"" for at in ids).decode()
        if ours.strip() != theirs.strip():
            raise error(
                f"ids {ids} were read as {ours!r}, but {type(tokenizer).__name__} decodes them to {theirs!r}; "
                "give the bytes of each token yourself"
            )
