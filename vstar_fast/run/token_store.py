"""The bytes of a tokenizer's tokens, kept in the run folder: what was generated can be read without the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vstar_fast.errors import RunError
from vstar_fast.files import read_json, write_text

if TYPE_CHECKING:
    from vstar_fast.kernels.label_match import TokenBytes
    from vstar_fast.records import Candidate


class TokenStore:
    """Tables by key, as `FOLDER/KEY.json`: a string a token, one character a byte (latin-1), or null."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, TokenBytes] = {}

    def put(self, tokens: TokenBytes) -> str:
        """Keep a table; its key is a hash of its content."""
        for key, kept in self._kept.items():
            if kept is tokens:
                return key
        pieces = [None if piece is None else piece.decode("latin-1") for piece in tokens.pieces]
        text = json.dumps(pieces)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self._folder / f"{key}.json"
        if not path.is_file():
            write_text(path, text + "\n", own=True)
        self._kept[key] = tokens
        return key

    def of(self, candidates: Sequence[Candidate]) -> TokenBytes | None:
        """The table that spells candidates of one tokenizer; None where they hold text.

        Raises RunError when it is gone.
        """
        tokens = self.get(candidates[0].tokenizer) if candidates else None
        if tokens is None and any(c.token_ids and not c.text for c in candidates):
            path = self._folder / f"{candidates[0].tokenizer}.json"
            raise RunError(f"{path} is gone, without which this run's answers cannot be read; use another --run folder")
        return tokens

    def get(self, key: str) -> TokenBytes | None:
        """The table of a key; None where the run folder has none (its answers were stored as text)."""
        path = self._folder / f"{key}.json"
        if key not in self._kept and path.is_file():
            from vstar_fast.kernels.label_match import TokenBytes

            pieces = [None if piece is None else piece.encode("latin-1") for piece in read_json(path)]
            self._kept[key] = TokenBytes(pieces)
        return self._kept.get(key)
