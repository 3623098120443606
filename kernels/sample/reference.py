"""`sample` in plain torch: the specification of every backend.

The draw is made of integers, so that it is the same on every backend, device and batch:

    weight  w[v] = 2^(-d), d = (max - logit[v]) * log2(e) / temperature, rounded down to 1 / 2^40  (int64)
    bits    62 bits of splitmix64 at (row's seed, step)
    target  floor(bits * sum(w) / 2^62)
    id      the first v whose running sum of weights exceeds the target

`2^(-d)` is a polynomial of separate fp32 multiplications and additions (never fused), which IEEE 754 rounds
alike everywhere. A token more than 2^40 times less likely than the likeliest one is never drawn.
"""

from __future__ import annotations

import math

import torch

EXP2_COEFFICIENTS = (
    0.9999999403953552,
    -0.6931421756744385,
    0.24017158150672913,
    -0.05527813360095024,
    0.009186874143779278,
    -0.0009381164563819766,
)
"""2^-f for f in [0, 1), to 2.5e-7 of its value; fp32 numbers, lowest power first."""

WEIGHT_BITS = 40
"""A weight of 1 stands for 2^-WEIGHT_BITS of the likeliest token."""

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64."""


def signed(value: int) -> int:
    """A 64-bit pattern as the int64 that holds it."""
    return value - (1 << 64) if value >= 1 << 63 else value


def mix(z: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64 bit patterns."""
    z = (z ^ shift_right(z, 30)) * signed(MIX_1)
    z = (z ^ shift_right(z, 27)) * signed(MIX_2)
    return z ^ shift_right(z, 31)


def shift_right(z: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift of int64 bit patterns."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def stream_bits(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """62 random bits [B] int64 for seeds [B] int64 at a step: each seed is a stream of its own."""
    state = mix(seeds + signed(GOLDEN)) + signed((step + 1) * GOLDEN % (1 << 64))
    return shift_right(mix(state), 2)


def scale_down(bits: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """floor(bits * total / 2^62), exact, for 62-bit `bits` and totals below 2^62; both [B] int64."""
    low = (1 << 31) - 1
    b1, b0, t1, t0 = bits >> 31, bits & low, total >> 31, total & low
    return b1 * t1 + ((b1 * t0 + b0 * t1 + ((b0 * t0) >> 31)) >> 31)


def exponent_scale(temperature: float) -> float:
    """log2(e) / temperature as the fp32 number all backends multiply with."""
    return float(torch.tensor(math.log2(math.e) / temperature, dtype=torch.float32, device="cpu"))


def weights(logits: torch.Tensor, top: torch.Tensor, temperature: float) -> torch.Tensor:
    """[B, V] int64 weights of fp32 logits [B, V] below their row maximum `top` [B, 1]."""
    depth = (top - logits) * exponent_scale(temperature)
    depth = torch.where(depth < 63.0, depth, 63.0)
    whole = depth.to(torch.int32)
    rest = depth - whole.to(torch.float32)
    power = torch.full_like(rest, EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        power = power.mul_(rest).add_(coefficient)
    fraction = (power * float(1 << 24)).to(torch.int64)
    return (fraction << (WEIGHT_BITS - 24)) >> whole


def keep_top(logits: torch.Tensor, temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    """fp32 logits [B, V] with -inf where top-k (ties kept), then top-p at `temperature`, leave a token out."""
    if 0 < top_k < logits.shape[-1]:
        floor = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -math.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        share = (ordered / temperature).softmax(dim=-1)
        beyond = share.cumsum(dim=-1, dtype=torch.float64) - share >= top_p
        beyond[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)
    return logits


def run(
    logits: torch.Tensor, allowed: torch.Tensor, seeds: torch.Tensor, step: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from `allowed` (= fp32 `logits`, or with -inf where filtered), both [B, V]; see the module's head."""
    top = allowed.amax(dim=-1, keepdim=True)
    if temperature == 0.0:
        places = torch.arange(logits.shape[-1], device=logits.device)
        ids = torch.where(allowed == top, places, logits.shape[-1]).amin(dim=-1)
    else:
        running = weights(allowed, top, temperature).cumsum(dim=-1)
        target = scale_down(stream_bits(seeds, step), running[:, -1])
        ids = torch.searchsorted(running, target[:, None], right=True)[:, 0]
    bad = logits.isnan().any(dim=-1) | top[:, 0].isinf()
    ids = ids.clamp(max=logits.shape[-1] - 1)
    chosen = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return torch.where(bad, -1, ids), torch.where(bad, math.nan, chosen)
