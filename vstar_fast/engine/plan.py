"""Which tokens of a step are written where and see what: made once a step on the host, used by every layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from vstar_fast.engine.store import PAGE, Arena, Node
from vstar_fast.errors import ModelError
from vstar_fast.kernels.prefix_attention import Groups, Segment

if TYPE_CHECKING:
    from vstar_fast.models.recurrent import Waves

DENSE = 0.7
"""Slots are read in place, unused ones between them too, when at least this share of the range is used."""


class Span(NamedTuple):
    """Tokens `first` to `end` of the step see positions `start` to `stop` of a node.

    `offset`: place of the node's position 0 in the rows that see it.
    """

    node: Node
    first: int
    end: int
    start: int
    stop: int
    offset: int = 0


class Level(NamedTuple):
    """Spans of which a token is in one at most; `kind` as `level` takes it."""

    kind: str
    spans: Sequence[Span]


@dataclass(slots=True)
class Slab:
    """One segment of every layer: a cut through an arena, and who sees it."""

    arena: Arena
    rows: slice | None
    """Slots that are read in place; None: those named by `groups.slots`."""
    start: int
    stop: int
    groups: Groups

    def segment(self, layer: int) -> Segment:
        """The segment with the keys and values of one layer."""
        rows = slice(None) if self.rows is None else self.rows
        cut = (rows, slice(None), slice(self.start, self.stop))
        keys, values = self.arena.layer(layer)
        return Segment(keys[cut], values[cut], self.groups)


class Write(NamedTuple):
    """Where the new keys and values of a step go in one arena: `tokens` (None: all) to (slots, places)."""

    arena: Arena
    tokens: torch.Tensor | None
    slots: torch.Tensor
    places: torch.Tensor


@dataclass(slots=True)
class Plan:
    """Writes and levels of one call of the text stack."""

    writes: list[Write] = field(default_factory=list)
    levels: list[list[Slab]] = field(default_factory=list)
    longest: int = 0
    """Tokens that the step's last token of the longest row sees, itself included."""
    cut: Callable[[int], list[list[Slab]]] | None = None
    """The levels as layers with a sliding window of so many tokens see them."""
    waves: Waves | None = None
    """How the step goes through layers with a state."""
    _cut: dict[int, list[list[Slab]]] = field(default_factory=dict)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values [N, heads, width] of a layer in their places."""
        for arena, tokens, slots, places in self.writes:
            k, v = (keys, values) if tokens is None else (keys[tokens], values[tokens])
            for held, new in zip(arena.layer(layer), (k, v), strict=True):
                held.transpose(1, 2).index_put_((slots, places), new.to(held.dtype))

    def segments(self, layer: int, window: int | None = None) -> list[list[Segment]]:
        """The levels for `prefix_attention`."""
        return [[slab.segment(layer) for slab in level] for level in self._seen(window)]

    def _seen(self, window: int | None) -> list[list[Slab]]:
        if window is None or window >= self.longest:
            return self.levels
        if window not in self._cut:
            if self.cut is None:
                raise ModelError(f"a layer asks for a sliding window of {window} tokens, which was not seen before")
            self._cut[window] = self.cut(window)
        return self._cut[window]


def writes(spans: Iterable[Span], tokens: int, device: torch.device) -> list[Write]:
    """Token i of a span goes to the span's node at position `start + i`."""
    by_arena: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        by_arena[id(span.node.arena)].append(span)
    found = []
    for group in by_arena.values():
        each = [s.end - s.first for s in group]
        slots = np.repeat([s.node.slot for s in group], each)
        places = np.concatenate([np.arange(s.start, s.start + n) for s, n in zip(group, each, strict=True)])
        at = np.concatenate([np.arange(s.first, s.end) for s in group])
        everything = len(at) == tokens and at[0] == 0 and bool((np.diff(at) == 1).all())
        index = None if everything else torch.from_numpy(at).to(device)
        found.append(
            Write(group[0].node.arena, index, torch.from_numpy(slots).to(device), torch.from_numpy(places).to(device))
        )
    return found


def level(spans: Sequence[Span], device: torch.device, kind: str) -> list[Slab]:
    """Slabs of one level; spans of one arena become one. `kind`:

    "whole": a token sees all positions of its span. "causal": token i of a span sees its positions 0 to i.
    "last": the last token of a span sees all its positions, the one before it one fewer, and so on; positions
    beyond the end of the node are those of the answer's next page.
    """
    by_arena: dict[tuple[int, int], list[Span]] = defaultdict(list)
    for span in spans:
        if span.end > span.first and span.stop > span.start:
            by_arena[id(span.node.arena), span.start].append(span)
    return [_slab(sorted(group, key=lambda s: s.node.slot), device, kind) for group in by_arena.values()]


def placed(slots: np.ndarray) -> tuple[slice | None, int, np.ndarray]:
    """(slots that are read in place, None: by name; groups; each one's group) of slots in order, one a span."""
    low, high = int(slots[0]), int(slots[-1]) + 1
    unique = len(slots) == 1 or bool((np.diff(slots) > 0).all())
    if unique and len(slots) >= DENSE * (high - low):
        return slice(low, high), high - low, slots - low
    return None, len(slots), np.arange(len(slots))


def _slab(spans: list[Span], device: torch.device, kind: str) -> Slab:
    slots = np.array([s.node.slot for s in spans])
    each = max(s.end - s.first for s in spans)
    stop = min(spans[0].node.arena.capacity, max(s.stop for s in spans))
    if kind == "causal":
        stop = spans[0].start + each
    rows, groups, place = placed(slots)
    first, end, length = (np.zeros(groups, np.int64) for _ in range(3))
    first[place], end[place] = [s.first for s in spans], [s.end for s in spans]
    length[place] = [s.stop - s.start for s in spans]
    tokens = first[:, None] + np.arange(each)
    there = tokens < end[:, None]
    tokens = np.where(there, tokens, -1)
    visible = _visible(kind, there, length, end - first, stop - spans[0].start)
    named = None if rows is not None else torch.from_numpy(slots).to(device)
    shown = None if visible is None else torch.from_numpy(visible).to(device)
    made = Groups(torch.from_numpy(tokens).to(device), named, shown, causal=kind == "causal")
    return Slab(spans[0].node.arena, rows, spans[0].start, stop, made)


def _visible(kind: str, there: np.ndarray, length: np.ndarray, count: np.ndarray, positions: int) -> np.ndarray | None:
    if kind == "causal":
        return None
    if kind == "whole":
        used = there[:, 0]
        return None if bool((length[used] == positions).all()) else np.maximum(length, 1)[:, None]
    back = count[:, None] - 1 - np.arange(there.shape[1])
    seen = np.where(there, np.clip(length[:, None] - back, 0, positions), 1)
    return None if bool((seen[there] == positions).all()) else seen


def page_spans(pages: Sequence[Node], first: int, count: int, stored: int, offset: int) -> list[Span]:
    """Spans of an answer's pages, which begin at place `offset`: `count` new tokens come behind `stored` ones."""
    end = stored + count
    return [Span(page, first, first + count, 0, end - n * PAGE, offset + n * PAGE) for n, page in enumerate(pages)]


def new_spans(pages: Sequence[Node], first: int, count: int, stored: int) -> list[Span]:
    """Where an answer's `count` new tokens go, cut at the ends of pages."""
    found, at = [], stored
    while at < stored + count:
        stop = min(stored + count, (at // PAGE + 1) * PAGE)
        start, begin = at % PAGE, first + at - stored
        found.append(Span(pages[at // PAGE], begin, begin + stop - at, start, start + stop - at))
        at = stop
    return found
