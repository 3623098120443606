"""`half_linear` against `linear` in fp32, forward alone and with the input's gradient, in shapes of language models."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import torch
from vstar_fast.bench.linear import SHAPES, Tensors

from vstar_fast import backends
from vstar_fast.ops import fast_linears, packed_linears

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench


def near(ours: Tensors, theirs: Tensors) -> bool:
    """Equal to the rounding of operands and results to bf16, 8 bits of each; errors of a sum mostly cancel."""
    return all(float((a - b).norm() / b.norm()) < 2**-7 for a, b in zip(ours, theirs, strict=True))


def run(bench: Bench, quick: bool) -> None:
    """Decode steps of 8 and 64 rows, a prefill of 512; training of 512 rows, weight frozen and copied."""
    backend = backends.choose("half_linear", "cpu").name
    for name in list(SHAPES)[:1] if quick else list(SHAPES):
        inner, columns = SHAPES[name]
        halved = torch.nn.Linear(inner, columns, bias=False).requires_grad_(False)
        exact = copy.deepcopy(halved)
        for rows, backward in (
            ((64, False), (512, True)) if quick else ((8, False), (64, False), (512, False), (512, True))
        ):
            x = torch.randn(rows, inner)
            with packed_linears([halved], half=True, backward=backward), packed_linears([exact]):
                bench.compare(
                    f"{name}, {rows} rows" + (", forward and backward" if backward else ""),
                    partial(_called, halved, x, backward, True),
                    partial(_called, exact, x, backward, False),
                    equal=near,
                    names=("vstar-fast", "fp32 linear"),
                    work=(rows, "row"),
                    backend=backend,
                )


def _called(layer: torch.nn.Linear, x: torch.Tensor, backward: bool, half: bool) -> Tensors:
    """The product, and the gradient of its input."""
    with fast_linears(half=half), torch.set_grad_enabled(backward):
        x = x.clone().requires_grad_(backward)
        y = layer(x)
        return (y.detach(), *(torch.autograd.grad(y, x, torch.ones_like(y)) if backward else ()))
