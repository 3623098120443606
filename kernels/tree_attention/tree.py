"""A tree of packed tokens: what branches have in common stands once, and each token sees what leads to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch

from vstar_fast.errors import ModelError


class Call(NamedTuple):
    """Query tokens `[first, last)` over keys `[start, stop)` of the same packed row."""

    first: int
    last: int
    start: int
    stop: int


class Calls(list[Call]):
    """Calls that a kernel may take together; `made` holds what was made of them, by device."""

    def __init__(self, calls: Iterable[Call] = ()) -> None:
        super().__init__(calls)
        self.made: dict[str, Any] = {}


@dataclass(frozen=True)
class Node:
    """Tokens `[start, stop)` of a branch; those of everything behind it follow, up to `end`."""

    start: int
    stop: int
    end: int
    depth: int


class Sighted(NamedTuple):
    """Tokens from `first` on that see what `seen` bool [t, T] says of the tokens `columns` [T] that lead to them.

    `seen` by sliding window of a layer; that of None, or the only one, where a window has none of its own.
    """

    first: int
    columns: torch.Tensor
    seen: Mapping[int | None, torch.Tensor]


class Tree:
    """Nodes in the order of their tokens, each before what is behind it (depth first).

    A token sees all tokens of the nodes that lead to its own, and its own up to itself; `sighted` ones see others too.
    """

    def __init__(self, nodes: Sequence[Node], sighted: Sequence[Sighted] = ()) -> None:
        self.nodes, self.sighted = tuple(nodes), tuple(sighted)
        self.tokens = nodes[-1].stop if nodes else 0
        at = 0
        for node in nodes:
            if node.start != at or not node.start < node.stop <= node.end:
                raise ModelError(f"tree nodes must follow one another without a gap; at token {at} stands {node}")
            at = node.stop

    @cached_property
    def own(self) -> Calls:
        """Each node over itself, causally."""
        return Calls(Call(n.start, n.stop, n.start, n.stop) for n in self.nodes)

    @cached_property
    def levels(self) -> list[Calls]:
        """Per depth, everything behind a node over all of that node; no token is twice in a level."""
        found: dict[int, Calls] = {}
        for n in self.nodes:
            if n.stop < n.end:
                found.setdefault(n.depth, Calls()).append(Call(n.stop, n.end, n.start, n.stop))
        return [found[depth] for depth in sorted(found)]

    @cached_property
    def longest(self) -> int:
        """Tokens that the last token of the longest branch sees."""
        path: list[Node] = []
        most = 0
        for n in self.nodes:
            path = [p for p in path if n.start < p.end] + [n]
            most = max(most, sum(p.stop - p.start for p in path))
        return most

    @cached_property
    def places(self) -> torch.Tensor:
        """Int64 [N]: how many tokens stand before each in its own row."""
        path: list[Node] = []
        found = []
        for n in self.nodes:
            path = [p for p in path if n.start < p.end]
            before = sum(p.stop - p.start for p in path)
            found.append(torch.arange(before, before + n.stop - n.start))
            path.append(n)
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    def mask(self, device: torch.device | str = "cpu", window: int | None = None) -> torch.Tensor:
        """Bool [N, N]: row i sees column j; with a sliding window no more than the `window` places up to its own."""
        return self.rows(0, self.tokens, window).to(device)

    def rows(self, first: int, last: int, window: int | None = None) -> torch.Tensor:
        """Bool [last - first, N] on the host: rows `first` to `last` of the mask."""
        shown = torch.zeros(last - first, self.tokens, dtype=torch.bool)
        for call in chain(self.own, *self.levels):
            shown[max(call.first - first, 0) : max(call.last - first, 0), call.start : call.stop] = True
        at = torch.arange(self.tokens)
        shown &= at <= at[first:last, None]
        if window is not None:
            shown &= self.places[first:last, None] - self.places < window
        for begin, columns, seen in self.sighted:
            part = seen[window] if window in seen else next(iter(seen.values()))
            low, high = max(begin, first), min(begin + len(part), last)
            if low < high:
                shown[low - first : high - first] = False
                shown[low - first : high - first, columns.cpu()] = part[low - begin : high - begin].cpu()
        return shown
