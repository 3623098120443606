"""Attention behind any mask, a block of queries at a time, over the blocks of keys that one of them sees.

What no token of a block sees is neither computed nor in a mask, so that a sliding window costs its length a token and
not the pack's. Which blocks these are is found once a tree on the host.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from .tree import Tree

BLOCK = 256
"""Tokens a block; of 64 to 512 the fastest on a CPU in bf16, and within a tenth of the fastest in fp32."""


class Band(NamedTuple):
    """What a block of queries sees: these blocks of keys, and of them what `mask` bool [t, T] says; None: all."""

    blocks: tuple[int, ...]
    mask: torch.Tensor | None


_MADE: WeakKeyDictionary[Tree, dict[tuple[str, int | None], list[Band]]] = WeakKeyDictionary()


def bands(tree: Tree, device: torch.device, window: int | None) -> list[Band]:
    """The bands of a tree, on `device`; kept for as long as the tree: every layer asks for the same ones."""
    made = _MADE.setdefault(tree, {})
    key = (str(device), window)
    if key not in made:
        starts = range(0, tree.tokens, BLOCK)
        made[key] = [_band(tree.rows(at, min(at + BLOCK, tree.tokens), window), device) for at in starts]
    return made[key]


def _band(rows: torch.Tensor, device: torch.device) -> Band:
    parts = rows.split(BLOCK, 1)
    blocks = tuple(i for i, part in enumerate(parts) if bool(part.any()))
    mask = torch.cat([parts[i] for i in blocks], 1)
    return Band(blocks, None if bool(mask.all()) else mask.to(device))


def sdpa(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tree: Tree, scale: float,
    sinks: torch.Tensor | None = None, window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `tree_attention`, torch's attention a block at a time; sinks are a key that all see, with a value of zeros."""
    made = bands(tree, query.device, window)
    times = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1)
    ends: tuple[torch.Tensor, ...] = ()
    if sinks is not None:
        query, keys, *end = _sunk(query, keys, values, sinks / scale)
        ends = tuple(end)
        made = [b._replace(mask=b.mask if b.mask is None else pad(b.mask, (0, 1), value=True)) for b in made]
    q, k, v = ([t.transpose(0, 1)[None] for t in x.split(BLOCK)] for x in (query, keys, values))
    k_end, v_end = ([t.transpose(0, 1)[None]] for t in ends) if ends else ([], [])
    outs = []
    for rows, band in zip(q, made, strict=True):
        seen, given = (torch.cat([x[i] for i in band.blocks] + end, 2) for x, end in ((k, k_end), (v, v_end)))
        outs.append(scaled_dot_product_attention(rows, seen, given, attn_mask=band.mask, scale=scale))
    return torch.cat(outs, 2)[0].transpose(0, 1)


def _sunk(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Query and keys one number wider (seven more keep rows aligned), and the key and value [1, Hq, D] of sinks."""
    width = query.shape[-1]
    query, keys = pad(query, (0, 8)), pad(keys, (0, 8))
    one = torch.zeros_like(query[:1]).index_fill(2, torch.tensor([width], device=query.device), 1)
    return query + one, keys, one * sinks.to(keys.dtype)[:, None], torch.zeros_like(values[:1])
