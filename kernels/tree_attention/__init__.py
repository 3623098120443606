"""`tree_attention`: the differentiable form of `prefix_attention`, for training, over one row of packed branches.

Every node's tokens attend to themselves in one call and to each node before theirs in another; the results are merged
by their log-sum-exp. Backward needs nothing new: given the merged output and log-sum-exp, the fused backward of each
call yields its share of the gradients (Hydragen, arXiv 2402.05099, for the forward; FlashAttention-2 for the backward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from vstar_fast.kernels.prefix_attention.parts import by_rows, merge
from vstar_fast.kernels.prefix_attention.sinks import sinks_back, with_sinks

from vstar_fast import backends
from vstar_fast.errors import ModelError

from . import reference
from .banded import sdpa
from .tree import Call, Calls, Tree

__all__ = ["Tree", "tree_attention"]

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Tree, float, torch.Tensor | None, int | None], torch.Tensor]
FUSED = ("flash", "triton")
"""Backends that know a tree's nodes and nothing of windows, and take one width for keys and values."""


def tree_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tree: Tree,
    scale: float | None = None,
    *,
    sinks: torch.Tensor | None = None,
    window: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Softmax attention of each packed token over what leads to it in `tree`; gradients for all tensors.

    Args:
        query: [N, Hq, D] with N = tree.tokens.
        keys, values: [N, Hkv, D] and [N, Hkv, Dv], Hq a multiple of Hkv.
        scale: of the scores; default D ** -0.5.
        sinks: [Hq], a further score of each head, whose weight goes to nothing.
        window: a token sees so many tokens of its row at most, itself the last of them.
        backend: "auto", "flash" (segments, nothing unseen is computed), "triton" (one pass over the blocks that are
            seen), "sdpa" (any mask, block by block: windows shorter than a row, tokens that see ahead) or "reference".

    Returns:
        Output [N, Hq, Dv] in the query's dtype.
    """
    if len(query) != tree.tokens or keys.shape[:2] != values.shape[:2] or len(keys) != tree.tokens:
        shapes = [tuple(t.shape) for t in (query, keys, values)]
        raise ModelError(f"query, keys and values must have the tree's {tree.tokens} tokens, got {shapes}")
    if query.shape[1] % keys.shape[1]:
        raise ModelError(f"{query.shape[1]} query heads are no multiple of {keys.shape[1]} key heads")
    window = None if window is not None and window >= tree.longest else window
    name = _chosen(query, values, tree, window, backend)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    width = values.shape[-1]
    if name in FUSED:
        query, keys, values = (_padded(t, max(query.shape[-1], width)) for t in (query, keys, values))
    found = _BACKENDS[name](query, keys, values, tree, scale, sinks, window)
    backends.ran("tree_attention", name)
    return found[..., :width]


def _chosen(query: torch.Tensor, values: torch.Tensor, tree: Tree, window: int | None, backend: str) -> str:
    name = backends.choose("tree_attention", query.device, backend).name
    if (window is not None or tree.sighted) and name in FUSED:
        if backend != "auto":
            raise ModelError(f"backend {name!r} of tree_attention has no sliding windows and no masks; use 'sdpa'")
        return "sdpa"
    return "sdpa" if name == "flash" and backend == "auto" and not _flash_takes(query, values) else name


def _flash_takes(query: torch.Tensor, values: torch.Tensor) -> bool:
    """torch's fused attention: on a GPU half precision and widths of 8 to 256."""
    width = max(query.shape[-1], values.shape[-1])
    return query.device.type == "cpu" or (width % 8 == 0 and width <= 256 and query.dtype.itemsize == 2)


def _padded(states: torch.Tensor, width: int) -> torch.Tensor:
    """[N, H, D] -> [N, H, width], zeros at the end: they change no score, and are cut off the output."""
    return torch.nn.functional.pad(states, (0, width - states.shape[-1])) if states.shape[-1] < width else states


class _Fused(Protocol):
    """Fused attention over lists of calls, forward and backward."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, calls: Sequence[Call], causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def backward(
        self, grads: Tensors, rows: tuple[torch.Tensor, ...], calls: Sequence[Call], causal: bool, scale: float
    ) -> None: ...


class _OnCpu:
    """torch's fused attention for CPUs, call by call."""

    @staticmethod
    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, calls: Sequence[Call], causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [M, Hq, D] and log-sum-exp [M, Hq] of the calls' query tokens, one call after the other."""
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        q, k, v = by_rows(q), by_rows(k), by_rows(v)
        outs, lses = [], []
        for c in calls:
            rows = (q[c.first : c.last], k[c.start : c.stop], v[c.start : c.stop])
            out, lse = attend(*(t.transpose(0, 1)[None] for t in rows), 0.0, causal, scale=scale)
            outs.append(out[0].transpose(0, 1))
            lses.append(lse[0].transpose(0, 1))
        return torch.cat(outs), torch.cat(lses)

    @staticmethod
    def backward(
        grads: Tensors, rows: tuple[torch.Tensor, ...], calls: Sequence[Call], causal: bool, scale: float
    ) -> None:
        """Add each call's share to `grads` of query, keys, values; `rows`: grad of output, q, k, v, output, lse."""
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        rows = tuple(map(by_rows, rows))
        for c in calls:
            asked, seen = slice(c.first, c.last), slice(c.start, c.stop)
            grad, q, k, v, out, lse = (
                t[s].transpose(0, 1)[None] for t, s in zip(rows, (asked, asked, seen, seen, asked, asked), strict=True)
            )
            found = back(grad, q, k, v, out, lse.contiguous(), 0.0, causal, scale=scale)
            for total, part, where in zip(grads, found, (asked, seen, seen), strict=True):
                total[where] += part[0].transpose(0, 1)


