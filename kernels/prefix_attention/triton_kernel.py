"""`prefix_attention` in Triton: split-KV attention over what groups share, then one merge by log-sum-exp.

One program of `attend` owns a tile of query rows of one group, one key head and one part of the positions:

    rows     token 0 head 0..R-1 | token 1 head 0..R-1 | ...    R = query heads a key head, all behind the same keys
    columns  [low, high) of the positions that the group sees, COLUMNS at a time

so each byte of a group's keys and values is read once for all of its rows. It leaves a normalised output and the
log-sum-exp. One program of `merge` owns one head of one token and weighs all of its parts, whatever level they are of:
prefix, question, pages of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from vstar_fast.kernels.launch import on

from .segment import Groups, Segment
from .tiles import Tile, power_of_two, splits, tile

LOG2_E, LN_2 = math.log2(math.e), math.log(2)
ALL, COUNT, MASK, CAUSAL = 0, 1, 2, 3
PARTS = 8
"""Parts that `merge` holds at once."""
INTERPRETED_PROCESSORS = 2
"""Multiprocessors of a GPU that there is none of: few, so that the interpreter's tests split."""

_ALL, _COUNT, _MASK, _CAUSAL = (tl.constexpr(kind) for kind in (ALL, COUNT, MASK, CAUSAL))
_LN_2 = tl.constexpr(LN_2)


@triton.jit
def _limits(visible, seen_group, seen_member, group, member, there, positions, SHOWN: tl.constexpr):
    """Positions that each row sees; with a mask those that it may see."""
    if SHOWN == _COUNT:
        seen = tl.load(visible + group * seen_group + member * seen_member, mask=there, other=0)
        seen = tl.minimum(seen, positions).to(tl.int32)
    elif SHOWN == _CAUSAL:
        seen = tl.minimum(member + 1, positions)
    else:
        seen = tl.zeros_like(member) + positions
    return tl.where(there, seen, 0)


