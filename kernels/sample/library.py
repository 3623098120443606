"""`sample` as the operator `vstar_fast::sample`, so that torch.compile keeps it in its graphs."""

from __future__ import annotations

import torch


@torch.library.custom_op("vstar_fast::sample", mutates_args=())
def sample(
    logits: torch.Tensor,
    seeds: torch.Tensor,
    step: int,
    temperature: float,
    top_p: float,
    top_k: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `vstar_fast.ops.sample`, every argument by position."""
    from . import draw

    return draw(logits, seeds, step, temperature, top_p, top_k, backend)


@sample.register_fake
def _(logits, seeds, step, temperature, top_p, top_k, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.int64), logits.new_empty(rows, dtype=torch.float32)
