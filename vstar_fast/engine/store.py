"""A paged KV cache in preallocated arenas: each prompt and each page of an answer is one slot, stored once.

Layers with as many heads of the same widths are of one kind and lie in one tensor; a layer that keeps none has none.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from vstar_fast.errors import ModelError
from vstar_fast.models.layers import LayerShape

if TYPE_CHECKING:
    from vstar_fast.models.recurrent import Held

PAGE = 64
"""Tokens of an answer that are stored together."""
COARSE = 512
"""Capacities are multiples of PAGE up to here, of COARSE / 2 beyond."""
ARENA_TOKENS = 4096
ARENA_BYTES = 256 << 20
"""An arena has as many slots as fit both, one at least."""


@dataclass(frozen=True)
class Shape:
    """One token's keys and values: the `kinds` of layers, and per layer of the stack (kind, row among its like).

    None: the layer keeps no keys, or attends to those of another one.
    """

    kinds: tuple[LayerShape, ...]
    layers: tuple[tuple[int, int] | None, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, layers: Sequence[LayerShape | None], dtype: torch.dtype, device: torch.device) -> Shape:
        """From what each layer keeps."""
        kinds = tuple(dict.fromkeys(layer for layer in layers if layer is not None))
        counts = [0] * len(kinds)
        places: list[tuple[int, int] | None] = []
        for layer in layers:
            kind = None if layer is None else kinds.index(layer)
            places.append(None if kind is None else (kind, counts[kind]))
            if kind is not None:
                counts[kind] += 1
        return cls(kinds, tuple(places), dtype, device)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Layers of each kind."""
        return tuple(sum(place is not None and place[0] == n for place in self.layers) for n in range(len(self.kinds)))

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        numbers = (n * k.heads * (k.key_width + k.value_width) for n, k in zip(self.counts, self.kinds, strict=True))
        return sum(numbers) * self.dtype.itemsize


class Arena:
    """`keys`, `values` per kind of layer [layers, slots, heads, capacity, width]; slots are given out lowest first."""

    def __init__(self, shape: Shape, capacity: int, slots: int) -> None:
        def zeros(count: int, heads: int, width: int) -> torch.Tensor:
            return torch.zeros(count, slots, heads, capacity, width, dtype=shape.dtype, device=shape.device)

        kinds = list(zip(shape.counts, shape.kinds, strict=True))
        self.keys = [zeros(count, kind.heads, kind.key_width) for count, kind in kinds]
        self.values = [zeros(count, kind.heads, kind.value_width) for count, kind in kinds]
        self.layers = [None if p is None else (self.keys[p[0]][p[1]], self.values[p[0]][p[1]]) for p in shape.layers]
        """Keys and values [slots, heads, capacity, width] by layer of the stack."""
        self.capacity, self.slots = capacity, slots
        self.free = list(range(slots))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is held, in one order for all arenas of a store: the slots are dimension 1, tokens dimension 3."""
        return [*self.keys, *self.values]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in self.tensors)

    def layer(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [slots, heads, capacity, width] of a layer of the stack, which keeps some."""
        found = self.layers[number]
        assert found is not None
        return found


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
    most = min(ARENA_TOKENS // capacity, ARENA_BYTES // max(1, capacity * token_bytes))
    return max(1, most, held if device == "cuda" else 0)


def capacity_of(tokens: int) -> int:
    """Size of the slot that so many tokens are put into."""
    if tokens < 1:
        raise ModelError(f"a slot for {tokens} tokens was asked for; a prompt has at least 1 token")
    step = PAGE if tokens <= COARSE else COARSE // 2
    return -(-tokens // step) * step
