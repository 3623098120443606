"""`constrain` on NVIDIA GPUs: launches on the current stream, no host reads, capturable by CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vstar_fast import _C
from vstar_fast.errors import BackendError

from .backend import Draw, Rows, logits_pointers


def _launch(function: Callable[..., Any], rows: Rows, *arguments: Any) -> None:
    with torch.cuda.device(rows.block.device):
        stream = torch.cuda.current_stream().cuda_stream
        try:
            function(rows.host.data_ptr(), rows.block.data_ptr(), rows.pointers(), *arguments, stream)
        except RuntimeError as error:
            raise BackendError(f"{error}; rebuild for this GPU with VSTAR_CUDA_ARCH") from None


def advance(rows: Rows, tokens: torch.Tensor) -> None:
    """Lost rows show in the state only: counting them would wait."""
    _launch(_C.constrain_advance_cuda, rows, tokens.data_ptr())


def mask(rows: Rows, logits: torch.Tensor) -> None:
    """-inf where a token is not legal."""
    _launch(_C.constrain_mask_cuda, rows, logits_pointers(logits))


def advance_mask(rows: Rows, logits: torch.Tensor, tokens: torch.Tensor, tickets: torch.Tensor) -> None:
    """Both in one launch; tickets [B] int32 are zeros, and are zeros again afterwards."""
    places = (tokens.data_ptr(), tickets.data_ptr(), logits_pointers(logits))
    _launch(_C.constrain_advance_mask_cuda, rows, *places)


def sample(rows: Rows, logits: torch.Tensor, draw: Draw) -> None:
    """Fill draw.ids and draw.logprobs, and move."""
    _launch(_C.constrain_sample_cuda, rows, logits_pointers(logits), draw.pointers())


def forced(rows: Rows, tokens: torch.Tensor, lengths: torch.Tensor, advance: bool) -> None:
    """Fill tokens [B, most] and lengths [B]."""
    _launch(_C.constrain_forced_cuda, rows, tokens.data_ptr(), lengths.data_ptr(), tokens.shape[1], advance)


def fill(rows: Rows, out: torch.Tensor, filled: torch.Tensor | None) -> None:  # noqa: ARG001 - writes every word
    """Fill the bits [B, words]."""
    _launch(_C.constrain_fill_cuda, rows, out.data_ptr(), out.stride(0))
