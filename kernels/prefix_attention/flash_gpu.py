"""A segment as one call of torch's FlashAttention-2, which returns the log-sum-exp too.

A group's query heads of one key head stand beside one another as further query rows, as in `gemm`, so that each
program reads its keys once for all of them. What FlashAttention-2 has no form for goes to `gemm`.
"""

from __future__ import annotations

import torch

from .parts import by_token, gemm, grouped
from .segment import Groups


def takes(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: Groups) -> bool:
    """Whether FlashAttention-2 can do a segment: half precision, one width of at most 256, all or causal."""
    width = keys.shape[-1]
    whole = groups.visible is None or groups.causal
    square = not groups.causal or groups.tokens.shape[1] == keys.shape[2]
    kinds = query.dtype in (torch.float16, torch.bfloat16) and values.shape[-1] == width <= 256 and width % 8 == 0
    return whole and square and kinds


def flash_gpu(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: Groups, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `parts.Part`."""
    if not takes(query, keys, values, groups):
        return gemm(query, keys, values, groups, scale)
    held, each = groups.tokens.shape
    if groups.causal:
        rows = query.index_select(0, groups.gather).view(held, each, *query.shape[1:])
    else:
        rows = grouped(query, groups, keys.shape[1]).transpose(1, 2)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        rows, keys.transpose(1, 2), values.transpose(1, 2), None, None, rows.shape[1], keys.shape[2], 0.0,
        groups.causal, False, scale=scale,
    )  # fmt: skip
    if groups.causal:
        return out.flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)
    return by_token(out.transpose(1, 2), groups), by_token(lse, groups)
