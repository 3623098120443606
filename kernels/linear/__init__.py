"""`linear`: x W^T + b of fp32 tensors on a CPU, on whichever of torch's two product libraries is faster there.

`torch.nn.functional.linear` multiplies with MKL, which takes AVX2 code on a CPU that is not Intel's. The oneDNN that
torch carries as well takes AVX-512 wherever it is there: about twice as fast on an AMD EPYC of 2024.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from vstar_fast import backends

__all__ = ["fast_linears", "linear", "packed_linears"]

MIN_PRODUCTS = 1_000_000
"""Multiply-adds below which oneDNN's set-up (10 us) costs more than it saves."""

PACKED = "_vstar_packed"
"""Attribute of a `torch.nn.Linear` with a copy of its weight for oneDNN, or None."""

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
    return all(_plain(t) for t in tensors) and _undisturbed()


def _undisturbed() -> bool:
    """Whether nobody changes or follows the operators that run: oneDNN's has a gradient here, and nothing else."""
    transformed = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    changed = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    return not (transformed or changed or torch.jit.is_tracing())


def _plain(tensor: torch.Tensor) -> bool:
    dense = tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.layout is torch.strided
    return dense and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def _reference() -> Run:
    from .reference import run

    return run


def _onednn() -> Run:
    from .onednn import run

    return run


_BACKENDS: dict[str, Callable[[], Run]] = {"onednn": _onednn, "reference": _reference}


class _Copy:
    """A weight in the order that oneDNN reads, good for as long as the weight is what it was.

    It goes with no copy of its module, nor into a file: there the weight may become another.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        from .onednn import pack

        self.packed, self._of = pack(weight), weight
        self._version = None if weight.is_inference() else weight._version

    def of(self, weight: torch.Tensor) -> bool:
        """Whether this is a copy of the weight as it is now."""
        return weight is self._of and (self._version is None or weight._version == self._version)

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _to_pack(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Linear]:
    """Linear layers whose weights a copy can stand for."""
    own = {id(m): m for module in modules for m in module.modules() if type(m) is torch.nn.Linear}
    taken = [m for m in own.values() if m.__dict__.get(PACKED) is None and _plain(m.weight) and m.weight.numel()]
    return [m for m in taken if m.bias is None or (_plain(m.bias) and m.bias.shape == m.weight.shape[:1])]


class _Swap:
    """`torch.nn.Linear.forward`, exchanged while anybody needs it."""

    lock = threading.Lock()
    users = 0
    own = torch.nn.Linear.forward


@contextmanager
def fast_linears() -> Iterator[None]:
    """Inside, every `torch.nn.Linear` of the process computes `linear`. Nothing changes where "auto" has no oneDNN."""
    if backends.choose("linear", "cpu").name == "reference":
        yield
        return
    with _Swap.lock:
        if not _Swap.users:
            _Swap.own = torch.nn.Linear.forward
            torch.nn.Linear.forward = _forward  # type: ignore[method-assign, assignment]
        _Swap.users += 1
    try:
        yield
    finally:
        with _Swap.lock:
            _Swap.users -= 1
            if not _Swap.users:
                torch.nn.Linear.forward = _Swap.own  # type: ignore[method-assign]


def _forward(module: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    copy: _Copy | None = module.__dict__.get(PACKED)
    if copy is None or torch.is_grad_enabled() or not (input.numel() and _plain(input) and _undisturbed()):
        return linear(input, module.weight, module.bias)
    if not copy.of(module.weight):
        return linear(input, module.weight, module.bias)
    from .onednn import product

    backends.ran("linear", "onednn")
    return product(input, copy.packed, module.bias)


@contextmanager
def packed_linears(modules: Iterable[torch.nn.Module]) -> Iterator[int]:
    """Inside, `fast_linears` multiplies with copies of these modules' weights in the order that oneDNN reads.

    A plain weight is put in order at each product, a third of the time of a product of few rows. Results are the same,
    but for rounding those of one row and of small products. Where gradients are wanted, or a weight has changed since
    (not by way of its `data`, which is not seen), the weights themselves are taken. Yields the bytes of the copies: 0
    where `fast_linears` changes nothing.
    """
    chosen = _to_pack(modules) if backends.choose("linear", "cpu").name == "onednn" else []
    try:
        for module in chosen:
            module.__dict__[PACKED] = _Copy(module.weight)
        yield sum(module.weight.nbytes for module in chosen)
    finally:
        for module in chosen:
            module.__dict__.pop(PACKED, None)
