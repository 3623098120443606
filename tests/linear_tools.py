"""Operands of `linear` and its kin."""

import torch


def tensors(rows, inner, columns, bias):
    generator = torch.Generator().manual_seed(rows + inner)
    x = torch.randn(2, rows, inner, generator=generator)
    weight = torch.randn(columns, inner, generator=generator) * inner**-0.5
    made = [x, weight, torch.randn(columns, generator=generator)][: 3 if bias else 2]
    return [t.requires_grad_() for t in made]
