"""Whether an attention mask that a body makes for its text stack says more than the stack does by itself."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from vstar_fast.models.modules import attending_by

SLIDING = "sliding_attention"


def own_mask(mask: Any, config: Any) -> Any:
    """`mask`, or None where it lets every token see itself and those before it, in sliding layers those in the window.

    `mask`: what a body passes as `attention_mask` for one row: a tensor, or one for each type of layer. `config`: of
    the text stack.
    """
    each = mask if isinstance(mask, dict) else {"": mask}
    plain = (_plain(given, name, config) for name, given in each.items())
    return None if all(plain) else mask


def with_masks(text_model: Any) -> AbstractContextManager[None]:
    """Within, bodies make the masks that torch's attention would be given; attention of ours is given none."""
    return attending_by(text_model, "sdpa")


def causal(tokens: int, window: int | None = None) -> torch.Tensor:
    """Bool [T, T]: each token sees itself and those before it, within the window if there is one."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return seen if window is None else seen & ~seen.tril(-window)


def _plain(mask: Any, kind: str, config: Any) -> bool:
    if mask is None:
        return True
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 4):
        return False
    seen = mask if mask.dtype == torch.bool else mask.bool() if mask.ndim == 2 else mask == 0
    if mask.ndim == 2:
        return bool(seen.all())
    if seen.shape[-2] != seen.shape[-1]:
        return False
    window = int(config.sliding_window) if kind == SLIDING else None
    return bool((seen == causal(seen.shape[-1], window).to(mask.device)).all())
