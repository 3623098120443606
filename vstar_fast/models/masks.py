"""Whether an attention mask that a body makes for its text stack says more than the stack does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SLIDING = "sliding_attention"


def own_mask(mask: Any, config: Any) -> Any:
    """`mask`, or None where it lets every token see itself and those before it, in sliding layers those in the window.

    `mask`: what a body passes as `attention_mask` for one row: a tensor, or one for each type of layer. `config`: of
    the text stack.
    """
    each = mask if isinstance(mask, dict) else {"": mask}
    plain = (_plain(given, name, config) for name, given in each.items())
    return None if all(plain) else mask


@contextmanager
def with_masks(config: Any) -> Iterator[None]:
    """Within, bodies make the masks that torch's attention would be given; attention of ours is given none."""
    before = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


def _plain(mask: Any, kind: str, config: Any) -> bool:
    if mask is None:
        return True
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 4):
        return False
    seen = mask if mask.dtype == torch.bool else mask.bool() if mask.ndim == 2 else mask == 0
    if mask.ndim == 2:
        return bool(seen.all())
    causal = torch.ones(seen.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    if kind == SLIDING:
        causal &= ~causal.tril(-int(config.sliding_window))
    return bool((seen == causal).all())
