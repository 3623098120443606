"""`sample` as one fused Triton kernel; the arithmetic is the reference's, integer for integer.

One program owns one row and reads it in blocks:

    pass 1   maximum, its lowest place, NaN          |block|block|block| ...
    pass 2   sum of weights, sum of exp(x - max)     |block|block|block| ...
    pass 3   blocks until the running sum passes the target, then one scan inside that block
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from vstar_fast.kernels.launch import on

from .reference import EXP2_COEFFICIENTS, GOLDEN, MIX_1, MIX_2, WEIGHT_BITS, exponent_scale, signed

BLOCK, WARPS = 2048, 16

_C0, _C1, _C2, _C3, _C4, _C5 = (tl.constexpr(value) for value in EXP2_COEFFICIENTS)
_GOLDEN, _MIX_1, _MIX_2 = (tl.constexpr(signed(value)) for value in (GOLDEN, MIX_1, MIX_2))
_LOW_31 = tl.constexpr((1 << 31) - 1)
_LIFT = tl.constexpr(WEIGHT_BITS - 24)


@triton.jit
def _shift_right(z, by: tl.constexpr):
    return (z >> by) & ((1 << (64 - by)) - 1)


@triton.jit
def _mix(z):
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


@triton.jit
def _scale_down(bits, total):
    b1, b0 = bits >> 31, bits & _LOW_31
    t1, t0 = total >> 31, total & _LOW_31
    return b1 * t1 + ((b1 * t0 + b0 * t1 + ((b0 * t0) >> 31)) >> 31)


@triton.jit
def _weights(x, top, scale):
    depth = (top - x) * scale
    depth = tl.where(depth < 63.0, depth, 63.0)
    whole = depth.to(tl.int32)
    rest = depth - whole.to(tl.float32)
    power = rest * _C5 + _C4
    power = power * rest + _C3
    power = power * rest + _C2
    power = power * rest + _C1
    power = power * rest + _C0
    return ((power * 16777216.0).to(tl.int64) << _LIFT) >> whole.to(tl.int64)


@triton.jit
def _load(row, start, V, BLOCK: tl.constexpr):
    """One block of a row in fp32, -inf beyond its end; `start + BLOCK` columns."""
    at = start + tl.arange(0, BLOCK)
    return tl.load(row + at, mask=at < V, other=float("-inf")).to(tl.float32)


@triton.jit
def sample_rows(
    logits, allowed, seeds, ids, logprobs, V, logits_stride, allowed_stride, step_key, scale,
    GREEDY: tl.constexpr, FILTERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """logits, allowed [B, V] (allowed = logits unless FILTERED); seeds, ids [B] int64; logprobs [B] fp32."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    allowed += row * allowed_stride

    top, place, raw_top, nans = float("-inf"), 0, float("-inf"), 0
    for start in range(0, V, BLOCK):
        x = _load(allowed, start, V, BLOCK)
        block_top, block_place = tl.max(x, axis=0, return_indices=True, return_indices_tie_break_left=True)
        place = tl.where(block_top > top, start + block_place, place)
        top = tl.maximum(top, block_top)
        raw = _load(logits, start, V, BLOCK) if FILTERED else x
        raw_top = tl.maximum(raw_top, tl.max(raw, axis=0))
        nans += tl.sum((raw != raw).to(tl.int32), axis=0)

    total, exp_sum = tl.zeros((), tl.int64), 0.0
    for start in range(0, V, BLOCK):
        x = _load(allowed, start, V, BLOCK)
        if not GREEDY:
            total += tl.sum(_weights(x, top, scale), axis=0)
        raw = _load(logits, start, V, BLOCK) if FILTERED else x
        exp_sum += tl.sum(tl.exp(raw - raw_top), axis=0)

    if not GREEDY:
        state = _mix(tl.load(seeds + row) + _GOLDEN) + step_key
        target = _scale_down(_shift_right(_mix(state), 2), total)
        start, before, block_sum = 0, tl.zeros((), tl.int64), tl.zeros((), tl.int64)
        block_sum += tl.sum(_weights(_load(allowed, 0, V, BLOCK), top, scale), axis=0)
        while (before + block_sum <= target) & (start + BLOCK < V):
            before += block_sum
            start += BLOCK
            block_sum = tl.sum(_weights(_load(allowed, start, V, BLOCK), top, scale), axis=0)
        running = before + tl.cumsum(_weights(_load(allowed, start, V, BLOCK), top, scale), axis=0)
        place = start + tl.sum((running <= target).to(tl.int32), axis=0)

    bad = (nans > 0) | (top == float("-inf")) | (top == float("inf"))
    place = tl.minimum(place, V - 1)
    chosen = tl.load(logits + place).to(tl.float32) - raw_top - tl.log(exp_sum)
    tl.store(ids + row, tl.where(bad, -1, place).to(tl.int64))
    tl.store(logprobs + row, tl.where(bad, float("nan"), chosen))


def run(
    logits: torch.Tensor, allowed: torch.Tensor, seeds: torch.Tensor, step: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.run`, for logits and allowed [B, V] in fp32, fp16 or bf16 with unit column stride."""
    rows, columns = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    greedy = temperature == 0.0
    with on(logits.device):
        sample_rows[(rows,)](
            logits, allowed, seeds, ids, logprobs, columns, logits.stride(0), allowed.stride(0),
            signed((step + 1) * GOLDEN % (1 << 64)), 0.0 if greedy else exponent_scale(temperature),
            GREEDY=greedy, FILTERED=allowed is not logits, BLOCK=min(BLOCK, triton.next_power_of_2(columns)),
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return ids, logprobs


AOT = [
    {
        "kernel": sample_rows,
        "signature": {
            "logits": f"*{kind}", "allowed": f"*{kind if not filtered else 'fp32'}", "seeds": "*i64", "ids": "*i64",
            "logprobs": "*fp32", "V": "i32", "logits_stride": "i64", "allowed_stride": "i64", "step_key": "i64",
            "scale": "fp32", "GREEDY": "constexpr", "FILTERED": "constexpr", "BLOCK": "constexpr",
        },
        "constexprs": {"GREEDY": greedy, "FILTERED": filtered, "BLOCK": BLOCK},
        "options": {"num_warps": WARPS, "enable_fp_fusion": False},
    }
    for kind, greedy, filtered in (("bf16", False, False), ("fp32", False, True), ("fp16", True, False))
]  # fmt: skip
"""Variants that `bench/compile_kernels.py` compiles ahead of time."""