class _OnGpu:
    """torch's FlashAttention-2 with variable lengths: all calls of a level in one kernel."""

    @staticmethod
    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, calls: Sequence[Call], causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As on a CPU."""
        asked, seen, lengths = _indices(calls, q.device)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q[asked], k[seen], v[seen], *lengths, 0.0, causal, False, scale=scale
        )
        return out, lse.transpose(0, 1)

    @staticmethod
    def backward(
        grads: Tensors, rows: tuple[torch.Tensor, ...], calls: Sequence[Call], causal: bool, scale: float
    ) -> None:
        """As on a CPU."""
        grad, q, k, v, out, lse = rows
        asked, seen, lengths = _indices(calls, q.device)
        random_state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
        found = torch.ops.aten._flash_attention_backward(
            grad[asked],
            q[asked],
            k[seen],
            v[seen],
            out[asked],
            lse[asked].transpose(0, 1).contiguous(),
            *lengths,
            0.0,
            causal,
            random_state,
            torch.empty(0, dtype=torch.uint64, device=q.device),
            scale=scale,
        )
        for total, part, where in zip(grads, found, (asked, seen, seen), strict=True):
            total.index_add_(0, where, part.to(total.dtype))


def _places(calls: Sequence[Call], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token indices of the calls' queries and of their keys."""
    asked = torch.cat([torch.arange(c.first, c.last) for c in calls])
    seen = torch.cat([torch.arange(c.start, c.stop) for c in calls])
    return asked.to(device), seen.to(device)


class _Indices(NamedTuple):
    """The places of calls, and where each begins among their queries and keys, with the longest of either."""

    asked: torch.Tensor
    seen: torch.Tensor
    lengths: tuple[torch.Tensor, torch.Tensor, int, int]


def _indices(calls: Sequence[Call], device: torch.device) -> _Indices:
    """Made once a tree: a layer that copied them to a GPU would wait for the one before."""
    made = calls.made if isinstance(calls, Calls) else {}
    if str(device) not in made:
        asked, seen = [c.last - c.first for c in calls], [c.stop - c.start for c in calls]
        sums = [torch.tensor([0, *n]).cumsum(0, dtype=torch.int32).to(device) for n in (asked, seen)]
        made[str(device)] = _Indices(*_places(calls, device), (sums[0], sums[1], max(asked), max(seen)))
    found: _Indices = made[str(device)]
    return found


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        sinks: torch.Tensor | None,
        tree: Tree,
        scale: float,
        fused: _Fused,
    ) -> torch.Tensor:
        out, lse = fused.forward(query, keys, values, tree.own, True, scale)
        for level in tree.levels:
            asked = _indices(level, query.device).asked
            other, other_lse = fused.forward(query, keys, values, level, False, scale)
            out[asked], lse[asked] = merge(out[asked], lse[asked], other, other_lse)
        if sinks is not None:
            out, lse = with_sinks(out, lse, sinks)
        ctx.save_for_backward(query, keys, values, out, lse, sinks)
        ctx.tree, ctx.scale, ctx.fused = tree, scale, fused
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        query, keys, values, out, lse, sinks = ctx.saved_tensors
        kind = torch.promote_types(query.dtype, torch.float32)  # bf16 sums over many branches lose their small parts
        grads = tuple(torch.zeros_like(t, dtype=kind) for t in (query, keys, values))
        rows = (grad_outputs[0].to(query.dtype), query, keys, values, out, lse)
        ctx.fused.backward(grads, rows, ctx.tree.own, True, ctx.scale)
        for level in ctx.tree.levels:
            ctx.fused.backward(grads, rows, level, False, ctx.scale)
        to_sinks = None if sinks is None else sinks_back(sinks, out, lse, rows[0])
        own = (g.to(t.dtype) for g, t in zip(grads, (query, keys, values), strict=True))
        return *own, to_sinks, None, None, None


def _flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tree: Tree, scale: float,
    sinks: torch.Tensor | None = None, _window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    fused = _OnCpu if query.device.type == "cpu" else _OnGpu
    found: torch.Tensor = _TreeAttention.apply(query, keys, values, sinks, tree, scale, fused)
    return found


def _triton(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tree: Tree, scale: float,
    sinks: torch.Tensor | None = None, _window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    from .triton_kernel import run

    return run(query, keys, values, tree, scale, sinks)


_BACKENDS: dict[str, Run] = {"flash": _flash, "triton": _triton, "sdpa": sdpa, "reference": reference.run}
