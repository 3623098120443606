"""`constrain` on the CPU, in C++: rows shared out to threads where that pays."""

from __future__ import annotations

import torch
from vstar_fast.kernels.given import address

from vstar_fast import _C

from .backend import Draw, Rows, logits_pointers


def advance(rows: Rows, tokens: torch.Tensor) -> int:
    """Rows lost by these tokens."""
    return _C.constrain_advance_cpu(rows.block.data_ptr(), rows.pointers(), address(tokens))


def mask(rows: Rows, logits: torch.Tensor) -> None:
    """-inf where a token is not legal."""
    threads = torch.get_num_threads()
    _C.constrain_mask_cpu(rows.block.data_ptr(), rows.pointers(), logits_pointers(logits), threads)


def sample(rows: Rows, logits: torch.Tensor, draw: Draw) -> None:
    """Fill draw.ids and draw.logprobs, and move."""
    threads = torch.get_num_threads()
    _C.constrain_sample_cpu(rows.block.data_ptr(), rows.pointers(), logits_pointers(logits), draw.pointers(), threads)


def forced(rows: Rows, tokens: torch.Tensor, lengths: torch.Tensor, advance: bool) -> None:
    """Fill tokens [B, most] and lengths [B]."""
    outputs = (tokens.data_ptr(), lengths.data_ptr(), tokens.shape[1])
    _C.constrain_forced_cpu(rows.block.data_ptr(), rows.pointers(), *outputs, advance)


def fill(rows: Rows, out: torch.Tensor, filled: torch.Tensor | None) -> None:
    """Fill the bits [B, words]; `filled` [B] remembers what each row holds."""
    memory = 0 if filled is None else filled.data_ptr()
    _C.constrain_fill_cpu(rows.block.data_ptr(), rows.pointers(), address(out), out.stride(0), memory)
