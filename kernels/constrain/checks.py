"""Checks of what a `DecodeState` is given; each error says what is wrong, which value, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vstar_fast.kernels.given import check_rows, shown
from vstar_fast.kernels.sample.settings import check_settings

from vstar_fast.errors import ConstrainError, ModelError

from .backend import LOST

if TYPE_CHECKING:
    from .state import DecodeState

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_logits(rows: DecodeState, logits: torch.Tensor) -> None:
    """Logits [B, V] of a type and layout that the kernels take."""
    fits = isinstance(logits, torch.Tensor) and logits.dim() == 2 and logits.dtype in DTYPES
    if not fits or logits.shape[0] != len(rows):
        raise ConstrainError(f"logits must be [{len(rows)}, {rows.vocabulary}] fp32, fp16 or bf16, not {shown(logits)}")
    if rows.vocabulary and logits.shape[1] != rows.vocabulary:
        raise ConstrainError(
            f"logits have {logits.shape[1]} columns, the vocabulary was made for {rows.vocabulary}; "
            f"use TokenVocab.from_hf(tokenizer, logits_size={logits.shape[1]})"
        )
    if logits.device != rows.state.device:
        raise ConstrainError(f"logits are on {logits.device}, the decode state is on {rows.state.device}")
    if logits.stride(1) != 1 and logits.numel():
        raise ConstrainError(f"logits have column stride {logits.stride(1)}; call .contiguous() on them first")
    if logits.shape[0] > 1 and logits.stride(0) < logits.shape[1]:
        raise ConstrainError(f"rows of logits overlap (batch stride {logits.stride(0)}); call .clone() first")


def check_tokens(rows: DecodeState, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [B] as contiguous int64."""
    check_rows("tokens", tokens, rows.state, ConstrainError, (torch.int64, torch.int32))
    return tokens if tokens.dtype == torch.int64 and tokens.is_contiguous() else tokens.long().contiguous()


def check_draw(rows: DecodeState, seeds: torch.Tensor, temperature: float, top_p: float, top_k: int) -> None:
    """Seeds and settings of a draw."""
    check_rows("seeds", seeds, rows.state, ConstrainError)
    check_settings(temperature, top_p, top_k, ConstrainError)


def check_bits(rows: DecodeState, out: torch.Tensor) -> None:
    """A bitmask [B, words] to write to."""
    shape = (len(rows), rows.words)
    fits = isinstance(out, torch.Tensor) and out.shape == shape and out.dtype == torch.int32
    if not fits or out.device != rows.state.device:
        raise ConstrainError(f"the bitmask must be int32 {shape} on {rows.state.device}, not {shown(out)}")
    if out.stride(1) != 1 or (out.shape[0] > 1 and out.stride(0) < out.shape[1]):
        raise ConstrainError(f"the bitmask has strides {out.stride()}; its columns must lie side by side")


def check_lost(lost: int | None, state: torch.Tensor, tokens: torch.Tensor) -> None:
    """No row was lost by these tokens; None: the backend does not wait to know."""
    if lost is None:
        raise ConstrainError("strict=True would wait for the GPU; look at `lost` when it suits you")
    if lost:
        row = int((state == LOST).nonzero()[-1])
        raise ConstrainError(
            f"row {row} took token {int(tokens[row])}, which its grammar or its budget does not allow there; "
            "mask the logits before sampling"
        )


def check_drawn(ids: torch.Tensor) -> None:
    """Every row has a token, where looking does not make a GPU wait."""
    if ids.device.type == "cpu" and (ids < 0).any():
        rows = ", ".join(map(str, (ids < 0).nonzero()[:8, 0].tolist()))
        raise ModelError(f"legal logits of row {rows} are NaN, +inf or all -inf; check the model and its inputs")