@triton.jit(do_not_specialize=["members", "tiles", "positions", "parts_before", "seen_group", "seen_member"])
def attend(
    query, keys, values, tokens, slots, visible, parts, lses, scale,
    members, tiles, positions, parts_before, part_size, query_token, query_head,
    key_slot, key_head, key_position, value_slot, value_head, value_position, seen_group, seen_member,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, SHOWN: tl.constexpr, NAMED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """query [N, Hq, WIDTH]; keys [S, Hkv, P, WIDTH]; tokens [G, M]; parts [parts, N, Hq, VALUE_WIDTH]; see `run`."""
    group, first = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * ROWS
    head, part, kv_heads = tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    row = first + tl.arange(0, ROWS)
    member = row // HEADS
    token = tl.load(tokens + group * members + member, mask=member < members, other=-1).to(tl.int32)
    there = token >= 0
    query_of = head * HEADS + row % HEADS
    d, e = tl.arange(0, BLOCK), tl.arange(0, VALUE_BLOCK)
    q_at = query + (token.to(tl.int64) * query_token + query_of * query_head)[:, None] + d[None, :]
    q = tl.load(q_at, mask=there[:, None] & (d < WIDTH)[None, :], other=0.0)

    seen = _limits(visible, seen_group, seen_member, group, member, there, positions, SHOWN)
    high = tl.max(seen, axis=0)
    chunk = tl.cdiv(tl.cdiv(high, tl.num_programs(2)), COLUMNS) * COLUMNS
    low = part * chunk
    high = tl.minimum(high, low + chunk)
    slot = tl.load(slots + group).to(tl.int64) if NAMED else group
    keys += slot * key_slot + head.to(tl.int64) * key_head + low.to(tl.int64) * key_position
    values += slot * value_slot + head.to(tl.int64) * value_head + low.to(tl.int64) * value_position
    column = tl.arange(0, COLUMNS)
    whole: tl.constexpr = VALUE_WIDTH == VALUE_BLOCK
    k_at = column[None, :] * key_position + d[:, None]
    v_at = column[:, None] * value_position + e[None, :]
    limit = tl.minimum(seen, high)
    if SHOWN == _MASK:
        visible += group * seen_group

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
    for start in tl.range(low, high, COLUMNS):
        at = start + column
        inside = (at < high)[None, :] if WIDTH == BLOCK else (at < high)[None, :] & (d < WIDTH)[:, None]
        k = tl.load(keys + k_at, mask=inside, other=0.0)
        scores = tl.dot(q, k, input_precision="ieee" if EXACT else "tf32") * scale
        shown = at[None, :] < limit[:, None]
        if SHOWN == _MASK:
            bits = tl.load(visible + (member[:, None] * seen_member + at[None, :]), mask=shown, other=0)
            shown = shown & (bits != 0)
        scores = tl.where(shown, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, axis=1)
        within = (at < high)[:, None]
        v = tl.load(values + v_at, mask=within if whole else within & (e < VALUE_WIDTH)[None, :], other=0.0)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee" if EXACT else "tf32")
        top = higher
        keys += COLUMNS * key_position
        values += COLUMNS * value_position

    some = total > 0
    out = out / tl.where(some, total, 1.0)[:, None]
    lse = tl.where(some, top * _LN_2 + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    lses += (parts_before + part).to(tl.int64) * part_size
    parts += (parts_before + part).to(tl.int64) * part_size * VALUE_WIDTH
    place = token * (kv_heads * HEADS) + query_of
    tl.store(lses + place, lse, mask=there)
    held = (there & some)[:, None] & (e < VALUE_WIDTH)[None, :]
    out_at = parts + (place.to(tl.int64) * VALUE_WIDTH)[:, None] + e[None, :]
    tl.store(out_at, out.to(parts.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["count"])
def merge(parts, lses, out, lse, count, part_size, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Weigh parts [count, N * Hq, WIDTH] by lses [count, N * Hq] into out [N * Hq, WIDTH] and lse [N * Hq]."""
    row, part, e = tl.program_id(0).to(tl.int64), tl.arange(0, PARTS), tl.arange(0, BLOCK)
    top, total = tl.full([1], float("-inf"), tl.float32), tl.zeros([1], tl.float32)
    sum_ = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, PARTS):
        at = (first + part).to(tl.int64) * part_size + row
        each = tl.load(lses + at, mask=first + part < count, other=float("-inf"))
        higher = tl.maximum(top, tl.max(each, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights, shrink = tl.exp(each - base), tl.exp(top - base)
        held = (each > float("-inf"))[:, None] & (e < WIDTH)[None, :]
        found = tl.load(parts + at[:, None] * WIDTH + e[None, :], mask=held, other=0.0)
        sum_ = sum_ * shrink + tl.sum(found * weights[:, None], axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        top = higher
    some = total > 0
    divisor = tl.where(some, total, 1.0)
    tl.store(out + row * WIDTH + e, (sum_ / divisor).to(out.dtype.element_ty), mask=e < WIDTH)
    one = row + tl.arange(0, 1)
    tl.store(lse + one, tl.where(some, top + tl.log(divisor), float("-inf")))


def run(query: torch.Tensor, levels: Sequence[Sequence[Segment]], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.run`, for fp16, bf16 and fp32; sums in fp32."""
    work = [[(s, *_cut(query, s)) for s in level if s.keys.shape[2] and s.groups.tokens.numel()] for level in levels]
    count = sum(max(n for _, _, n in level) for level in work if level)
    width = next((s.values.shape[-1] for level in levels for s in level), query.shape[-1])
    shape = query.shape[:2]
    query = query if query.stride(-1) == 1 else query.contiguous()
    if count <= 1:  # the only part is the result
        out, lse = query.new_zeros(*shape, width), torch.full(shape, -math.inf, device=query.device)
        parts, lses = out, lse
    else:
        out, lse = query.new_empty(*shape, width), torch.empty(shape, device=query.device)
        parts = torch.empty(count, *shape, width, device=query.device)
        lses = torch.full((count, *shape), -math.inf, device=query.device)
    before = 0
    with on(query.device):
        for level in (level for level in work if level):
            for segment, cut, n in level:
                _attend(query, segment, scale, cut, n, parts, lses, before)
            before += max(n for _, _, n in level)
        if count > 1 and lse.numel():
            merge[(lse.numel(),)](
                parts, lses, out, lse, count, lse.numel(),
                WIDTH=width, BLOCK=power_of_two(width), PARTS=PARTS, num_warps=_merge_warps(width),
            )  # fmt: skip
    return out, lse


def _merge_warps(width: int) -> int:
    return 1 if width <= 64 else 2


def _cut(query: torch.Tensor, segment: Segment) -> tuple[Tile, int]:
    """The tile of a segment and how often it is split."""
    groups, members = segment.groups.tokens.shape
    heads, positions, width = segment.keys.shape[1:]
    rows = members * (query.shape[1] // heads)
    kind, _, _ = _shown(segment.groups)
    cut = tile(rows, max(width, segment.values.shape[-1]), query.dtype.itemsize, kind == MASK)
    programs = groups * heads * -(-rows // cut.rows)
    return cut, splits(programs, positions, _processors(query.device) * cut.resident)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _shown(groups: Groups) -> tuple[int, torch.Tensor, tuple[int, int]]:
    """(kind, tensor, strides of group and member) of what tokens see; any tensor where there is none to read."""
    if groups.causal or groups.visible is None:
        return (CAUSAL if groups.causal else ALL), groups.tokens, (0, 0)
    seen = groups.visible
    kind = COUNT if seen.dtype != torch.bool else MASK
    seen = seen if kind == COUNT else seen.contiguous().view(torch.uint8)
    return kind, seen, (seen.stride(0), seen.stride(1) if seen.shape[1] > 1 else 0)


def _attend(
    query: torch.Tensor, segment: Segment, scale: float, cut: Tile, count: int,
    parts: torch.Tensor, lses: torch.Tensor, before: int,
) -> None:  # fmt: skip
    """Launch one segment: parts `before` to `before + count` of its tokens."""
    keys, values = (t if t.stride(-1) == 1 else t.contiguous() for t in (segment.keys, segment.values))
    groups, members = segment.groups.tokens.shape
    heads = query.shape[1] // keys.shape[1]
    tiles = -(-members * heads // cut.rows)
    kind, visible, strides = _shown(segment.groups)
    slots, tokens = segment.groups.slots, segment.groups.tokens.contiguous()
    attend[(groups * tiles, keys.shape[1], count)](
        query, keys, values, tokens, tokens if slots is None else slots, visible, parts, lses, scale * LOG2_E,
        members, tiles, keys.shape[2], before, query.shape[0] * query.shape[1], *query.stride()[:2],
        *keys.stride()[:3], *values.stride()[:3], *strides,
        HEADS=heads, WIDTH=keys.shape[-1], VALUE_WIDTH=values.shape[-1], SHOWN=kind, NAMED=slots is not None,
        ROWS=cut.rows, COLUMNS=cut.columns, BLOCK=max(16, power_of_two(keys.shape[-1])),
        VALUE_BLOCK=max(16, power_of_two(values.shape[-1])), EXACT=query.dtype == torch.float32,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def _variant(kind: str, heads: int, members: int, width: int, shown: int, named: bool) -> dict[str, Any]:
    """One entry of AOT: `members` tokens a group behind keys of `width`, as `_attend` launches it."""
    cut = tile(members * heads, width, 4 if kind == "fp32" else 2, shown == MASK)
    names = {"HEADS": heads, "WIDTH": width, "VALUE_WIDTH": width, "SHOWN": shown, "NAMED": named}
    sizes = {"ROWS": cut.rows, "COLUMNS": cut.columns, "BLOCK": power_of_two(width), "VALUE_BLOCK": power_of_two(width)}
    whole = "members tiles positions parts_before part_size query_token query_head key_slot key_head key_position"
    strides = "value_slot value_head value_position seen_group seen_member"
    visible = {MASK: "*u8", COUNT: "*i64"}.get(shown, "*i64")
    constants = {**names, **sizes, "EXACT": kind == "fp32"}
    return {
        "kernel": attend,
        "name": f"{kind} {members}x{heads} rows, width {width}, {('all', 'count', 'mask', 'causal')[shown]}",
        "signature": {
            **dict.fromkeys(("query", "keys", "values"), f"*{kind}"), "tokens": "*i64", "slots": "*i64",
            "visible": visible, "parts": "*fp32", "lses": "*fp32", "scale": "fp32",
            **dict.fromkeys(whole.split(), "i32"), **dict.fromkeys(strides.split(), "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        "constexprs": constants,
        "aligned": ("query", "keys", "values", "parts", "query_token", "query_head", "key_slot", "key_head",
                    "key_position", "value_slot", "value_head", "value_position"),
        "options": {"num_warps": cut.warps, "num_stages": cut.stages},
        "wgmma": cut.rows >= 64 and kind != "fp32",
    }  # fmt: skip


AOT = [
    _variant("bf16", 1, 8, 128, COUNT, False),  # Video-LLaVA: MHA, 8 answers behind a video
    _variant("bf16", 7, 8, 128, COUNT, False),  # Qwen2.5-VL 7B
    _variant("bf16", 7, 1, 128, COUNT, True),  # its pages
    _variant("bf16", 7, 512, 128, CAUSAL, False),  # its prompts
    _variant("fp16", 4, 8, 64, ALL, False),
    _variant("bf16", 3, 8, 64, COUNT, True),
    _variant("bf16", 2, 8, 80, COUNT, False),
    _variant("fp16", 8, 8, 96, COUNT, True),
    _variant("bf16", 4, 32, 256, COUNT, False),
    _variant("bf16", 4, 2, 256, COUNT, True),
    _variant("fp16", 8, 8, 64, COUNT, False),
    _variant("bf16", 4, 8, 128, MASK, False),
    _variant("fp32", 3, 8, 64, COUNT, False),
    {
        "kernel": merge,
        "name": "merge to bf16, width 128",
        "signature": {
            "parts": "*fp32", "lses": "*fp32", "out": "*bf16", "lse": "*fp32", "count": "i32", "part_size": "i32",
            "WIDTH": "constexpr", "BLOCK": "constexpr", "PARTS": "constexpr",
        },
        "constexprs": {"WIDTH": 128, "BLOCK": 128, "PARTS": PARTS},
        "options": {"num_warps": _merge_warps(128)},
    },
]  # fmt: skip
"""Variants that `bench/compile_kernels.py` compiles ahead of time."""
