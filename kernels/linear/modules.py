"""Every `torch.nn.Linear` of the process on the faster product, for a while: `fast_linears` and `packed_linears`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from vstar_fast import backends

from .op import linear, plain, undisturbed

PACKED = "_vstar_packed"
"""Attribute of a `torch.nn.Linear` with a copy of its weight for oneDNN, or None."""

MIN_HALVED = 1 << 16
"""Numbers of a weight below which its products stay fp32: LoRA's factors, say. It goes by the weight alone, so that a
row's result is of the same precision in any batch."""


class _Copy:
    """A weight in the form that oneDNN is to read, good for as long as the weight is what it was.

    It goes with no copy of its module, nor into a file: there the weight may become another.
    """

    def __init__(self, weight: torch.Tensor, half: bool, backward: bool) -> None:
        self.copied, self.half, self.backward = _copied(weight, half, backward), half, backward
        self._of, self._version = weight, None if weight.is_inference() else weight._version

    def serves(self, weight: torch.Tensor, half: bool, learns: bool) -> bool:
        """Whether this is a copy of the weight as it is now, for such a product."""
        same = weight is self._of and (self._version is None or weight._version == self._version)
        return same and half == self.half and (self.backward or not learns)

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _copied(weight: torch.Tensor, half: bool, backward: bool) -> torch.Tensor:
    if not half:
        from .onednn import pack

        return pack(weight)
    from vstar_fast.kernels.half_linear import onednn as halves

    return halves.halved(weight) if backward else halves.packed(weight)


class _Exchange:
    """`torch.nn.Linear.forward`, exchanged while anybody needs it; what a thread wants of it."""

    lock = threading.Lock()
    users = 0
    own = torch.nn.Linear.forward
    wanted = threading.local()


@contextmanager
def fast_linears(*, half: bool = False) -> Iterator[None]:
    """Inside, every `torch.nn.Linear` of the process computes `linear`. Nothing changes where "auto" has no oneDNN.

    `half`: in this thread, layers of fp32 weights on the CPU compute `half_linear`, but those whose weight is trained
    and small ones, wherever "auto" has bf16 instructions to take. A `fast_linears()` within is of fp32 products again.
    """
    half = half and halves()
    if not half and backends.choose("linear", "cpu").name == "reference" and not _half():
        yield
        return
    with _Exchange.lock:
        if not _Exchange.users:
            _Exchange.own = torch.nn.Linear.forward
            torch.nn.Linear.forward = _forward  # type: ignore[method-assign, assignment]
        _Exchange.users += 1
    before, _Exchange.wanted.half = _half(), half
    try:
        yield
    finally:
        _Exchange.wanted.half = before
        with _Exchange.lock:
            _Exchange.users -= 1
            if not _Exchange.users:
                torch.nn.Linear.forward = _Exchange.own  # type: ignore[method-assign]


def halves() -> bool:
    """Whether this machine's processor multiplies bf16 numbers itself."""
    return backends.choose("half_linear", "cpu").name != "reference"


def _half() -> bool:
    return getattr(_Exchange.wanted, "half", False)


def _forward(module: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    weight, bias = module.weight, module.bias
    recorded = torch.is_grad_enabled()
    if _half() and not (recorded and weight.requires_grad) and _halved(input, weight, bias):
        return _by_half(module, input, recorded and input.requires_grad)
    if recorded or not (input.numel() and plain(input) and undisturbed()):
        return linear(input, weight, bias)
    copied = _copy_of(module, half=False, learns=False)
    if copied is None:
        return linear(input, weight, bias)
    from .onednn import product

    backends.ran("linear", "onednn")
    return product(input, copied, bias)


def _by_half(module: torch.nn.Linear, input: torch.Tensor, learns: bool) -> torch.Tensor:
    from vstar_fast.kernels import half_linear
    from vstar_fast.kernels.half_linear import onednn

    copied = _copy_of(module, half=True, learns=learns)
    bias = None if module.bias is None else module.bias.detach()
    if copied is None or not copied.is_mkldnn:
        return half_linear.half_linear(input, module.weight.detach() if copied is None else copied, bias)
    backends.ran("half_linear", "onednn-bf16")
    return onednn.product_of(input, copied, bias)


def _copy_of(module: torch.nn.Linear, half: bool, learns: bool) -> torch.Tensor | None:
    copy: _Copy | None = module.__dict__.get(PACKED)
    return copy.copied if copy is not None and copy.serves(module.weight, half, learns) else None


def _halved(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    fits = weight.dim() == 2 and weight.numel() >= MIN_HALVED and input.numel() > 0
    whole = bias is None or (plain(bias) and not (torch.is_grad_enabled() and bias.requires_grad))
    return fits and whole and plain(input) and plain(weight) and undisturbed()


def _to_copy(modules: Iterable[torch.nn.Module], least: int) -> list[torch.nn.Linear]:
    """Linear layers whose weights a copy can stand for."""
    own = {id(m): m for module in modules for m in module.modules() if type(m) is torch.nn.Linear}
    taken = [m for m in own.values() if m.__dict__.get(PACKED) is None and plain(m.weight)]
    return [m for m in taken if m.weight.numel() >= least and (m.bias is None or _fitting(m.bias, m.weight))]


def _fitting(bias: torch.Tensor, weight: torch.Tensor) -> bool:
    return plain(bias) and bias.shape == weight.shape[:1]


@contextmanager
def packed_linears(modules: Iterable[torch.nn.Module], *, half: bool = False, backward: bool = False) -> Iterator[int]:
    """Inside, `fast_linears` multiplies with copies of these modules' weights in the form that oneDNN reads.

    A plain weight is put in order at each product, a third of the time of a product of few rows. Results are the same,
    but for rounding those of one row and of small products. Where gradients are wanted, or a weight has changed since
    (not by way of its `data`, which is not seen), the weights themselves are taken. `half`: copies for
    `fast_linears(half=True)`, half the size, with `backward` such as serve where gradients of the inputs are wanted,
    too. Yields the bytes of the copies: 0 where `fast_linears` changes nothing.
    """
    there = halves() if half else backends.choose("linear", "cpu").name == "onednn"
    chosen = _to_copy(modules, MIN_HALVED if half else 1) if there else []
    chosen = [m for m in chosen if not (backward and m.weight.requires_grad)]
    try:
        for module in chosen:
            module.__dict__[PACKED] = _Copy(module.weight, half, backward)
        yield sum(module.__dict__[PACKED].copied.nbytes if half else module.weight.nbytes for module in chosen)
    finally:
        for module in chosen:
            module.__dict__.pop(PACKED, None)
