"""Random streams that rows read at different places: a batch in which every row is at a step of its own."""

from __future__ import annotations

import torch

from .reference import GOLDEN, MIX_1, MIX_2, mix, shift_right, signed


def seeds_at(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Seeds [B] int64 whose step 0 is step `steps[b]` of `seeds[b]`, so that `sample(..., step=0)` draws as it would.

    A draw reads mix(mix(seed + GOLDEN) + (step + 1) * GOLDEN), and mix can be undone.
    """
    state = mix(seeds + signed(GOLDEN)) + steps * signed(GOLDEN)
    return _unmix(state) - signed(GOLDEN)


def _unmix(z: torch.Tensor) -> torch.Tensor:
    """The inverse of `mix` on int64 bit patterns."""
    z = _unshift(z, 31) * signed(pow(MIX_2, -1, 1 << 64))
    z = _unshift(z, 27) * signed(pow(MIX_1, -1, 1 << 64))
    return _unshift(z, 30)


def _unshift(z: torch.Tensor, by: int) -> torch.Tensor:
    """Undo z ^ (z >> by) for by above 21."""
    return z ^ shift_right(z, by) ^ shift_right(z, 2 * by)
