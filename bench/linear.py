"""`linear` against `torch.nn.functional.linear`, forward alone and with gradients, in shapes of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vstar_fast import backends
from vstar_fast.errors import BackendError
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
    """Decode steps of 8 and 64 rows, a prefill of 512; training of 512 rows, with the weight frozen."""
    if bench.device != "cpu":
        raise BackendError(
            "linear is an op of the CPU: on a GPU torch's own product runs and there is nothing to compare"
        )
    backend = backends.choose("linear", "cpu").name
    names = list(SHAPES)[:1] if quick else list(SHAPES)
    for name in names:
        inner, columns = SHAPES[name]
        weight = torch.randn(columns, inner) * inner**-0.5
        for rows in (64,) if quick else (8, 64, 512):
            x = torch.randn(rows, inner)
            bench.compare(
                f"{name}, {rows} rows",
                lambda x=x, w=weight: (linear(x, w),),
                lambda x=x, w=weight: (torch.nn.functional.linear(x, w),),
                equal=same, names=("vstar-fast", "torch linear"), work=(rows, "row"), backend=backend,
            )  # fmt: skip
        bench.compare(
            f"{name}, 512 rows, forward and backward",
            lambda w=weight, n=inner: _trained(linear, w, n),
            lambda w=weight, n=inner: _trained(torch.nn.functional.linear, w, n),
            equal=same, names=("vstar-fast", "torch linear"), work=(512, "row"), backend=backend,
        )  # fmt: skip


def _trained(product: object, weight: torch.Tensor, inner: int) -> Tensors:
    x = torch.ones(512, inner, requires_grad=True)
    y = product(x, weight)  # type: ignore[operator]
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    return y.detach(), x.grad
