"""Sliding windows in a recorded step: masks that the step itself makes, over buffers that keep their addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vstar_fast.engine.plan import Slab
from vstar_fast.engine.store import PAGE
from vstar_fast.kernels.prefix_attention import Groups


class Window:
    """The levels of a step as layers of one window see them: groups of the step, with masks in place of counts.

    `prefixes`: what stands before the rows' own tokens, `pages`: the rows' pages, both as the step has them. Keys out
    of a window are read all the same: a recording knows no places.
    """

    def __init__(self, tokens: int, prefixes: Sequence[Slab], pages: Sequence[Slab]) -> None:
        self.tokens, self.prefixes, self.pages = tokens, prefixes, pages
        self._masked = [_masked(slab) for slab in (*prefixes, *pages)]
        self.levels = [[slab] for slab in self._masked]

    def update(self, before: torch.Tensor, stored: torch.Tensor, offsets: Sequence[torch.Tensor]) -> None:
        """Make the masks of a step: rows [N] have so many tokens before their pages, and in them; `offsets`: place of
        the first token of each group's prefix [G]."""
        lows = [
            (before + stored)[slab.groups.tokens.clamp(min=0)] - offset[:, None]
            for slab, offset in zip(self.prefixes, offsets, strict=True)
        ]
        lows += [(stored - n * PAGE)[:, None] for n in range(len(self.pages))]
        for slab, counted, low in zip(self._masked, (*self.prefixes, *self.pages), lows, strict=True):
            mask, count = slab.groups.visible, counted.groups.visible
            assert mask is not None and count is not None
            at = torch.arange(mask.shape[2], device=mask.device)
            mask.copy_((at > low[..., None] - self.tokens) & (at < count[..., None]))


def _masked(slab: Slab) -> Slab:
    groups = slab.groups
    mask = torch.zeros(*groups.tokens.shape, slab.stop, dtype=torch.bool, device=groups.tokens.device)
    return Slab(slab.arena, slab.rows, slab.start, slab.stop, Groups(groups.tokens, groups.slots, mask))
