"""`linear` by torch's oneDNN, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

MIN_ROWS = 64
"""Rows of a weight's gradient below which oneDNN is slower than MKL: it is a sum over the rows."""

PACKED_FOR = 64
"""Rows that weights are put in order for: those of a step of the engine."""


def run(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `reference.run`, for fp32 on the CPU."""
    learns = input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if learns and torch.is_grad_enabled():
        found: torch.Tensor = _Linear.apply(input, weight, bias)
        return found
    return product(input, weight, bias)


def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """input [..., K] @ weight [N, K]^T + bias, of any strides. The operator is the one torch.compile emits."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A copy of weight [N, K] in oneDNN's own order, for `product`; the order fits any number of rows."""
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR)
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(input if weight.requires_grad else None, weight if input.requires_grad else None)
        return product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        if torch.is_grad_enabled():  # the gradient of the gradient is wanted, which plain products have
            of_input = grad @ weight if needed[0] else None
            of_weight = rows.t() @ input.reshape(-1, input.shape[-1]) if needed[1] else None
        else:
            of_input = product(grad, weight.t()) if needed[0] else None
            of_weight = weight_grad(rows, input.reshape(-1, input.shape[-1])) if needed[1] else None
        of_bias = rows.sum(0) if needed[2] else None
        return of_input, of_weight, of_bias


def weight_grad(grad: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """grad [M, N], input [M, K] -> [N, K]."""
    if len(grad) < MIN_ROWS:
        return grad.t() @ input
    if input.shape[1] < grad.shape[1]:  # of LoRA's B, say: 2.6 times as fast as the other way round
        return product(input.t(), grad.t()).t()
    return product(grad.t(), input.t())
