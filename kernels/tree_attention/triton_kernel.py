"""`tree_attention` in Triton: one pass forward and two back over the blocks of a tree's mask that hold anything.

What a prefix pass and a suffix pass would each compute and merge by log-sum-exp is one online softmax here. A program
owns

    forward    a block of query rows of one head       loops over the key blocks that they see
    keys_back  a block of keys of one key head         loops over the query blocks that see them, all heads of the key
    query_back a block of query rows of one head       loops as forward

A tile of the mask is `column <= row` and `row < end[column]`; see `blocks.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from vstar_fast.kernels.launch import on
from vstar_fast.kernels.prefix_attention.sinks import sinks_back, with_sinks
from vstar_fast.kernels.prefix_attention.tiles import power_of_two

from vstar_fast.errors import ModelError

from .blocks import Blocks, blocks
from .tree import Tree

LOG2_E, LN_2 = math.log2(math.e), math.log(2)


class Sizes(NamedTuple):
    """Query rows and key columns of a block, warps and stages of a program."""

    rows: int
    columns: int
    warps: int
    stages: int


def sizes(width: int, itemsize: int) -> Sizes:
    """64 x 64 is the least that wgmma multiplies and the most whose backward fits the registers of every card."""
    if itemsize > 2:
        return Sizes(32, 32, 4, 1)
    wide = power_of_two(width)
    return Sizes(64, 64 if wide <= 128 else 32, 4 if wide <= 64 else 8, 2)


@triton.jit
def _tile(base, token, stride, d, N, WIDTH: tl.constexpr):
    """Rows `token` of [N, WIDTH], zeros beyond either end."""
    at = base + token.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(at, mask=(token < N)[:, None] & (d < WIDTH)[None, :], other=0.0)


@triton.jit
def forward(
    query, keys, values, out, lse, end, first, listed, scale, N, query_token, query_head, key_token, key_head,
    value_token, value_head, HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """query, out [N, Hq, WIDTH]; keys, values [N, Hkv, WIDTH]; lse [Hq, N] of base 2; scale times log2(e)."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, d = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    q = _tile(query + head * query_head, row, query_token, d, N, WIDTH)
    keys += head // HEADS * key_head
    values += head // HEADS * value_head
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.range(tl.load(first + block), tl.load(first + block + 1)):
        column = tl.load(listed + i) * COLUMNS + tl.arange(0, COLUMNS)
        reach = tl.load(end + column, mask=column < N, other=0)
        k = _tile(keys, column, key_token, d, N, WIDTH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        shown = (column[None, :] <= row[:, None]) & (row[:, None] < reach[None, :])
        scores = tl.where(shown, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, axis=1)
        v = _tile(values, column, value_token, d, N, WIDTH)
        found = tl.dot(weights.to(v.dtype), v, found * shrink[:, None], input_precision=PRECISION)
        top = higher
    total = tl.where(total > 0, total, 1.0)
    heads = tl.num_programs(1)
    at = (row.to(tl.int64) * heads + head)[:, None] * WIDTH + d[None, :]
    mask = (row < N)[:, None] & (d < WIDTH)[None, :]
    tl.store(out + at, (found / total[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(lse + head * N + row, top + tl.log2(total), mask=row < N)


@triton.jit
def keys_back(
    query, keys, values, grad, lse, delta, key_grad, value_grad, end, first, listed, scale, true_scale, N,
    query_token, query_head, key_token, key_head, value_token, value_head, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """key_grad, value_grad [N, Hkv, WIDTH]; grad [N, Hq, WIDTH] contiguous; delta [Hq, N] = sum(grad * out)."""
    block, key_of = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column, d = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
    key_heads = tl.num_programs(1)
    k = _tile(keys + key_of * key_head, column, key_token, d, N, WIDTH)
    v = _tile(values + key_of * value_head, column, value_token, d, N, WIDTH)
    reach = tl.load(end + column, mask=column < N, other=0)
    to_k = tl.zeros([COLUMNS, BLOCK], tl.float32)
    to_v = tl.zeros([COLUMNS, BLOCK], tl.float32)
    start = tl.load(first + block)
    for i in tl.range(0, (tl.load(first + block + 1) - start) * HEADS):
        head = key_of * HEADS + i % HEADS
        row = tl.load(listed + start + i // HEADS) * ROWS + tl.arange(0, ROWS)
        q = _tile(query + head * query_head, row, query_token, d, N, WIDTH)
        g = _tile(grad + head * WIDTH, row, key_heads * HEADS * WIDTH, d, N, WIDTH)
        base = tl.load(lse + head * N + row, mask=row < N, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        shown = (column[:, None] <= row[None, :]) & (row[None, :] < reach[:, None])
        weights = tl.where(shown, tl.exp2(scores - base[None, :]), 0.0)
        to_v = tl.dot(weights.to(g.dtype), g, to_v, input_precision=PRECISION)
        less = tl.load(delta + head * N + row, mask=row < N, other=0.0)
        back = weights * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - less[None, :])
        to_k = tl.dot(back.to(q.dtype), q, to_k, input_precision=PRECISION)
    at = (column.to(tl.int64) * key_heads + key_of)[:, None] * WIDTH + d[None, :]
    mask = (column < N)[:, None] & (d < WIDTH)[None, :]
    tl.store(key_grad + at, (to_k * true_scale).to(key_grad.dtype.element_ty), mask=mask)
    tl.store(value_grad + at, to_v.to(value_grad.dtype.element_ty), mask=mask)


@triton.jit
def query_back(
    query, keys, values, grad, lse, delta, query_grad, end, first, listed, scale, true_scale, N,
    query_token, query_head, key_token, key_head, value_token, value_head, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """query_grad [N, Hq, WIDTH]; the rest as in `keys_back`."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, d = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    heads = tl.num_programs(1)
    q = _tile(query + head * query_head, row, query_token, d, N, WIDTH)
    g = _tile(grad + head * WIDTH, row, heads * WIDTH, d, N, WIDTH)
    base = tl.load(lse + head * N + row, mask=row < N, other=0.0)
    less = tl.load(delta + head * N + row, mask=row < N, other=0.0)
    keys += head // HEADS * key_head
    values += head // HEADS * value_head
    to_q = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.range(tl.load(first + block), tl.load(first + block + 1)):
        column = tl.load(listed + i) * COLUMNS + tl.arange(0, COLUMNS)
        reach = tl.load(end + column, mask=column < N, other=0)
        k = _tile(keys, column, key_token, d, N, WIDTH)
        v = _tile(values, column, value_token, d, N, WIDTH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        shown = (column[None, :] <= row[:, None]) & (row[:, None] < reach[None, :])
        weights = tl.where(shown, tl.exp2(scores - base[:, None]), 0.0)
        back = weights * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - less[:, None])
        to_q = tl.dot(back.to(k.dtype), k, to_q, input_precision=PRECISION)
    at = (row.to(tl.int64) * heads + head)[:, None] * WIDTH + d[None, :]
    mask = (row < N)[:, None] & (d < WIDTH)[None, :]
    tl.store(query_grad + at, (to_q * true_scale).to(query_grad.dtype.element_ty), mask=mask)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor | None, tree: Tree,
        scale: float,
    ) -> torch.Tensor:  # fmt: skip
        query, keys, values = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, keys, values))
        cut, options = _options(query, keys)
        b = blocks(tree, query.device, cut.rows, cut.columns)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = torch.empty(query.shape[1], len(query), device=query.device)
        if out.numel():
            with on(query.device):
                forward[(-(-len(query) // cut.rows), query.shape[1])](
                    query, keys, values, out, lse, b.end, b.of_query, b.keys, scale * LOG2_E, len(query),
                    *_strides(query, keys, values), **options,
                )  # fmt: skip
        if sinks is not None:
            out, natural = with_sinks(out, lse.t() * LN_2, sinks)
            lse = (natural * LOG2_E).t().contiguous()
        ctx.save_for_backward(query, keys, values, out, lse, sinks)
        ctx.blocks, ctx.scale = b, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        query, keys, values, out, lse, sinks = ctx.saved_tensors
        grad = grad_outputs[0].to(query.dtype).contiguous()
        delta = (grad.float() * out.float()).sum(-1).t().contiguous()
        grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, keys, values)]
        if out.numel():
            _launch_back(ctx.blocks, (query, keys, values, grad, lse, delta), grads, ctx.scale)
        to_sinks = None if sinks is None else sinks_back(sinks, out, lse.t() * LN_2, grad)
        return *grads, to_sinks, None, None


def _launch_back(b: Blocks, inputs: tuple[torch.Tensor, ...], grads: list[torch.Tensor], scale: float) -> None:
    query, keys, values = inputs[:3]
    cut, options = _options(query, keys)
    common = (scale * LOG2_E, scale, len(query), *_strides(query, keys, values))
    with on(query.device):
        keys_back[(-(-len(query) // cut.columns), keys.shape[1])](
            *inputs, *grads[1:], b.end, b.of_key, b.queries, *common, **options
        )
        query_back[(-(-len(query) // cut.rows), query.shape[1])](
            *inputs, grads[0], b.end, b.of_query, b.keys, *common, **options
        )


def _strides(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[int, ...]:
    return (*query.stride()[:2], *keys.stride()[:2], *values.stride()[:2])


def _options(query: torch.Tensor, keys: torch.Tensor) -> tuple[Sizes, dict[str, Any]]:
    """The sizes, and the launches' constants and options."""
    cut = sizes(query.shape[-1], query.dtype.itemsize)
    return cut, {
        "HEADS": query.shape[1] // keys.shape[1], "WIDTH": query.shape[-1], "ROWS": cut.rows, "COLUMNS": cut.columns,
        "BLOCK": max(16, power_of_two(query.shape[-1])),
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "num_warps": cut.warps, "num_stages": cut.stages,
    }  # fmt: skip


def run(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tree: Tree, scale: float,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `reference.run`, for fp16, bf16 and fp32 of one width; gradients once."""
    if values.shape[-1] != query.shape[-1] or not query.dtype == keys.dtype == values.dtype:
        shapes = [(tuple(t.shape), t.dtype) for t in (query, keys, values)]
        raise ModelError(f"the Triton form takes one width and one dtype, got {shapes}; use backend='sdpa'")
    found: torch.Tensor = _TreeAttention.apply(query, keys, values, sinks, tree, scale)
    return found


def _variant(kernel: Any, kind: str, heads: int, width: int) -> dict[str, Any]:
    cut = sizes(width, 2)
    constants: dict[str, Any] = {"HEADS": heads, "WIDTH": width, "ROWS": cut.rows, "COLUMNS": cut.columns}
    constants |= {"BLOCK": power_of_two(width), "PRECISION": "tf32"}
    floats, whole = ("lse", "delta"), ("end", "first", "listed")
    strides = ("query_token", "query_head", "key_token", "key_head", "value_token", "value_head")
    kinds = dict.fromkeys(floats, "*fp32") | dict.fromkeys(whole, "*i32") | dict.fromkeys(("N", *strides), "i32")
    kinds |= {"scale": "fp32", "true_scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    pointers = [name for name in names if name not in kinds]
    return {
        "kernel": kernel,
        "name": f"{kind}, {heads} heads a key head, width {width}",
        "signature": {name: kinds.get(name, f"*{kind}") for name in names},
        "constexprs": constants,
        "aligned": [*pointers, *(name for name in names if name in strides)],
        "options": {"num_warps": cut.warps, "num_stages": cut.stages},
        "wgmma": cut.columns >= 64 or kernel is not keys_back,  # whose products have the keys as rows
    }


AOT = [
    _variant(kernel, kind, heads, width)
    for kernel in (forward, keys_back, query_back)
    for kind, heads, width in (("bf16", 7, 128), ("fp16", 3, 64), ("bf16", 1, 128), ("bf16", 2, 80), ("bf16", 4, 256))
]
"""Variants that `bench/compile_kernels.py` compiles ahead of time."""
