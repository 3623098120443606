"""Segments of random keys, and attention straight from its definition."""

import math

import torch
from vstar_fast.kernels.prefix_attention import Segment


def segment(groups, positions, heads=2, width=8, slots=None, seed=0, dtype=torch.float32, value_width=None):
    made = torch.Generator().manual_seed(seed)
    size = (slots or groups.tokens.shape[0], heads, positions)
    keys, values = (torch.randn(*size, w, generator=made) for w in (width, value_width or width))
    return Segment(keys.to(dtype), values.to(dtype), groups)


def dense(query, levels, scale):
    """One softmax a token over everything it sees, straight from the definition."""
    out, lse = torch.zeros_like(query), torch.full(query.shape[:2], -math.inf)
    for t in range(len(query)):
        keys, values = [], []
        for keys_, values_, groups in (s for level in levels for s in level):
            for g, m in (groups.tokens == t).nonzero().tolist():
                slot = g if groups.slots is None else int(groups.slots[g])
                positions = keys_.shape[2]
                if groups.causal:
                    seen = torch.arange(positions) <= m
                elif groups.visible is None:
                    seen = torch.ones(positions, dtype=torch.bool)
                elif groups.visible.dtype == torch.bool:
                    seen = groups.visible[g, m]
                else:
                    seen = torch.arange(positions) < groups.visible[g, m if groups.visible.shape[1] > 1 else 0]
                keys.append(keys_[slot][:, seen])
                values.append(values_[slot][:, seen])
        times = query.shape[1] // keys[0].shape[0] if keys else 1
        for h in range(query.shape[1]):
            if keys and sum(k.shape[1] for k in keys):
                k, v = torch.cat([k[h // times] for k in keys]), torch.cat([v[h // times] for v in values])
                scores = k @ query[t, h] * scale
                out[t, h], lse[t, h] = scores.softmax(-1) @ v, scores.logsumexp(-1)
    return out, lse
