"""The steps of a `DecodeState` as operators `vstar_fast::constrain_*`, so that torch.compile keeps them in its graphs.

The first five arguments of each are the fields of `backend.Rows`; the rows move in place.
"""

from __future__ import annotations

import math

import torch

from vstar_fast import backends

from . import checks
from .backend import Draw, Rows, load

Tensor = torch.Tensor
MOVED = ("state", "remaining", "step")


@torch.library.custom_op("vstar_fast::constrain_mask_", mutates_args=("logits",))
def mask_(
    host: Tensor, block: Tensor, state: Tensor, remaining: Tensor, step: Tensor, logits: Tensor, backend: str
) -> None:
    """-inf where a token is not legal; logits [B, V]."""
    if state.numel():
        load(backend).mask(Rows(host, block, state, remaining, step), logits)
    backends.ran("constrain", backend)


@torch.library.custom_op("vstar_fast::constrain_advance_", mutates_args=MOVED)
def advance_(
    host: Tensor, block: Tensor, state: Tensor, remaining: Tensor, step: Tensor, tokens: Tensor, strict: bool,
    backend: str,
) -> None:  # fmt: skip
    """Move each row by its token [B] int64; with `strict`, which must be on the CPU, a lost row is an error."""
    lost = load(backend).advance(Rows(host, block, state, remaining, step), tokens) if state.numel() else 0
    backends.ran("constrain", backend)
    if strict:
        checks.check_lost(lost, state, tokens)


@torch.library.custom_op("vstar_fast::constrain_sample_", mutates_args=MOVED)
def sample_(
    host: Tensor, block: Tensor, state: Tensor, remaining: Tensor, step: Tensor, logits: Tensor, seeds: Tensor,
    scale: float, top_p: int, top_k: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw a legal token for each row and move by it: (ids [B] int64, logprobs [B] fp32)."""
    ids = torch.full(state.shape, -1, dtype=torch.int64, device=state.device)
    logprobs = torch.full(state.shape, math.nan, dtype=torch.float32, device=state.device)
    if state.numel():
        draw = Draw(seeds.contiguous(), ids, logprobs, scale, top_p, top_k)
        load(backend).sample(Rows(host, block, state, remaining, step), logits, draw)
    backends.ran("constrain", backend)
    checks.check_drawn(ids)
    return ids, logprobs


@sample_.register_fake
def _(host, block, state, remaining, step, logits, seeds, scale, top_p, top_k, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return state.new_empty(state.shape, dtype=torch.int64), state.new_empty(state.shape, dtype=torch.float32)


@torch.library.custom_op("vstar_fast::constrain_forced_", mutates_args=MOVED)
def forced_(
    host: Tensor, block: Tensor, state: Tensor, remaining: Tensor, step: Tensor, most: int, advance: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Tokens that must follow, [B, most] int64 (-1 beyond the length), and lengths [B] int32."""
    tokens = torch.full((state.shape[0], most), -1, dtype=torch.int64, device=state.device)
    lengths = torch.zeros(state.shape, dtype=torch.int32, device=state.device)
    if state.numel():
        load(backend).forced(Rows(host, block, state, remaining, step), tokens, lengths, advance)
    backends.ran("constrain", backend)
    return tokens, lengths


@forced_.register_fake
def _(host, block, state, remaining, step, most, advance, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    tokens = state.new_empty((state.shape[0], most), dtype=torch.int64)
    return tokens, state.new_empty(state.shape, dtype=torch.int32)


@torch.library.custom_op("vstar_fast::constrain_fill", mutates_args=("out",))
def fill(
    host: Tensor, block: Tensor, state: Tensor, remaining: Tensor, step: Tensor, out: Tensor, backend: str
) -> None:
    """Legal tokens as bits [B, words] int32."""
    if state.numel():
        load(backend).fill(Rows(host, block, state, remaining, step), out, None)
    backends.ran("constrain", backend)
