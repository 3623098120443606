"""The op itself: which library multiplies, and where."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vstar_fast import backends

MIN_PRODUCTS = 1_000_000
"""Multiply-adds below which oneDNN's set-up (10 us) costs more than it saves."""

Run = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """`torch.nn.functional.linear` with the same gradients; results differ by rounding.

    Args:
        input: [..., K]. weight: [N, K]. bias: [N] or None.
        backend: "auto", "onednn" or "reference"; "auto" takes the reference for what oneDNN does not do (other dtypes
            and devices, autocast, compilation, tracing, function transforms, forward-mode derivatives, subclasses of
            tensors, biases that are broadcast) and for small products.

    Returns: [..., N].
    """
    name = backends.choose("linear", input.device, backend).name
    if name != "reference" and backend == "auto" and not _fits(input, weight, bias):
        name = "reference"
    found = _BACKENDS[name]()(input, weight, bias)
    backends.ran("linear", name)
    return found


def _fits(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN's product takes these tensors and is worth it."""
    if input.numel() * weight.shape[0] < MIN_PRODUCTS:
        return False
    if weight.dim() != 2 or input.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    tensors = (input, weight) if bias is None else (input, weight, bias)
    return all(plain(t) for t in tensors) and undisturbed()


def undisturbed() -> bool:
    """Whether nobody changes or follows the operators that run: oneDNN's has a gradient here, and nothing else."""
    transformed = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    changed = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    return not (transformed or changed or torch.jit.is_tracing())


def plain(tensor: torch.Tensor) -> bool:
    dense = tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.layout is torch.strided
    return dense and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def _reference() -> Run:
    from .reference import run

    return run


def _onednn() -> Run:
    from .onednn import run

    return run


_BACKENDS: dict[str, Callable[[], Run]] = {"onednn": _onednn, "reference": _reference}
