"""`prefix_attention`: attention of many short rows over keys and values that groups of them share.

What a row sees is cut into segments, each stored once and read once for all rows that see it: a prompt shared by
the answers to it, a page of an answer's own tokens. The segments' results are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        backend: "auto", "avx512" (fp32 on a CPU), "triton" (a GPU), "flash", "gemm" or "reference".

    Returns:
        (output [N, Hq, Dv] in the query's dtype, log-sum-exp of the scaled scores [N, Hq] fp32). A token that sees
        nothing gets zeros and -inf.
    """
    _check(query, levels)
    name = backends.choose("prefix_attention", query.device, backend).name
    if name == "avx512" and query.dtype != torch.float32:
        if backend == "avx512":
            raise ModelError(f"backend 'avx512' of prefix_attention takes float32, not {query.dtype}; use 'flash'")
        name = "flash"
    found = _BACKENDS[name]()(query, levels, query.shape[-1] ** -0.5 if scale is None else scale)
    backends.ran("prefix_attention", name)
    return found


def _check(query: torch.Tensor, levels: Sequence[Level]) -> None:
    if query.dim() != 3:
        raise ModelError(f"query is {tuple(query.shape)}; it is [N, Hq, D], the tokens of all rows one after the other")
    for segment in (s for level in levels for s in level):
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
        if segment.groups.slots is None and keys.shape[0] != tokens.shape[0]:
            raise ModelError(f"{tokens.shape[0]} groups need as many keys, got {keys.shape[0]}; or name their slots")
        visible = segment.groups.visible
        if visible is not None and visible.dtype == torch.bool and visible.shape[2] != keys.shape[2]:
            raise ModelError(f"visible {tuple(visible.shape)} does not fit the positions of keys {tuple(keys.shape)}")
    if len({s.values.shape[-1] for level in levels for s in level}) > 1:
        raise ModelError("values of different segments have different widths; they are added up, so it must be one")


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


_BACKENDS: dict[str, Callable[[], Run]] = {
    "avx512": _avx512,
    "triton": _triton,
    "flash": _flash,
    "gemm": _gemm,
    "reference": _reference,
}
