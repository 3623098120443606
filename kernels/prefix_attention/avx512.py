"""`prefix_attention` in C++ on processors with AVX-512, fp32: keys and values are read where they are, once a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vstar_fast.kernels.given import address

from vstar_fast.errors import ModelError

from .parts import by_rows
from .segment import Segment


def run(query: torch.Tensor, levels: Sequence[Sequence[Segment]], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.run`, for fp32. Raises ModelError for a token that a level names twice."""
    from vstar_fast import _C

    query = by_rows(query)
    tokens, heads, width = query.shape
    seen = [[s for s in level if s.keys.shape[2] and s.groups.tokens.numel()] for level in levels]
    some = next((s for level in levels for s in level), None)
    key_heads, value_width = (heads, width) if some is None else (some.keys.shape[1], some.values.shape[-1])
    out = query.new_empty(tokens, heads, value_width)
    lse, sums = query.new_empty(2, tokens, heads)
    held: list[torch.Tensor] = []  # until the call is over
    try:
        _C.prefix_attention_cpu(
            address(query),
            out.data_ptr(),
            lse.data_ptr(),
            sums.data_ptr(),
            query.stride()[:2],
            (tokens, heads, key_heads, width, value_width),
            scale,
            [[_arguments(s, held) for s in level] for level in seen if level],
            torch.get_num_threads(),
        )
    except ValueError as error:
        raise ModelError(f"prefix_attention: {error}") from None
    return out, lse


def _arguments(segment: Segment, held: list[torch.Tensor]) -> tuple[Any, ...]:
    """What the binding takes of one segment."""
    keys, values, groups = by_rows(segment.keys), by_rows(segment.values), segment.groups
    held += [keys, values]
    count, members = groups.tokens.shape
    addresses, shown_members, mask_members = groups.addresses
    sizes = (count, members, keys.shape[2], shown_members, mask_members)
    strides = (*keys.stride()[:3], *values.stride()[:3])
    return address(keys), address(values), strides, *addresses, sizes, groups.causal
