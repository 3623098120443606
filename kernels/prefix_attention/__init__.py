"""`prefix_attention`: attention of many short rows over keys and values that groups of them share.

What a row sees is cut into segments, each stored once and read once for all rows that see it: a prompt shared by
the answers to it, a page of an answer's own tokens. The segments' results are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from vstar_fast import backends
from vstar_fast.errors import ModelError

from .segment import Groups, Segment

__all__ = ["Groups", "Segment", "prefix_attention"]

Level = Sequence[Segment]


def prefix_attention(
    query: torch.Tensor, levels: Sequence[Level], scale: float | None = None, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of each query token over all segments that it is in.

    Args:
        query: [N, Hq, D], the tokens of all rows, packed.
        levels: each a list of segments with keys [S, Hkv, P, D] and values [S, Hkv, P, Dv], Hq a multiple of Hkv.
            Within a level a token is in one segment at most; segments of different levels add up.
        scale: of the scores; default D ** -0.5.
        backend: "auto", "avx512" (fp32 on a CPU), "triton" (a GPU), "flash", "gemm" or "reference"; for prompts on a
            GPU "flash-attn-4", "flash-attn-3" or "flash-attn-2" too, which leaves to "auto" what is not causal.

    Returns:
        (output [N, Hq, Dv] in the query's dtype, log-sum-exp of the scaled scores [N, Hq] fp32). A token that sees
        nothing gets zeros and -inf.
    """
    _check(query, levels)
    name = _chosen(query, levels, backend)
    if name == "avx512" and query.dtype != torch.float32:
        if backend == "avx512":
            raise ModelError(f"backend 'avx512' of prefix_attention takes float32, not {query.dtype}; use 'flash'")
        name = "flash"
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if name == "reference":
        found = _BACKENDS[name]()(query, levels, scale)
    else:
        found = _Forward.apply(query, levels, scale, name, *(t for level in levels for s in level for t in s[:2]))
    backends.ran("prefix_attention", name)
    return found


def _chosen(query: torch.Tensor, levels: Sequence[Level], backend: str) -> str:
    from . import flash_attn

    if backend == "auto" and flash_attn.prompts(query, levels):
        return flash_attn.best(query, levels)
    op = "prefill" if backend in flash_attn.FUNCTIONS else "prefix_attention"
    return backends.choose(op, query.device, backend).name


class _Forward(torch.autograd.Function):
    """Without it a gradient would be missing, or lack what goes through the log-sum-exp."""

    @staticmethod
    def forward(
        _ctx: Any, query: torch.Tensor, levels: Sequence[Level], scale: float, name: str, *_: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _BACKENDS[name]()(query, levels, scale)

    @staticmethod
    def backward(_ctx: Any, *_: Any) -> Any:
        raise ModelError(
            "prefix_attention is for generation and has no gradient; train with tree_attention, or a plain cache"
        )


def _check(query: torch.Tensor, levels: Sequence[Level]) -> None:
    if query.dim() != 3:
        raise ModelError(f"query is {tuple(query.shape)}; it is [N, Hq, D], the tokens of all rows one after the other")
    segments = [s for level in levels for s in level]
    for segment in segments:
        keys, values, tokens = segment.keys, segment.values, segment.groups.tokens
        if keys.dim() != 4 or keys.shape[:3] != values.shape[:3] or keys.shape[-1] != query.shape[-1]:
            raise ModelError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit query {tuple(query.shape)}; "
                "they are [S, Hkv, P, D] with the query's D"
            )
        if keys.dtype != query.dtype or values.dtype != query.dtype:
            raise ModelError(f"query, keys and values are {query.dtype}, {keys.dtype}, {values.dtype}; use one dtype")
        if query.shape[1] % keys.shape[1]:
            raise ModelError(f"{query.shape[1]} query heads are no multiple of {keys.shape[1]} key heads")
        if (keys.shape[1], values.shape[3]) != (segments[0].keys.shape[1], segments[0].values.shape[3]):
            both = [(tuple(s.keys.shape), tuple(s.values.shape)) for s in (segments[0], segment)]
            raise ModelError(f"segments must have as many heads, and values of one width, got {both[0]} and {both[1]}")
        if segment.groups.slots is None and keys.shape[0] != tokens.shape[0]:
            raise ModelError(f"{tokens.shape[0]} groups need as many keys, got {keys.shape[0]}; or name their slots")
        _check_places(len(query), segment)


def _check_places(tokens: int, segment: Segment) -> None:
    groups, visible = segment.groups, segment.groups.visible
    if visible is not None and visible.dtype == torch.bool and visible.shape[2] != segment.keys.shape[2]:
        raise ModelError(f"visible is {tuple(visible.shape)} for keys of {segment.keys.shape[2]} positions")
    if groups.tokens.device.type == "cpu":  # on a GPU one would have to wait for it
        token, slot = groups.greatest
        if token >= tokens or slot >= segment.keys.shape[0]:
            raise ModelError(
                f"groups name token {token} of {tokens} and slot {slot} of {segment.keys.shape[0]}, counted from 0"
            )


Run = Callable[[torch.Tensor, Sequence[Level], float], tuple[torch.Tensor, torch.Tensor]]


def _reference() -> Run:
    from .reference import run

    return run


def _gemm() -> Run:
    from .parts import gemm, run_parts

    return lambda query, levels, scale: run_parts(gemm, query, levels, scale)


def _avx512() -> Run:
    from .avx512 import run

    return run


def _flash() -> Run:
    from .flash_gpu import flash_gpu
    from .parts import flash_cpu, run_parts

    part = {"cpu": flash_cpu, "cuda": flash_gpu}
    return lambda query, levels, scale: run_parts(part[query.device.type], query, levels, scale)


def _triton() -> Run:
    from .triton_kernel import run

    return run


def _flash_attn(name: str) -> Callable[[], Run]:
    def load() -> Run:
        from . import flash_attn

        return partial(flash_attn.run, name)

    return load


_BACKENDS: dict[str, Callable[[], Run]] = {
    "avx512": _avx512,
    "triton": _triton,
    "flash-attn-4": _flash_attn("flash-attn-4"),
    "flash-attn-3": _flash_attn("flash-attn-3"),
    "flash-attn-2": _flash_attn("flash-attn-2"),
    "flash": _flash,
    "gemm": _gemm,
    "reference": _reference,
}
