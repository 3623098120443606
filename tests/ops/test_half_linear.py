"""half_linear: the product of rounded operands, in values and gradients; which layers take it, and with what copies."""

import copy

import pytest
import torch
from torch.nn.functional import linear as plain
from vstar_fast.kernels.half_linear import half_linear
from vstar_fast.kernels.half_linear.reference import rounded
from vstar_fast.kernels.linear import PACKED, fast_linears, packed_linears

from linear_tools import tensors
from vstar_fast import backends, probes
from vstar_fast.errors import BackendError

SHAPES = [(1, 256, 256), (7, 300, 257), (64, 576, 192), (130, 256, 640)]
ONEDNN = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")


@pytest.fixture
def bf16(monkeypatch):
    """Take oneDNN's bf16 products whatever CPU this is: without such instructions it has slower code for them."""
    found = dict(backends.PROBES, **{"onednn-bf16": lambda: backends.Probe(True, "for the test")})
    monkeypatch.setattr(backends, "PROBES", found)
    backends.available.cache_clear()
    backends.reset_report()
    yield
    monkeypatch.undo()
    backends.available.cache_clear()


@pytest.mark.parametrize("backend", ["reference", pytest.param("onednn-bf16", marks=ONEDNN)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("bf16")
def test_values_and_gradients_are_those_of_rounded_operands(shape, bias, backend):
    given = tensors(*shape, bias)
    ours = half_linear(*given, backend=backend)
    exact = plain(*(rounded(t).double() for t in given))
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-3)
    assert ours.dtype is torch.float32
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((ours * weight).sum(), given)
    wanted = torch.autograd.grad((plain(*given) * weight).sum(), given)
    for name, mine, other in zip(("input", "weight", "bias"), found, wanted, strict=False):
        close = 2e-2 if name == "input" else 1e-4
        assert float((mine - other).norm() / other.norm()) < close, name


@ONEDNN
@pytest.mark.usefixtures("bf16")
def test_backends_agree():
    given = [t.detach() for t in tensors(64, 576, 192, True)]
    results = [half_linear(*given, backend=b) for b in ("reference", "onednn-bf16")]
    torch.testing.assert_close(*results, rtol=2**-7, atol=1e-5)  # sums in another order may round the other way


@pytest.mark.parametrize(
    ("amx", "avx512", "ok"), [(True, True, True), (False, True, True), (True, False, True), (False, False, False)]
)
def test_the_processor_decides(amx, avx512, ok, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert probes.PROBES["onednn-bf16"]().ok == (ok and torch.backends.mkldnn.is_available())


def test_asked_for_where_it_is_not_is_an_error(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: backends.Probe(False, "for the test", "another machine"))
    with pytest.raises(BackendError, match="another machine"):
        half_linear(torch.zeros(1, 2), torch.zeros(3, 2), backend="onednn-bf16")


def layers():
    torch.manual_seed(0)
    large, small = torch.nn.Linear(256, 256), torch.nn.Linear(256, 16, bias=False)
    return large.requires_grad_(False), small.requires_grad_(False)


@ONEDNN
@pytest.mark.usefixtures("bf16")
def test_large_layers_that_are_not_trained_multiply_in_bf16():
    large, small = layers()
    x = torch.randn(5, 256, requires_grad=True)
    with fast_linears(half=True):
        assert float((large(x) - plain(x, large.weight, large.bias)).detach().abs().max()) > 1e-5
        torch.testing.assert_close(small(x), plain(x, small.weight))
        assert backends.report()["half_linear"] == {"onednn-bf16": 1}
        with fast_linears():
            torch.testing.assert_close(large(x), plain(x, large.weight, large.bias))
        large.requires_grad_()
        torch.testing.assert_close(large(x), plain(x, large.weight, large.bias))
        with torch.no_grad():
            large(x)
        assert backends.report()["half_linear"] == {"onednn-bf16": 2}
    torch.testing.assert_close(large(x), plain(x, large.weight, large.bias))


@ONEDNN
@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("backward", [False, True])
def test_copies_change_nothing_but_time(backward):
    large, small = layers()
    x = torch.randn(64, 256)
    with fast_linears(half=True):
        plainly = large(x)
    with packed_linears([large, small], half=True, backward=backward) as size, fast_linears(half=True):
        assert size == 2 * large.weight.numel()
        assert PACKED not in vars(small)
        assert copy.deepcopy(large).__dict__[PACKED] is None
        torch.testing.assert_close(large(x), plainly, rtol=2**-7, atol=1e-5)
        y = x.clone().requires_grad_()
        large(y).sum().backward()
        assert float((y.grad - large.weight.sum(0)).norm() / y.grad.norm()) < 2e-2
        with torch.no_grad():
            large.weight.mul_(2)
        torch.testing.assert_close(large(x) - large.bias, 2 * (plainly - large.bias), rtol=2**-6, atol=1e-2)
    assert PACKED not in vars(large)


@ONEDNN
@pytest.mark.usefixtures("bf16")
def test_what_is_trained_gets_no_copy():
    large, _ = layers()
    large.requires_grad_()
    with packed_linears([large], half=True, backward=True) as size:
        assert not size
        assert PACKED not in vars(large)


@ONEDNN
@pytest.mark.usefixtures("bf16")
def test_copies_of_one_precision_do_not_serve_the_other():
    large, _ = layers()
    x = torch.randn(64, 256)
    with packed_linears([large], half=True), fast_linears():
        torch.testing.assert_close(large(x), plain(x, large.weight, large.bias))


def test_without_the_instructions_nothing_changes(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: backends.Probe(name == "reference", "for the test"))
    own = torch.nn.Linear.forward
    with fast_linears(half=True), packed_linears(layers(), half=True) as size:
        assert torch.nn.Linear.forward is own
        assert not size
