"""`half_linear` in plain torch: operands rounded, products and sums in fp32, the result rounded once."""

from __future__ import annotations

from typing import Any

import torch


def run(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """input [..., K], weight [N, K], bias [N] or None -> [..., N]."""
    found: torch.Tensor = _HalfLinear.apply(input, weight, bias)
    return found


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """The nearest bf16 numbers, as fp32."""
    return tensor.bfloat16().float()


class _HalfLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        return rounded(
            torch.nn.functional.linear(rounded(input), rounded(weight), None if bias is None else rounded(bias))
        )

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        of_input = rounded(rounded(grad) @ rounded(weight)) if ctx.needs_input_grad[0] else None
        of_weight = rows.t() @ input.reshape(-1, input.shape[-1]) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
