"""`tree_attention` in plain torch: the specification of every backend."""

from __future__ import annotations

import torch

from .tree import Tree


def run(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tree: Tree, scale: float,
    sinks: torch.Tensor | None = None, window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """All scores in fp32, those not seen left out of the softmax, sinks in it."""
    times = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(times, 1).float(), values.repeat_interleave(times, 1).float()
    scores = torch.einsum("nhd,mhd->hnm", query.float(), keys) * scale
    scores = scores.masked_fill(~tree.mask(query.device, window), -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[:, None, None].expand(-1, len(query), 1)], -1)
    weights = scores.softmax(-1)[..., : len(keys)]
    return torch.einsum("hnm,mhd->nhd", weights, values).to(query.dtype)
