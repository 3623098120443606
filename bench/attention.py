"""Flash-attention packages against torch's attention, forward and backward, at the shapes of towers and text stacks.

What `vstar_fast/models/attention.py` chooses from. Without a package, torch's fused kernel against its plain one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vstar_fast.bench import cost

from vstar_fast import backends
from vstar_fast.models import attention

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

SHAPES = {"tower, 576 patches": (8, 576, 16, 64), "prompt of 2048": (1, 2048, 28, 128)}
"""[B, T, H, D]."""


def model_cost(shape: tuple[int, int, int, int]) -> cost.Cost:
    """Causal: half of the pairs; 4 operations a pair forward, 10 backward."""
    batch, tokens, heads, width = shape
    flops = 14.0 * batch * heads * tokens * tokens / 2 * width
    return cost.Cost(2.0 * 8 * batch * tokens * heads * width, flops, batch * heads * -(-tokens // 128), 1)


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention with all scores in memory."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key).float() * query.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(hidden, -torch.inf).softmax(-1).to(value.dtype), value)


def run(bench: Bench, quick: bool) -> None:
    """Every package that is there; on a CPU torch against the plain form, small."""
    card = cost.card_here() or cost.CARDS["H200"]
    names = [n for n in attention.FUNCTIONS if backends.available(n).ok] if bench.device == "cuda" else []
    for case, (batch, tokens, heads, width) in SHAPES.items():
        shape = (batch, tokens, heads, width) if bench.device == "cuda" else (1, 64 if quick else 256, 4, width)
        if bench.echo:
            print(model_cost(shape).line(card))
        compare(bench, case, shape, "sdpa", attention.sdpa, plain, "plain torch")
        for name in names:
            compare(bench, case, shape, name, attention.load(name), attention.sdpa, "torch SDPA")


def compare(
    bench: Bench, case: str, shape: tuple[int, ...], backend: str, ours: attention.Attend, theirs: attention.Attend,
    baseline: str,
) -> None:  # fmt: skip
    """Values and gradients of one against another."""
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    made = torch.Generator(bench.device).manual_seed(0)
    inputs = [torch.randn(shape, device=bench.device, generator=made).to(dtype).requires_grad_() for _ in range(3)]

    def of(attend: attention.Attend) -> list[torch.Tensor]:
        out = attend(*inputs)
        return [out, *torch.autograd.grad(out.sum(), inputs)]

    def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        pairs = zip(a, b, strict=True)
        return all(bool((x - y).float().abs().max() <= attention.LOOSE * y.float().abs().max()) for x, y in pairs)

    bench.compare(
        case, lambda: of(ours), lambda: of(theirs), equal=same, names=(backend, baseline), work=(1, "call"),
        backend=backend,
    )  # fmt: skip
