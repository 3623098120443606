"""A prompt whose tokens see others behind them: levels by the mask of its row, a block of tokens at a time."""

from __future__ import annotations

import torch

from vstar_fast.engine.chunked_prefill import Prompt
from vstar_fast.engine.plan import Slab
from vstar_fast.engine.store import Node
from vstar_fast.kernels.prefix_attention import Groups

BLOCK = 256
"""Tokens that are one group, and read nothing that none of them sees."""


def levels(prompt: Prompt, seen: torch.Tensor, device: torch.device) -> list[list[Slab]]:
    """What the prompt's t tokens see by `seen` [t, T]: of each node before them, and of their own."""
    found, place = [], 0
    for node in prompt.seen:
        found.append(_slabs(node, 0, seen[:, place : place + node.length], device))
        place += node.length
    return [*found, _slabs(prompt.node, prompt.start, seen[:, place:], device)]


def _slabs(node: Node, start: int, seen: torch.Tensor, device: torch.device) -> list[Slab]:
    """Of positions `start` on of a node, those that tokens see by `seen` [t, positions]."""
    found = []
    for first, rows in zip(range(0, len(seen), BLOCK), seen.split(BLOCK), strict=True):
        columns = rows.any(0).nonzero()[:, 0].tolist()
        if columns:
            low, high = columns[0], columns[-1] + 1
            tokens = torch.arange(first, first + len(rows), device=device)[None]
            groups = Groups(tokens, None, rows[None, :, low:high].to(device))
            found.append(Slab(node.arena, slice(node.slot, node.slot + 1), start + low, start + high, groups))
    return found
