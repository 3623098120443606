"""`sample` in C++ on the CPU: rows shared out to threads, loops vectorised by the compiler."""

from __future__ import annotations

import torch

from .reference import exponent_scale


def run(
    logits: torch.Tensor, allowed: torch.Tensor, seeds: torch.Tensor, step: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.run`, for fp32 logits and allowed [B, V] with unit column stride."""
    from vstar_fast import _C

    rows, columns = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device="cpu")
    logprobs = torch.empty(rows, dtype=torch.float32, device="cpu")
    _C.sample_cpu(
        logits.data_ptr(),
        allowed.data_ptr(),
        seeds.data_ptr(),
        ids.data_ptr(),
        logprobs.data_ptr(),
        rows,
        columns,
        logits.stride(0),
        allowed.stride(0),
        step,
        0.0 if temperature == 0.0 else exponent_scale(temperature),
        torch.get_num_threads(),
    )
    return ids, logprobs
