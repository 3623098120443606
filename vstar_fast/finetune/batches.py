"""Which examples an optimizer step sees, and how they are put together for one forward and backward."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from vstar_fast.config import FinetuneConfig
from vstar_fast.finetune.items import Item

T = TypeVar("T")


def count_steps(config: FinetuneConfig, examples: int) -> int:
    """Optimizer steps for this many examples."""
    return config.steps or max(1, math.ceil(config.epochs * examples / config.batch_size))


def batches(items: Sequence[T], videos: Sequence[object], size: int, steps: int, seed: int) -> list[list[T]]:
    """`steps` batches of items, `videos[i]` that of `items[i]`; every epoch goes through them once, in its own order.

    Videos are shuffled, the items of one stay together, so that they share its prefix.
    """
    order: list[T] = []
    epoch = 0
    while len(order) < steps * size:
        groups = _by(items, videos)
        random.Random(f"{seed}/{epoch}").shuffle(groups)
        order += [item for group in groups for item in group]
        epoch += 1
    return [order[i * size : (i + 1) * size] for i in range(steps)]


def _by(things: Iterable[T], keys: Iterable[object]) -> list[list[T]]:
    """Things of equal keys together, in the order in which keys come first."""
    groups: dict[object, list[T]] = {}
    for thing, key in zip(things, keys, strict=True):
        groups.setdefault(key, []).append(thing)
    return list(groups.values())


class _Pack:
    """Items of one forward: how many, and how many tokens they are once packed."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._seen: set[object] = set()
        self.tokens = 0

    def cost(self, items: Sequence[Item]) -> int:
        """Tokens that `items` add."""
        new = {key: n for item in items for key, n in item.parts.items() if key not in self._seen}
        return sum(new.values())

    def add(self, items: Sequence[Item]) -> None:
        """Put items in."""
        self.tokens += self.cost(items)
        self._seen.update(key for item in items for key in item.parts)
        self.items += items


def packs(items: Sequence[Item], most_items: int, most_tokens: int) -> list[list[Item]]:
    """Items in as few packs as first-fit-decreasing finds, each of at most so many items and packed tokens.

    Items of one video go together as far as a pack holds them; an item of more than `most_tokens` goes alone.
    """
    groups = [g for group in _by(items, [i.clip for i in items]) for g in _cut(group, most_items, most_tokens)]
    found: list[_Pack] = []
    for group in sorted(groups, key=lambda g: -_Pack().cost(g)):  # stable: equal groups keep their order
        fits = (p for p in found if len(p.items) + len(group) <= most_items and p.tokens + p.cost(group) <= most_tokens)
        pack = next(fits, None)
        if pack is None:
            pack = _Pack()
            found.append(pack)
        pack.add(group)
    return [p.items for p in found]


def _cut(group: Sequence[Item], most_items: int, most_tokens: int) -> list[list[Item]]:
    """One video's items in runs that each fit."""
    runs = [_Pack()]
    for item in group:
        full = len(runs[-1].items) >= most_items or runs[-1].tokens + runs[-1].cost([item]) > most_tokens
        if full and runs[-1].items:
            runs.append(_Pack())
        runs[-1].add([item])
    return [run.items for run in runs]
