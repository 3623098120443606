"""What tokens see in a layer with a sliding window: the levels of a plan, cut at the front.

A token at place p of its row sees places p - window + 1 to p, as transformers' `sliding_window_overlay` says. What
lies before every window of a group is not read; where the windows of a group begin at different places a mask says so.
Pages that all windows have left stay in the store until their row ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vstar_fast.engine.plan import Level, Slab, Span, placed
from vstar_fast.kernels.prefix_attention import Groups

BLOCK = 256
"""Tokens of a prompt that are one group: each reads at most so many positions more than it sees."""


_Seen = tuple[bytes, bytes, tuple[int, int], int]
"""What each token of some groups sees of a segment: from where, up to where, in which shape, of how many places."""


class _Part(NamedTuple):
    """Tokens of the step that see positions [low, high) of a span's node."""

    span: Span
    tokens: np.ndarray
    low: np.ndarray
    high: np.ndarray


def within(window: int, levels: Sequence[Level], places: np.ndarray, device: torch.device) -> list[list[Slab]]:
    """The levels as a layer of this window sees them; `places` [N] of the step's tokens in their rows."""
    made: dict[_Seen, Groups] = {}
    return [_level(window, level, places, device, made) for level in levels]


def _level(
    window: int, level: Level, places: np.ndarray, device: torch.device, made: dict[_Seen, Groups]
) -> list[Slab]:
    held: dict[tuple[int, int], list[_Part]] = defaultdict(list)
    for span in level.spans:
        for number, first in enumerate(range(span.first, span.end, BLOCK)):
            part = _part(window, span, np.arange(first, min(first + BLOCK, span.end)), level.kind, places)
            if bool((part.low < part.high).any()):
                held[id(span.node.arena), number].append(part)
    return [_slab(sorted(parts, key=lambda p: p.span.node.slot), device, made) for parts in held.values()]


def _part(window: int, span: Span, tokens: np.ndarray, kind: str, places: np.ndarray) -> _Part:
    stop = np.full(len(tokens), span.stop)
    if kind == "causal":
        stop = span.start + tokens - span.first + 1
    elif kind == "last":
        stop = span.stop - (span.end - 1 - tokens)
    low = np.maximum(span.start, places[tokens] + 1 - window - span.offset)
    return _Part(span, tokens, low, np.minimum(stop, span.node.arena.capacity))


def _slab(parts: list[_Part], device: torch.device, made: dict[_Seen, Groups]) -> Slab:
    """One segment; groups that see the same places of it as others before have their mask, too."""
    start, stop = min(int(p.low.min()) for p in parts), max(int(p.high.max()) for p in parts)
    slots = np.array([p.span.node.slot for p in parts])
    rows, count, at = placed(slots)
    size = (count, max(len(p.tokens) for p in parts))
    tokens, low, high = np.full(size, -1), np.full(size, start), np.full(size, stop)
    for group, part in zip(at, parts, strict=True):
        many = slice(len(part.tokens))
        tokens[group, many], low[group, many], high[group, many] = part.tokens, part.low, part.high
    seen = (low - start).tobytes(), (high - start).tobytes(), size, stop - start
    named = None if rows is not None else torch.from_numpy(slots).to(device)
    own = torch.from_numpy(tokens).to(device)
    if seen not in made:
        shown = _visible(low - start, high - start, stop - start)
        made[seen] = Groups(own, named, None if shown is None else torch.from_numpy(shown).to(device))
    return Slab(parts[0].span.node.arena, rows, start, stop, made[seen].of(own, named))


def _visible(low: np.ndarray, high: np.ndarray, positions: int) -> np.ndarray | None:
    """As `Groups` takes it: nothing where all is seen, counts where all begin at the front, else a mask."""
    if not low.any():
        return None if bool((high == positions).all()) else np.maximum(high, 0)
    at = np.arange(positions)
    shown: np.ndarray = (low[..., None] <= at) & (at < high[..., None])
    return shown
