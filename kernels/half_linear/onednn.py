"""`half_linear` by torch's oneDNN, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from vstar_fast.kernels.linear.onednn import pack, product, weight_grad

__all__ = ["halved", "packed", "product_of", "run"]


def run(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `reference.run`."""
    learns = input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if learns and torch.is_grad_enabled():
        found: torch.Tensor = _HalfLinear.apply(input, weight, bias)
        return found
    return product_of(input, weight.bfloat16(), bias)


def product_of(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """fp32 input [..., K] times bf16 weight [N, K], in rows or as `packed` gives it."""
    return product(input.bfloat16(), weight, None if bias is None else bias.bfloat16()).float()


def halved(weight: torch.Tensor) -> torch.Tensor:
    """A bf16 copy, for products and their gradients."""
    return weight.detach().bfloat16()


def packed(weight: torch.Tensor) -> torch.Tensor:
    """A bf16 copy in oneDNN's own order, for `product_of` alone: faster for few rows."""
    return pack(weight.detach().bfloat16())


class _HalfLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        half = weight.bfloat16()
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, half if ctx.needs_input_grad[0] else None)
        return product_of(input, half, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, half = ctx.saved_tensors
        needed = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        of_input = product_of(grad, half.t()) if needed[0] else None
        found = weight_grad(rows, input.reshape(-1, input.shape[-1])) if needed[1] else None
        return of_input, found, rows.sum(0) if needed[2] else None
