"""linear: torch's linear in values and gradients, the faster library only where it fits, nothing left exchanged."""

import copy
import io
import threading

import pytest
import torch
from torch.nn.functional import linear as plain
from vstar_fast.kernels import linear as op
from vstar_fast.kernels.linear import onednn as onednn_backend

from linear_tools import tensors
from vstar_fast import backends, probes
from vstar_fast.ops import fast_linears, linear

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")

SHAPES = [(1, 3, 5), (0, 8, 4), (63, 17, 9), (64, 576, 192), (130, 96, 640)]


@pytest.fixture
def onednn(monkeypatch):
    """Take oneDNN whatever CPU this is."""
    found = dict(backends.PROBES, onednn=lambda: backends.Probe(True, "for the test"))
    monkeypatch.setattr(backends, "PROBES", found)
    backends.available.cache_clear()
    yield
    monkeypatch.undo()
    backends.available.cache_clear()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("onednn")
def test_values_and_gradients_are_torchs(shape, bias):
    given = tensors(*shape, bias)
    ours, theirs = linear(*given, backend="onednn"), plain(*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weight = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    for mine, other in zip(*(torch.autograd.grad((y * weight).sum(), given) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("trained", [0, 1])
def test_only_what_is_trained_gets_a_gradient(trained):
    given = [t.detach() for t in tensors(64, 32, 16, True)]
    given[trained].requires_grad_()
    linear(*given, backend="onednn").sum().backward()
    assert [t.grad is not None for t in given] == [i == trained for i in range(3)]


@pytest.mark.usefixtures("onednn")
def test_strides_do_not_matter():
    x, weight = torch.randn(48, 96), torch.randn(40, 48)
    for view in (x.t(), x.t()[::2], torch.randn(1, 48).expand(7, -1), torch.randn(3, 4, 48).transpose(0, 1)):
        torch.testing.assert_close(linear(view, weight, backend="onednn"), plain(view, weight))


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize(
    ("cast", "ran"),
    [(lambda t: t, "onednn"), (lambda t: t.double(), "reference"), (lambda t: t.bfloat16(), "reference")],
)
def test_auto_takes_what_fits(cast, ran):
    x, weight = cast(torch.randn(600, 64)), cast(torch.randn(64, 64))
    backends.reset_report()
    torch.testing.assert_close(linear(x, weight), plain(x, weight))
    linear(x[:2], weight)
    assert backends.report()["linear"] == ({"onednn": 1, "reference": 1} if ran == "onednn" else {ran: 2})


@pytest.mark.usefixtures("onednn")
def test_autocast_and_subclasses_stay_torchs():
    x, weight = torch.randn(600, 64), torch.randn(64, 64)

    class Marked(torch.Tensor):
        pass

    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype is torch.bfloat16
    assert isinstance(linear(x.as_subclass(Marked), weight), Marked)


@pytest.mark.usefixtures("onednn")
def test_linears_are_exchanged_inside_only_whoever_leaves_first():
    layer, x, own = torch.nn.Linear(64, 64), torch.randn(600, 64), torch.nn.Linear.forward
    inside, leave = threading.Event(), threading.Event()

    def other():
        with fast_linears():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with fast_linears():
        thread.start()
        assert inside.wait(10)
    assert torch.nn.Linear.forward is not own
    backends.reset_report()
    torch.testing.assert_close(layer(x), plain(x, layer.weight, layer.bias))
    assert backends.report() == {"linear": {"onednn": 1}}
    leave.set()
    thread.join()
    assert torch.nn.Linear.forward is own
    with pytest.raises(RuntimeError, match="inside"), fast_linears():
        raise RuntimeError("inside")
    assert torch.nn.Linear.forward is own


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD", ""])
def test_the_vendor_decides(vendor, monkeypatch):
    monkeypatch.setattr(probes, "_cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert backends.PROBES["onednn"]().ok == (vendor != "GenuineIntel")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not backends.PROBES["onednn"]().ok


def test_where_there_is_no_choice_nothing_changes(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: backends.Probe(name == "reference", "for the test"))
    own = torch.nn.Linear.forward
    with op.fast_linears():
        assert torch.nn.Linear.forward is own


def large(*bias):
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 512), (512, 512), *bias]
    return [torch.randn(size, generator=generator) / 512**0.25 for size in sizes]


@pytest.mark.usefixtures("onednn")
def test_a_gradient_of_a_gradient_is_torchs():
    given = [t.requires_grad_() for t in large((512,))]
    found = []
    for function in (linear, plain):
        first = torch.autograd.grad(function(*given).square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.usefixtures("onednn")
def test_transforms_of_functions_are_torchs():
    x, weight = large()
    step = torch.ones_like(x)
    for transform in (
        lambda f: torch.func.jvp(lambda v: f(v, weight), (x,), (step,))[1],
        lambda f: torch.func.grad(lambda w: f(x, w).square().sum())(weight),
        lambda f: torch.func.vmap(lambda v: f(v, weight))(x.view(2, 4, 512)),
        lambda f: torch.jit.trace(lambda v: f(v, weight), x)(x),
    ):
        ours, theirs = transform(linear), transform(plain)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.usefixtures("onednn")
def test_shapes_that_onednn_does_not_take_are_torchs():
    x, weight = large()
    torch.testing.assert_close(linear(x, weight, torch.ones(1)), plain(x, weight, torch.ones(1)))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        linear(x.view(4, 1024), weight)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("rows", [0, 1, 7, 64, 300])
def test_weights_put_in_order_give_the_same(rows):
    layers = torch.nn.Sequential(torch.nn.Linear(96, 160), torch.nn.Linear(160, 48, bias=False))
    x = torch.randn(2, rows, 96)
    want = layers(x)
    backends.reset_report()
    with op.packed_linears([layers, layers[1]]) as copied, fast_linears(), torch.no_grad():
        assert copied == layers[0].weight.nbytes + layers[1].weight.nbytes
        torch.testing.assert_close(layers(x), want, rtol=1e-5, atol=1e-5)
    assert backends.report()["linear"] == {"onednn" if rows else "reference": 2}
    assert not any(op.PACKED in vars(layer) for layer in layers)


@pytest.mark.usefixtures("onednn")
def test_gradients_and_other_dtypes_take_the_weights_themselves():
    layer, x = torch.nn.Linear(64, 64), torch.randn(600, 64)
    with op.packed_linears([layer]), fast_linears():
        packed = vars(layer)[op.PACKED]
        vars(layer)[op.PACKED] = torch.zeros(1)  # whoever multiplied with it would fail
        layer(x).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        vars(layer)[op.PACKED] = packed
    assert layer.weight.grad is not None
    with op.packed_linears([torch.nn.Linear(64, 64).double(), torch.nn.ReLU()]) as copied:
        assert copied == 0


@pytest.mark.usefixtures("onednn")
def test_one_of_two_at_once_puts_weights_in_order():
    layer, x = torch.nn.Linear(64, 64), torch.randn(600, 64)
    with op.packed_linears([layer]) as first, op.packed_linears([layer]) as second:
        assert (first, second) == (layer.weight.nbytes, 0)
        with fast_linears(), torch.no_grad():
            torch.testing.assert_close(layer(x), plain(x, layer.weight, layer.bias))


def test_where_onednn_is_not_taken_no_weight_is_copied(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: backends.Probe(name == "reference", "for the test"))
    layer = torch.nn.Linear(64, 64)
    with op.packed_linears([layer]) as copied:
        assert copied == 0 and op.PACKED not in vars(layer)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize(("inner", "columns"), [(16, 320), (320, 16), (64, 64)])
def test_a_weights_gradient_of_either_shape(inner, columns):
    x, grad = torch.randn(200, inner), torch.randn(200, columns)
    torch.testing.assert_close(onednn_backend.weight_grad(grad, x), grad.t() @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("change", ["in place", "another"])
def test_a_weight_that_changed_is_taken_itself(change):
    layer = torch.nn.Linear(256, 512)
    input = torch.randn(32, 256)
    with op.packed_linears([layer]), fast_linears(), torch.no_grad():
        before = layer(input)
        if change == "in place":
            layer.weight.neg_()
        else:
            layer.weight = torch.nn.Parameter(-layer.weight)
        assert torch.allclose(layer(input) - layer.bias, layer.bias - before, atol=1e-5)


@pytest.mark.usefixtures("onednn")
def test_copies_do_not_go_with_a_module():
    """A module that is copied, or saved, inside has no copy of a weight that may change there."""
    layer = torch.nn.Linear(256, 512)
    with op.packed_linears([layer]):
        loaded = io.BytesIO()
        torch.save(layer, loaded)
        loaded.seek(0)
        for other in (copy.deepcopy(layer), torch.load(loaded, weights_only=False)):
            assert vars(other)[op.PACKED] is None and torch.equal(other.weight, layer.weight)
            with op.packed_linears([other]) as copied:
                assert copied == layer.weight.nbytes
