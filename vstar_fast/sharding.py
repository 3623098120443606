"""Work dealt out to processes by its content, so that neither order nor a restart moves it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def mine(keys: Sequence[str], rank: int, size: int) -> list[int]:
    """Indices of the keys that process `rank` of `size` does; equal keys go to the same process.

    Every key goes to exactly one process. Shares are equal up to chance.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not one of {size} processes; it counts from 0")
    return [i for i, key in enumerate(keys) if _number(key) % size == rank]


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
