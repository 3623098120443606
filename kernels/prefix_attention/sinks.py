"""Attention sinks: a score a head that takes part in the softmax and whose weight goes to nothing."""

from __future__ import annotations

import torch


def with_sinks(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [..., D] and log-sum-exp [...] of the scores, and those with a sink among them.

    A fused backward that is given these computes the gradients of query, keys and values with sinks as it is.
    """
    total = torch.logaddexp(lse, sinks.to(lse.dtype))
    return out * (lse - total).exp()[..., None].to(out.dtype), total


def sinks_back(sinks: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Gradient [Hq] of sinks from output and gradient [N, Hq, D] and log-sum-exp [N, Hq], with the sinks in them."""
    delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    return -((sinks.to(lse.dtype) - lse).exp() * delta).sum(0).to(sinks.dtype)
