"""`sample`: draw the next token of every row, each row from a random stream of its own.

A sample depends only on the row's logits, its seed, the step and the settings: neither the other rows nor the
batch size, the device or the backend changes it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from vstar_fast.kernels.given import address, check_rows, shown

from vstar_fast import backends
from vstar_fast.errors import ConfigError, ModelError

from .settings import check_settings

__all__ = ["sample"]

MAX_VOCABULARY = 1 << 21


def sample(
    logits: torch.Tensor,
    seeds: torch.Tensor,
    step: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one id a row from softmax(logits / temperature), by inverse CDF in vocabulary order.

    Args:
        logits: [B, V] fp32, fp16 or bf16, any batch stride.
        seeds: [B] int64 on the same device; one stream a row, the same at every step.
        step: position in the streams, from 0; never use one twice for the same seed.
        temperature: 0 is greedy (the lowest id wins a tie), else at least 1e-4.
        top_p: keep the likeliest tokens that together have at least this probability; 1 keeps all.
        top_k: keep the k likeliest tokens (and ties with the last); 0 keeps all.
        backend: "auto", "cpp", "triton" or "reference"; the ids are the same on all.

    Returns:
        (ids [B] int64, logprobs [B] fp32); a logprob is the log-softmax of the logits as given, neither scaled
        nor filtered. A row with NaN or +inf, or with nothing but -inf, is a ModelError that names it; on a GPU,
        which is not waited for, it gets id -1 and logprob NaN instead.
    """
    if torch.compiler.is_compiling():
        from . import library

        return library.sample(logits, seeds, step, temperature, top_p, top_k, backend)
    return draw(logits, seeds, step, temperature, top_p, top_k, backend)


def draw(
    logits: torch.Tensor,
    seeds: torch.Tensor,
    step: int,
    temperature: float,
    top_p: float,
    top_k: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sample` outside of compiled graphs."""
    _check(logits, seeds, step, temperature, top_p, top_k)
    choice = backends.choose("sample", logits.device, backend)
    logits = logits if logits.stride(-1) == 1 or logits.numel() == 0 else logits.contiguous()
    if choice.name != "triton":
        logits = logits.float()
    filtered = temperature > 0 and (top_p < 1.0 or 0 < top_k < logits.shape[1])
    allowed = _keep_top(logits.float(), temperature, top_p, top_k) if filtered else logits
    ids, logprobs = _BACKENDS[choice.name]()(logits, allowed, seeds.contiguous(), step, temperature)
    backends.ran("sample", choice.name)
    if ids.device.type == "cpu" and (ids < 0).any():
        rows = ", ".join(map(str, (ids < 0).nonzero()[:8, 0].tolist()))
        raise ModelError(f"logits of row {rows} are NaN, +inf or all -inf; check the model's weights, dtype and inputs")
    return ids, logprobs


def _check(logits: torch.Tensor, seeds: torch.Tensor, step: int, temperature: float, top_p: float, top_k: int) -> None:
    fits = isinstance(logits, torch.Tensor) and logits.layout is torch.strided and logits.dim() == 2
    if not fits or logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ConfigError(f"logits must be [B, V] fp32, fp16 or bf16, not {shown(logits)}")
    if not 0 < logits.shape[1] <= MAX_VOCABULARY:
        raise ConfigError(f"logits have {logits.shape[1]} columns; sample takes 1 to {MAX_VOCABULARY}")
    check_rows("seeds", seeds, logits, ConfigError)
    address(logits)
    if isinstance(step, float) or step < 0:
        raise ConfigError(f"step is {step}; steps count from 0")
    check_settings(temperature, top_p, top_k, ConfigError)


def _keep_top(logits: torch.Tensor, temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    from .reference import keep_top

    return keep_top(logits, temperature, top_p, top_k)


Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, float], tuple[torch.Tensor, torch.Tensor]]


def _reference() -> Run:
    from .reference import run

    return run


def _triton() -> Run:
    from .triton_kernel import run

    return run


def _cpp() -> Run:
    from .cpu import run

    return run


_BACKENDS: dict[str, Callable[[], Run]] = {"cpp": _cpp, "triton": _triton, "reference": _reference}
