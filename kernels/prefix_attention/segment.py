"""What a group of query tokens sees: `Groups` (which tokens, which positions) and `Segment` (with keys and values)."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from vstar_fast.kernels.given import shown

from vstar_fast.errors import ModelError


class Groups:
    """G groups of query tokens, each with keys and values of its own. Made once a step, used by every layer.

    Args:
        tokens: [G, M] int64, the query tokens of each group; -1 is nobody.
        slots: [G] int64, group g reads keys[slots[g]]; None: keys[g].
        visible: int64 [G, M] or [G, 1]: a token sees the first so many positions. Or bool [G, M, P]: those.
            None: all of them.
        causal: token m of a group sees positions 0 to m, whatever `visible` says.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        slots: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        *,
        causal: bool = False,
    ) -> None:
        self.tokens = tokens
        self.slots = slots
        self.visible = visible
        self.causal = causal
        _check(tokens, slots, visible)
        self._bias: dict[tuple[int, int, torch.dtype], torch.Tensor | None] = {}

    def of(self, tokens: torch.Tensor, slots: torch.Tensor | None) -> Groups:
        """Groups of other tokens and slots that see what these see; both have one mask in memory."""
        made = Groups(tokens, slots, self.visible, causal=self.causal)
        made._bias = self._bias
        return made

    @cached_property
    def _held(self) -> tuple[torch.Tensor, ...]:
        given = (self.tokens, self.slots, None if self.causal else self.visible)
        return tuple(torch.empty(0) if x is None else x.contiguous() for x in given)

    @cached_property
    def addresses(self) -> tuple[tuple[int, int, int, int], int, int]:
        """((addresses of tokens, slots, counts, mask; 0 for none), members of the counts, of the mask) on a CPU."""
        tokens, slots, visible = self._held
        at = 0 if visible.numel() == 0 else visible.data_ptr()
        each = visible.shape[1] if at else 1
        masked = visible.dtype == torch.bool
        named = 0 if self.slots is None else slots.data_ptr()
        counts, mask = (0, at) if masked else (at, 0)
        return (tokens.data_ptr(), named, counts, mask), 1 if masked else each, each if masked else 1

    @cached_property
    def greatest(self) -> tuple[int, int]:
        """(the greatest token, the greatest slot) that is named; -1 for none. Waits for a GPU."""
        named = (self.tokens, self.tokens[:0] if self.slots is None else self.slots)
        tokens, slots = (int(x.max()) if x.numel() else -1 for x in named)
        return tokens, slots

    @cached_property
    def gather(self) -> torch.Tensor:
        """[G * M] int64: the token of each place; token 0 where there is nobody."""
        return self.tokens.clamp(min=0).flatten()

    @cached_property
    def filled(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """(places with a token or None for all, the tokens there)."""
        flat = self.tokens.flatten()
        there = flat >= 0
        return (None, flat) if bool(there.all()) else (there.nonzero()[:, 0], flat[there])

    def shows(self, positions: int) -> torch.Tensor | None:
        """Bool [G, M or 1, P]: what each token sees; None: everything."""
        device, tokens = self.tokens.device, self.tokens.shape[1]
        if self.causal:
            return torch.ones(tokens, positions, dtype=torch.bool, device=device).tril()[None]
        if self.visible is None or self.visible.dtype == torch.bool:
            return self.visible
        return torch.arange(positions, device=device) < self.visible[..., None]

    def bias(self, positions: int, heads: int, dtype: torch.dtype) -> torch.Tensor | None:
        """[G or 1, 1, M * heads or 1, P]: 0 where a token sees a position, -inf elsewhere; None: sees everything."""
        key = (positions, heads, dtype)
        if key not in self._bias:
            shown = self.shows(positions)
            if shown is not None:
                shown = shown[:, None] if shown.shape[1] == 1 else shown[:, None].repeat_interleave(heads, 2)
                hidden = torch.full((), -math.inf, dtype=dtype, device=shown.device)
                shown = torch.where(shown, torch.zeros((), dtype=dtype, device=shown.device), hidden)
            self._bias[key] = shown
        return self._bias[key]

    @cached_property
    def blind(self) -> torch.Tensor | None:
        """Bool [G, M or 1]: tokens that see nothing; None when there are none."""
        if self.causal or self.visible is None:
            return None
        none = ~self.visible.any(-1) if self.visible.dtype == torch.bool else self.visible <= 0
        return none if bool(none.any()) else None


def _check(tokens: torch.Tensor, slots: torch.Tensor | None, visible: torch.Tensor | None) -> None:
    if not isinstance(tokens, torch.Tensor) or tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ModelError(f"tokens of groups are {shown(tokens)}; they are int64 [G, M], -1 where there is nobody")
    if slots is not None and (slots.dtype != torch.int64 or slots.shape != tokens.shape[:1]):
        raise ModelError(
            f"slots are {slots.dtype} {tuple(slots.shape)} for {len(tokens)} groups; they are int64 [G], one a group"
        )
    if visible is None:
        return
    ndim = {torch.bool: 3, torch.int64: 2}.get(visible.dtype, 0)
    if visible.dim() != ndim or visible.shape[0] != len(tokens) or visible.shape[1] not in (1, tokens.shape[1]):
        raise ModelError(
            f"visible is {visible.dtype} {tuple(visible.shape)} for tokens {tuple(tokens.shape)}; it is int64 [G, M] "
            "or [G, 1], or bool [G, M, P]"
        )


class Segment(NamedTuple):
    """Keys [S, Hkv, P, D] and values [S, Hkv, P, Dv], and who sees them."""

    keys: torch.Tensor
    values: torch.Tensor
    groups: Groups
