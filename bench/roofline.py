"""What this machine can do at best, measured: matrix products and memory; and what that makes of a generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Peak(NamedTuple):
    """Floating-point operations a second of a large matrix product, and bytes a second of a large read."""

    flops: float
    bandwidth: float


def measure(device: str, dtype: Any) -> Peak:
    """The peaks of the device, for one dtype and this process's threads."""
    import torch

    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = _fastest(lambda: a @ b, device)
    if device == "cpu" and torch.backends.mkldnn.is_available():  # oneDNN's product is the faster one on some
        seconds = min(seconds, _fastest(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""), device))
    big = torch.zeros((1 << 30 if device == "cuda" else 1 << 27) // 4, device=device)
    read = _fastest(big.sum, device)
    return Peak(2 * size**3 / seconds, big.nbytes / read)


def _fastest(work: Callable[[], Any], device: str, times: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    import torch

    taken = []
    for _ in range(times):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


class Work(NamedTuple):
    """What a generation must do: tokens prefilled, steps, rows of a step, and per token of keys and values bytes."""

    prefilled: int
    steps: int
    rows: int
    prompts: int
    prefix: int
    token_bytes: int


def least_seconds(model: Any, work: Work, peak: Peak) -> float:
    """The time that the products and the memory traffic of `work` take at `peak`: each prefix read once a step."""
    from vstar_fast.bench import language_models

    stack, head = language_models.matrix_flops(model)
    heads, width = model.config.num_attention_heads, model.config.hidden_size // model.config.num_attention_heads
    attended = 4.0 * heads * width * model.config.num_hidden_layers  # of one query and one key
    prefill = work.prefilled * (stack + attended * work.prefix / 2) + head * work.prompts
    own = work.steps / 2
    step_flops = work.rows * (stack + head + attended * (work.prefix + own))
    weights = (stack + head) / 2 * model.dtype.itemsize
    step_bytes = weights + work.token_bytes * (work.prompts * work.prefix + work.rows * own)
    step = max(step_flops / peak.flops, step_bytes / peak.bandwidth)
    return prefill / peak.flops + work.steps * step
