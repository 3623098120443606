"""`prefix_attention` in plain torch: the specification of every backend.

Each token's scores over every segment it is in, side by side, one softmax over them in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .segment import Segment


def run(query: torch.Tensor, levels: Sequence[Sequence[Segment]], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `prefix_attention`: query [N, Hq, D] -> (output [N, Hq, Dv], log-sum-exp [N, Hq] fp32)."""
    segments = [segment for level in levels for segment in level]
    width = segments[0].values.shape[-1] if segments else query.shape[-1]
    out = query.new_zeros(*query.shape[:2], width)
    lse = torch.full(query.shape[:2], -math.inf, dtype=torch.float32, device=query.device)
    for token in range(query.shape[0]):
        seen = [_seen(token, segment) for segment in segments]
        keys = [k for k, _ in seen if k is not None]
        values = [v for _, v in seen if v is not None]
        if sum(k.shape[1] for k in keys):
            out[token], lse[token] = _attend(query[token], torch.cat(keys, 1), torch.cat(values, 1), scale)
    return out, lse


def _seen(token: int, segment: Segment) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Keys [Hkv, p, D] and values that the token sees in a segment; None when it is not in it."""
    groups = segment.groups
    places = (groups.tokens == token).nonzero()
    if not len(places):
        return None, None
    group, member = places[0].tolist()
    slot = group if groups.slots is None else int(groups.slots[group])
    keys, values = segment.keys[slot], segment.values[slot]
    shown = groups.shows(keys.shape[1])
    if shown is not None:
        row = shown[group if shown.shape[0] > 1 else 0, member if shown.shape[1] > 1 else 0]
        keys, values = keys[:, row], values[:, row]
    return keys, values


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token [Hq, D] over keys [Hkv, p, D] and values: (output [Hq, Dv], log-sum-exp [Hq])."""
    times = query.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(times, 0).float(), values.repeat_interleave(times, 0).float()
    scores = (keys @ query.float()[..., None])[..., 0] * scale
    return (scores.softmax(-1)[:, None] @ values)[:, 0].to(query.dtype), scores.logsumexp(-1)
