"""`linear` against `torch.nn.functional.linear`, forward alone and with gradients, in shapes of language models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from vstar_fast import backends
from vstar_fast.ops import linear

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

SHAPES = {"135M mlp": (576, 1536), "135M head": (576, 49_152), "7B attention": (4096, 4096)}
"""Name -> (inner size, columns)."""

Tensors = tuple[torch.Tensor, ...]


def same(ours: Tensors, theirs: Tensors) -> bool:
    """Equal to fp32 rounding of sums of this length."""
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max())) for a, b in zip(ours, theirs, strict=True)
    )


def run(bench: Bench, quick: bool) -> None:
    """Decode steps of 8 and 64 rows, a prefill of 512; training of 512 rows, weight frozen. Always on the CPU."""
    backend = backends.choose("linear", "cpu").name
    for name in list(SHAPES)[:1] if quick else list(SHAPES):
        inner, columns = SHAPES[name]
        weight = torch.randn(columns, inner) * inner**-0.5
        cases = [
            (f"{name}, {rows} rows", _product, torch.randn(rows, inner)) for rows in ((64,) if quick else (8, 64, 512))
        ]
        cases.append((f"{name}, 512 rows, forward and backward", _trained, torch.randn(512, inner)))
        for case, work, x in cases:
            bench.compare(
                case,
                partial(work, linear, x, weight),
                partial(work, torch.nn.functional.linear, x, weight),
                equal=same,
                names=("vstar-fast", "torch linear"),
                work=(len(x), "row"),
                backend=backend,
            )


def _product(product: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> Tensors:
    return (product(x, weight),)


def _trained(product: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> Tensors:
    """Product and the gradient of its input."""
    x = x.clone().requires_grad_()
    y = product(x, weight)
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]
