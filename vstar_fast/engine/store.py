"""Keys and values in preallocated arenas: each prompt and each page of an answer is one slot, stored once."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vstar_fast.errors import ModelError

if TYPE_CHECKING:
    from vstar_fast.engine.recurrent import Held

PAGE = 64
"""Tokens of an answer that are stored together."""
COARSE = 512
"""Capacities are multiples of PAGE up to here, of COARSE / 2 beyond."""
ARENA_TOKENS = 4096
ARENA_BYTES = 256 << 20
"""An arena has as many slots as fit both, one at least."""


class Shape(NamedTuple):
    """One token's keys and values."""

    layers: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        return 2 * self.layers * self.heads * self.width * self.dtype.itemsize


def shape_of(text_model: Any, device: torch.device) -> Shape:
    """What the text stack's config says of its keys and values."""
    config = text_model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(config.num_hidden_layers, heads, width, text_model.dtype, device)


class Arena:
    """`keys`, `values` [layers, slots, heads, capacity, width]; slots are given out lowest first."""

    def __init__(self, shape: Shape, capacity: int, slots: int) -> None:
        size = (shape.layers, slots, shape.heads, capacity, shape.width)
        self.keys, self.values = (torch.zeros(size, dtype=shape.dtype, device=shape.device) for _ in range(2))
        self.capacity, self.slots = capacity, slots
        self.free = list(range(slots))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(slots=True, eq=False)
class Node:
    """A slot in use, with `length` tokens in it."""

    arena: Arena
    slot: int
    length: int = 0
    state: Held | None = None
    """Behind its last token, of layers that keep one; not of pages."""


class Store:
    """Gives out slots of any capacity; arenas come and go as they are needed."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.arenas: dict[int, list[Arena]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held by all arenas."""
        return sum(a.nbytes for arenas in self.arenas.values() for a in arenas)

    def take(self, tokens: int) -> Node:
        """A slot for so many tokens."""
        capacity = capacity_of(tokens)
        arenas = self.arenas.setdefault(capacity, [])
        arena = next((a for a in arenas if a.free), None)
        if arena is None:
            held = sum(a.slots for a in arenas)
            count = slots_of(capacity, self.shape.token_bytes, held, self.shape.device.type)
            arena = Arena(self.shape, capacity, count)
            arenas.append(arena)
        return Node(arena, heapq.heappop(arena.free))

    def give_back(self, node: Node) -> None:
        """The slot is free again; an arena that is wholly free goes when there is another of its capacity."""
        arena = node.arena
        heapq.heappush(arena.free, node.slot)
        arenas = self.arenas[arena.capacity]
        spare = len(arenas) > 1 or arena.capacity > ARENA_TOKENS // 2
        if len(arena.free) == arena.slots and spare:
            arenas.remove(arena)

    def clear(self) -> None:
        """Let go of all memory; no node may be used afterwards."""
        self.arenas.clear()


def slots_of(capacity: int, token_bytes: int, held: int, device: str) -> int:
    """Slots of a new arena beside `held` ones of its capacity; as many again on a GPU, where an arena is a launch."""
    most = min(ARENA_TOKENS // capacity, ARENA_BYTES // (capacity * token_bytes))
    return max(1, most, held if device == "cuda" else 0)


def capacity_of(tokens: int) -> int:
    """Size of the slot that so many tokens are put into."""
    if tokens < 1:
        raise ModelError(f"a slot for {tokens} tokens was asked for; a prompt has at least 1 token")
    step = PAGE if tokens <= COARSE else COARSE // 2
    return -(-tokens // step) * step
