"""`half_linear`: x W^T + b of fp32 tensors on a CPU, multiplied in bf16 and summed in fp32.

What a GPU's bf16 matrix units do to a bf16 model, for the products alone: all between them stays fp32. Processors with
bf16 instructions (AVX512-BF16, AMX) take half the time or less of the fp32 product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from vstar_fast.kernels.given import shown

from vstar_fast import backends
from vstar_fast.errors import ModelError

__all__ = ["half_linear"]

Run = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


def half_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """`torch.nn.functional.linear` of operands rounded to bf16; the result is rounded to bf16, too.

    The gradient of the input is such a product as well; those of weight and bias are sums of fp32 products.

    Args:
        input: fp32 [..., K]. weight: fp32 [N, K], or its bf16 copy where no gradient of it is wanted. bias: fp32 [N]
            or None.
        backend: "auto", "onednn-bf16" or "reference".

    Returns: fp32 [..., N].
    """
    if weight.dim() != 2 or input.shape[-1:] != weight.shape[1:] or (bias is not None and bias.dim() != 1):
        shapes = [shown(x) for x in (input, weight, bias)]
        raise ModelError(f"input, weight and bias are {', '.join(shapes)}; they are [..., K], [N, K], and [N] or None")
    name = backends.choose("half_linear", input.device, backend).name
    found = _BACKENDS[name]()(input, weight, bias)
    backends.ran("half_linear", name)
    return found


def _reference() -> Run:
    from .reference import run

    return run


def _onednn() -> Run:
    from .onednn import run

    return run


_BACKENDS: dict[str, Callable[[], Run]] = {"onednn-bf16": _onednn, "reference": _reference}
