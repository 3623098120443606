"""`prefix_attention` segment by segment: all rows of a group against its keys in one product, then merged.

The query heads of one key head stand beside one another as further query rows, so keys and values are never
repeated: group g, key head h multiply a [M * Hq / Hkv, D] block with a [P, D] block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from .segment import Groups, Segment

Part = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Groups, float], tuple[torch.Tensor, torch.Tensor]]
"""(query [N, Hq, D], keys [G, Hkv, P, D], values, groups, scale) -> (output [G * M, Hq, Dv], lse [G * M, Hq])."""
MOST_SCORES = 1 << 26
"""Scores held at once by `gemm`."""


def run_parts(
    part: Part, query: torch.Tensor, levels: Sequence[Sequence[Segment]], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.run`, with `part` for one segment."""
    seen = [[s for s in level if s.keys.shape[2] and s.groups.tokens.numel()] for level in levels]
    found = [_level(part, query, level, scale) for level in seen if level]
    if not found:
        width = next((s.values.shape[-1] for level in levels for s in level), query.shape[-1])
        return query.new_zeros(*query.shape[:2], width), _blind(query)
    out, lse = found[0]
    for other, other_lse in found[1:]:
        out, lse = merge(out, lse, other, other_lse)
    return out, lse


def merge(
    out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two results [N, Hq, Dv] over different keys, with their log-sum-exp [N, Hq], as one over both."""
    total = torch.logaddexp(lse, other_lse)
    weight = (other_lse - total).exp_().nan_to_num_()[..., None]
    return torch.lerp(out, other, weight.to(out.dtype)), total


def _level(
    part: Part, query: torch.Tensor, level: Sequence[Segment], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of every token over the one segment of this level that it is in."""
    whole: tuple[torch.Tensor, torch.Tensor] | None = None
    for keys, values, groups in level:
        if groups.slots is not None:
            keys, values = keys.index_select(0, groups.slots), values.index_select(0, groups.slots)
        out, lse = part(query, keys, values, groups, scale)
        if groups.blind is not None:
            lse = lse.view(*groups.tokens.shape, -1).masked_fill(groups.blind[..., None], -math.inf).flatten(0, 1)
        places, tokens = groups.filled
        if places is not None:
            out, lse = out[places], lse[places]
        if whole is None:
            empty = query.new_zeros(*query.shape[:2], values.shape[-1])
            whole = empty, _blind(query)
        whole[0][tokens], whole[1][tokens] = out, lse
    assert whole is not None
    if any(groups.blind is not None for _, _, groups in level):
        whole[0].masked_fill_((whole[1] == -math.inf)[..., None], 0.0)
    return whole


def _blind(query: torch.Tensor) -> torch.Tensor:
    """The log-sum-exp of tokens that see nothing."""
    return torch.full(query.shape[:2], -math.inf, dtype=torch.float32, device=query.device)


def by_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the numbers of a row side by side, as torch's fused attention for CPUs takes for granted."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def grouped(query: torch.Tensor, groups: Groups, heads: int) -> torch.Tensor:
    """Query [N, Hq, D] -> [G, Hkv, M * Hq / Hkv, D]."""
    held, each = groups.tokens.shape
    rows = query.index_select(0, groups.gather)
    return rows.view(held, each, heads, -1, query.shape[-1]).transpose(1, 2).flatten(2, 3)


def by_token(out: torch.Tensor, groups: Groups) -> torch.Tensor:
    """[G, Hkv, M * R, ...] -> [G * M, Hkv * R, ...]."""
    held, each = groups.tokens.shape
    return out.unflatten(2, (each, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def gemm(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: Groups, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A segment as two batched matrix products, on any device; softmax in fp32."""
    heads, positions = keys.shape[1:3]
    rows = grouped(query, groups, heads) * scale
    bias = groups.bias(positions, query.shape[1] // heads, torch.float32)
    step = max(1, MOST_SCORES // max(1, keys.shape[0] * heads * positions))
    found = []
    for start in range(0, rows.shape[2], step):
        scores = (rows[:, :, start : start + step] @ keys.transpose(-1, -2)).float()
        if bias is not None:
            scores += bias if bias.shape[2] == 1 else bias[:, :, start : start + step]
        top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        out = (weights / total.clamp(min=1e-38)).to(values.dtype) @ values
        found.append((out, (top + total.log())[..., 0]))
    out, lse = (torch.cat(x, 2) for x in zip(*found, strict=True))
    return by_token(out, groups), by_token(lse, groups)


def flash_cpu(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: Groups, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A segment as one call of torch's fused attention for CPUs, which returns the log-sum-exp too."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if values.shape[-1] != keys.shape[-1]:
        return gemm(query, keys, values, groups, scale)
    keys, values = by_rows(keys), by_rows(values)
    if groups.causal:
        held, each = groups.tokens.shape
        times = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1)
        rows = query.index_select(0, groups.gather).view(held, each, *query.shape[1:]).transpose(1, 2)
        out, lse = attend(rows, keys, values, 0.0, True, scale=scale)
        return out.transpose(1, 2).flatten(0, 1), lse.float().transpose(1, 2).flatten(0, 1)
    heads, positions = keys.shape[1:3]
    bias = groups.bias(positions, query.shape[1] // heads, query.dtype)
    out, lse = attend(grouped(query, groups, heads), keys, values, 0.0, False, attn_mask=bias, scale=scale)
    return by_token(out, groups), by_token(lse.float(), groups)
