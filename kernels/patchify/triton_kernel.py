"""`patchify` in Triton: every byte of the frames is read once, every number written once, nothing in between.

One program owns BLOCK numbers of one row of the result: a patch, or a frame where no patches are made. It computes
where each of its numbers comes from,

    row     -> temporal group, square, place in the square
    column  -> channel, frame of the group, y, x

so writes are contiguous, and the bytes of a patch's line, which lie together, are read together.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from vstar_fast.kernels.launch import on

from .layout import Layout

BLOCK = 1024
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""Without fused sums, so that colours are rounded as the reference rounds them."""


@triton.jit
def _round(x):
    """To the nearest whole number, halves to the even one."""
    down = tl.floor(x)
    rest = x - down
    odd = (down.to(tl.int32) & 1) != 0
    return tl.where((rest > 0.5) | ((rest == 0.5) & odd), down + 1.0, down)


@triton.jit
def patchify_rows(
    frames, table, out, row_numbers, last, height, width, frame_stride, channel_stride, line_stride, pixel_stride,
    PATCH: tl.constexpr, TEMPORAL: tl.constexpr, MERGE: tl.constexpr, MATRIX: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """frames uint8 [F, C, H, W] by strides; table fp32: mean [C], std [C], matrix [3, 4]; out [rows, row_numbers]."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < row_numbers
    if PATCH > 0:
        wide = width // (PATCH * MERGE)
        square = row // (MERGE * MERGE)
        place = row % (MERGE * MERGE)
        left = (square % wide * MERGE + place % MERGE) * PATCH
        above = (square // wide % (height // (PATCH * MERGE)) * MERGE + place // MERGE) * PATCH
        group = square // wide // (height // (PATCH * MERGE))
        x = left + column % PATCH
        y = above + column // PATCH % PATCH
        frame = tl.minimum(group * TEMPORAL + column // (PATCH * PATCH) % TEMPORAL, last)
        channel = column // (PATCH * PATCH * TEMPORAL)
    else:
        x = column % width
        y = column // width % height
        channel = column // (width * height)
        frame = tl.zeros_like(column) + row
    at = frames + frame.to(tl.int64) * frame_stride + y * line_stride + x * pixel_stride
    if MATRIX:
        factors = table + 2 * CHANNELS + channel * 4
        value = tl.load(factors + 3, mask=inside, other=0.0)
        for c in tl.static_range(3):
            colour = tl.load(at + c * channel_stride, mask=inside, other=0).to(tl.float32)
            value += colour * tl.load(factors + c, mask=inside, other=0.0)
        value = tl.minimum(tl.maximum(_round(value), 0.0), 255.0)
    else:
        value = tl.load(at + channel * channel_stride, mask=inside, other=0).to(tl.float32)
    mean = tl.load(table + channel, mask=inside, other=0.0)
    std = tl.load(table + CHANNELS + channel, mask=inside, other=1.0)
    found = (value - mean) / std
    tl.store(out + row.to(tl.int64) * row_numbers + column, found.to(out.dtype.element_ty), mask=inside)


def run(frames: torch.Tensor, layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """As `reference.run`."""
    count, channels, height, width = frames.shape
    if layout.patch:
        groups = -(-count // layout.temporal)
        rows = groups * (height // layout.patch) * (width // layout.patch)
        numbers = channels * layout.temporal * layout.patch**2
    else:
        rows, numbers = count, channels * height * width
    out = torch.empty(rows, numbers, dtype=dtype, device=frames.device)
    with on(frames.device):
        patchify_rows[(rows, triton.cdiv(numbers, BLOCK))](
            frames, _table(layout, frames.device), out, numbers, count - 1, height, width, *frames.stride(),
            PATCH=layout.patch, TEMPORAL=layout.temporal, MERGE=layout.merge, MATRIX=layout.matrix is not None,
            CHANNELS=channels, BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
    return out if layout.patch else out.view(frames.shape)


_TABLES: dict[tuple[Layout, torch.device], torch.Tensor] = {}


def _table(layout: Layout, device: torch.device) -> torch.Tensor:
    """Mean, std and matrix on the device, copied once a layout."""
    key = (layout, device)
    if key not in _TABLES:
        _TABLES[key] = torch.tensor([*layout.mean, *layout.std, *(layout.matrix or ())], device=device)
    return _TABLES[key]


def _variant(kind: str, patch: int, temporal: int, merge: int, matrix: bool) -> dict[str, Any]:
    whole = ["row_numbers", "last", "height", "width", "frame_stride", "channel_stride", "line_stride", "pixel_stride"]
    constants = {"PATCH": patch, "TEMPORAL": temporal, "MERGE": merge, "MATRIX": matrix, "CHANNELS": 3, "BLOCK": BLOCK}
    return {
        "kernel": patchify_rows,
        "name": f"{kind}, patch {patch} x {temporal}, merge {merge}{', matrix' if matrix else ''}",
        "signature": {
            "frames": "*u8", "table": "*fp32", "out": f"*{kind}", **dict.fromkeys(whole, "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        "constexprs": constants,
        "options": OPTIONS,
    }  # fmt: skip


AOT = [
    _variant("bf16", 14, 2, 2, False),
    _variant("bf16", 16, 2, 2, True),
    _variant("fp16", 0, 1, 1, False),
    _variant("fp32", 14, 2, 2, False),
]
"""Variants that `bench/compile_kernels.py` compiles ahead of time."""
