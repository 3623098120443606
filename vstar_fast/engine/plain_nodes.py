"""Labels behind a prompt in a model's own cache: each path of their trie is a row behind a copy of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from vstar_fast.engine.plain_caches import NoRows
from vstar_fast.engine.plain_prompts import Held, PlainStack
from vstar_fast.models import memory

ROWS = 64
"""Labels read at once."""


class Trie(Protocol):
    """See `score.Trie`."""

    tokens: list[int]
    depths: list[int]
    parents: list[int]


def plain_nodes(stack: PlainStack, prompts: Sequence[Held], trees: Sequence[Any]) -> torch.Tensor:
    """Hidden states [sum of M, H] of the tries' inner nodes, each trie behind its prompt."""
    return torch.cat([_behind(stack, held, tree) for held, tree in zip(prompts, trees, strict=True)])


def _behind(stack: PlainStack, held: Held, tree: Trie) -> torch.Tensor:
    """Hidden states [M, H] of one trie's nodes behind their prompt."""
    found = held.hidden.new_empty(len(tree.tokens), len(held.hidden))
    paths = sorted(paths_of(tree.parents), key=len)
    rows = _fitting(stack, held)
    for part in [paths[i : i + rows] for i in range(0, len(paths), rows)]:
        for path, hidden in zip(part, _rows(stack, held, [[tree.tokens[n] for n in p] for p in part]), strict=True):
            found[path] = hidden[: len(path)]
    return found


def _fitting(stack: PlainStack, held: Held) -> int:
    """Labels read at once, each with its own copy of the prompt: half of what is free holds them."""
    most = memory.free_bytes(stack.lm.device) // 2
    return max(1, min(ROWS, int(most / max(1.0, stack.row_bytes(held.length)))))


def paths_of(parents: Sequence[int]) -> list[list[int]]:
    """Per leaf of a trie its nodes from the root's child on, counted from 0; `parents` count the root as 0."""
    inner = set(parents)
    paths = []
    for leaf in range(len(parents)):
        if leaf + 1 not in inner:
            path = [leaf]
            while parents[path[-1]]:
                path.append(parents[path[-1]] - 1)
            paths.append(path[::-1])
    return paths


def _rows(stack: PlainStack, held: Held, labels: Sequence[list[int]]) -> Iterator[torch.Tensor]:
    """Hidden states [n or more, H] of each label's tokens. What pads a row stands behind all that is read of it."""
    longest = max(map(len, labels))
    try:
        if held.cache is None or (longest > 1 and not stack.continues(held.ids, held.features, held.front)):
            raise NoRows("tokens do not go in behind a cache, or not several at once")
        cache = stack.gathered([(held.cache, [0] * len(labels))], 1)
    except NoRows:
        for label in labels:
            ids = torch.cat([held.ids, torch.tensor(label, device=held.ids.device)])
            yield stack.read(ids, held.features, len(label))[1]
        return
    ids = torch.tensor([[*label, *[0] * (longest - len(label))] for label in labels])
    yield from stack.behind(cache, ids, [held.next_position] * len(labels), held.rows)
