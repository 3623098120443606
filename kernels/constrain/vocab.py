"""`TokenVocab`: what bytes each token of a model stands for, as a trie made once per tokenizer."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from vstar_fast.kernels.spelling import spelling

from vstar_fast.errors import ConstrainError

MAX_VOCABULARY = 1 << 21
SENTINELS = ("\n", "=", "x")
"""Characters put before a text to keep a tokenizer from adding a space of its own; the first that works."""

Encode = Callable[[Sequence[str]], list[list[int]]]


class TokenVocab:
    """Token bytes, end-of-sequence ids and the width of the logits; shared by all grammars of a model.

    Args:
        tokens: bytes of each token id; None or b"" for a token that is no text (specials, unused ids).
        eos_ids: tokens that end an answer; at least one.
        logits_size: columns of the model's logits, at least `len(tokens)`; columns beyond are never allowed.
        encode: texts -> canonical token ids, needed by tokenization="forced" and "canonical".
    """

    def __init__(
        self,
        tokens: Iterable[bytes | None],
        eos_ids: int | Sequence[int],
        logits_size: int | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.tokens: tuple[bytes, ...] = tuple(token or b"" for token in tokens)
        self.eos_ids = tuple(sorted({eos_ids} if isinstance(eos_ids, int) else set(eos_ids or ())))
        self.logits_size = len(self.tokens) if logits_size is None else logits_size
        self._encode = encode
        self._check()
        self.tokens = tuple(b"" if i in self.eos_ids else token for i, token in enumerate(self.tokens))

    def _check(self) -> None:
        odd = next((at for at, token in enumerate(self.tokens) if not isinstance(token, bytes)), None)
        if odd is not None:
            raise ConstrainError(f"token {odd} is {self.tokens[odd]!r}; give the bytes it stands for, or None")
        if not any(self.tokens):
            raise ConstrainError("the vocabulary has no token with bytes; was the tokenizer read correctly?")
        if not len(self.tokens) <= self.logits_size <= MAX_VOCABULARY:
            raise ConstrainError(
                f"logits_size is {self.logits_size}, but there are {len(self.tokens)} tokens and at most "
                f"{MAX_VOCABULARY} columns; give model.config.vocab_size"
            )
        if not self.eos_ids:
            raise ConstrainError("no end-of-sequence id; give eos_ids, such as model.generation_config.eos_token_id")
        bad = [i for i in self.eos_ids if not 0 <= i < self.logits_size]
        if bad:
            raise ConstrainError(f"end-of-sequence id {bad[0]} is outside the {self.logits_size} logits columns")

    @classmethod
    def from_hf(
        cls, tokenizer: Any, logits_size: int | None = None, eos_ids: int | Sequence[int] | None = None
    ) -> TokenVocab:
        """Read a Hugging Face tokenizer: byte-level BPE, or SentencePiece with or without byte fallback.

        The tokens' bytes are compared with the tokenizer's own `decode`; ConstrainError when they differ, or for
        another kind. `logits_size`: the model's vocabulary size where it is padded. `eos_ids`: default the
        tokenizer's; give all of the model's `generation_config.eos_token_id`.
        """
        tokens = spelling(tokenizer, ConstrainError)
        size = len(tokens)
        if eos_ids is None:
            if tokenizer.eos_token_id is None:
                raise ConstrainError("the tokenizer names no eos token; give eos_ids")
            eos_ids = tokenizer.eos_token_id
        if logits_size and not any(tokens[logits_size:]):  # tokens that a model reads and cannot write (Molmo 2)
            tokens = tokens[:logits_size]
        return cls(tokens, eos_ids, logits_size or size, functools.partial(_encode_plain, tokenizer))

    def __repr__(self) -> str:
        return f"TokenVocab({len(self.tokens)} tokens, {self.logits_size} columns, eos {self.eos_ids})"

    @functools.cached_property
    def block(self) -> torch.Tensor:
        """The compiled trie [bytes] uint8, in host memory."""
        from vstar_fast import _C

        block = _C.constrain_vocab(self.tokens, self.eos_ids, self.logits_size)
        return torch.frombuffer(bytearray(block), dtype=torch.uint8)

    @functools.cached_property
    def key(self) -> str:
        """Content key: equal for vocabularies that a grammar cannot tell apart."""
        digest = hashlib.sha256(repr((self.logits_size, self.eos_ids)).encode())
        digest.update(b"".join(len(token).to_bytes(4, "little") + token for token in self.tokens))
        return digest.hexdigest()[:32]

    @functools.cached_property
    def missing_bytes(self) -> frozenset[int]:
        """Byte values that no token of one byte stands for; empty where every text can be spelled."""
        return frozenset(range(256)) - {token[0] for token in self.tokens if len(token) == 1}

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of some tokens; those that are no text add nothing."""
        return b"".join(self.tokens[i] for i in ids if 0 <= i < len(self.tokens))

    def encode(self, texts: Sequence[bytes]) -> list[list[int]]:
        """Canonical tokens of each text; [] where the tokenizer gives none that spell exactly these bytes."""
        if self._encode is None:
            raise ConstrainError("this vocabulary cannot encode; make it with TokenVocab.from_hf, or give `encode`")
        readable = [i for i, text in enumerate(texts) if text.decode("utf-8", "replace").encode() == text]
        out: list[list[int]] = [[] for _ in texts]
        for prefix in ("", *SENTINELS):
            if not readable:
                break
            encoded = self._encode([prefix + texts[i].decode() for i in readable])
            for i, ids in zip(readable, encoded, strict=True):
                out[i] = self._behind(ids, prefix.encode(), texts[i])
            readable = [i for i in readable if not out[i]]
        return out

    def _behind(self, ids: list[int], prefix: bytes, text: bytes) -> list[int]:
        """The tokens that spell `text`, without those of the `prefix`; [] when the cut falls inside one."""
        spelled = b""
        for at, token in enumerate(ids):
            if spelled.lstrip(b" ") == prefix and self.decode(ids[at:]) == text:
                return ids[at:]
            spelled += self.decode([token])
        return []


def _encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids without specials, through the fast tokenizer's batch where there is one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return [encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=False)]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]
