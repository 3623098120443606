"""sample: the same ids on every backend, the right distribution, and a stream of its own for each row."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vstar_fast.kernels.sample import reference

from vstar_fast import backends
from vstar_fast.errors import BackendError, ConfigError, ModelError
from vstar_fast.ops import sample

pytestmark = pytest.mark.usefixtures("poison")

TRITON = "triton interpreter"


def draw(backend, logits, seeds, step, temperature, top_p=1.0, top_k=0):
    """Draw on a backend; Triton's kernel is called below its front end when it runs in the interpreter."""
    if backend != TRITON:
        return sample(logits, seeds, step, temperature, top_p, top_k, backend=backend)
    if torch.cuda.is_available():
        pytest.skip("with a GPU the compiled kernel is tested instead of the interpreter")
    triton_kernel = pytest.importorskip("vstar_fast.kernels.sample.triton_kernel")
    filtered = temperature > 0 and (top_p < 1 or top_k > 0)
    allowed = reference.keep_top(logits.float(), temperature, top_p, top_k) if filtered else logits
    return triton_kernel.run(logits, allowed, seeds, step, temperature)


def make(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * columns)
    logits = (3 * torch.randn(rows, columns, generator=generator)).to(dtype)
    return logits, torch.randint(-(2**62), 2**62, (rows,), generator=generator)


def assert_same(ours, theirs):
    assert ours[0].dtype == torch.int64 and ours[1].dtype == torch.float32
    assert torch.equal(ours[0].cpu(), theirs[0])
    torch.testing.assert_close(ours[1].cpu(), theirs[1], atol=2e-5, rtol=1e-5, equal_nan=True)


SETTINGS = [(0.0, 1.0, 0), (0.2, 1.0, 0), (1.0, 1.0, 0), (5.0, 1.0, 0), (0.7, 0.9, 0), (0.7, 1.0, 5), (1.0, 0.8, 3)]


@pytest.mark.parametrize("backend", ["cpp", TRITON])
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), SETTINGS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (3, 1000), (33, 64), (2, 49152), (1, 4097), (2, 1)])
def test_ids_equal_the_reference(backend, rows, columns, temperature, top_p, top_k):
    logits, seeds = make(min(rows, 4) if backend == TRITON else rows, columns)
    for step in (5,) if backend == TRITON else (0, 5):
        ours = draw(backend, logits, seeds, step, temperature, top_p, top_k)
        assert_same(ours, draw("reference", logits, seeds, step, temperature, top_p, top_k))
        expected = logits.log_softmax(-1).gather(-1, ours[0][:, None])[:, 0]
        torch.testing.assert_close(ours[1], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpp", "reference", TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_and_strides(backend, dtype):
    if backend == TRITON and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes bf16 wrongly")
    logits, seeds = make(6, 300, dtype)
    padded = torch.full((6, 4, 320), 9.0, dtype=dtype)
    padded[:, -1, :300] = logits
    view = padded[:, -1, :300]
    assert_same(draw(backend, view, seeds, 2, 0.9), draw("reference", logits.float(), seeds, 2, 0.9))
    if backend != TRITON:
        columns_first = logits.t().contiguous().t()
        assert_same(draw(backend, columns_first, seeds, 2, 0.9), draw("reference", logits.float(), seeds, 2, 0.9))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_sample_does_not_depend_on_its_batch(backend):
    logits, seeds = make(33, 1000)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    whole = sample(logits, seeds, 4, 1.0, 0.95, backend=backend)[0]
    shuffled = sample(logits[order], seeds[order], 4, 1.0, 0.95, backend=backend)[0]
    alone = torch.cat(
        [sample(logits[i : i + 1], seeds[i : i + 1], 4, 1.0, 0.95, backend=backend)[0] for i in range(33)]
    )
    assert torch.equal(shuffled, whole[order])
    assert torch.equal(alone, whole)


def test_threads_do_not_change_a_sample():
    logits, seeds = make(16, 49152)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = sample(logits, seeds, 0, 1.0, backend="cpp")
        torch.set_num_threads(4)
        together = sample(logits, seeds, 0, 1.0, backend="cpp")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], together[0]) and torch.equal(alone[1], together[1])


def chi_square(ids: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Standard deviations that the chi-square of the draws lies above its mean."""
    expected = probabilities.double() * ids.numel()
    seen = torch.bincount(ids, minlength=probabilities.numel()).double()
    freedom = probabilities.numel() - 1
    return (float(((seen - expected) ** 2 / expected).sum()) - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_have_the_softmax_distribution(backend, temperature):
    few = torch.linspace(-2, 2, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    ids = sample(few.expand(50_000, -1), torch.arange(50_000), 3, temperature, backend=backend)[0]
    assert chi_square(ids, (few / temperature).softmax(-1)) < 5


def test_streams_are_independent_over_steps_and_seeds():
    """Pairs of draws, of one seed at neighbouring steps and of neighbouring seeds, are uniform over all pairs."""
    flat, seeds = torch.zeros(40_000, 6), torch.arange(40_000)
    steps = [sample(flat, seeds, step, 1.0)[0] for step in (0, 1)]
    uniform = torch.full((36,), 1 / 36)
    assert chi_square(steps[0] * 6 + steps[1], uniform) < 5
    assert chi_square(steps[0][:-1] * 6 + steps[0][1:], uniform) < 5


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator, in plain integers."""
    out, mask = [], (1 << 64) - 1
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_bits_are_splitmix64_of_a_mixed_seed():
    assert splitmix64(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for seed in (0, 1, 12345, -1, -(2**63), 2**63 - 1):
        expected = splitmix64(splitmix64(seed % 2**64, 1)[0], 5)
        bits = [reference.stream_bits(torch.tensor([seed]), step).item() for step in range(5)]
        assert bits == [value >> 2 for value in expected]


@given(st.integers(0, 2**62 - 1), st.integers(1, 2**62 - 1))
def test_the_target_is_exact(bits, total):
    target = reference.scale_down(torch.tensor([bits]), torch.tensor([total])).item()
    assert target == bits * total >> 62
    assert target < total


def test_weights_are_powers_to_rounding():
    logits = torch.linspace(0, -20, 4001)[None]
    for temperature in (0.7, 1.0, 2.0):
        weights = reference.weights(logits, logits.amax(-1, keepdim=True), temperature).double() / 2**40
        exact = (logits.double() / temperature).exp()
        assert ((weights - exact).abs() <= 2e-6 * exact + 2**-39).all()


@pytest.mark.parametrize("backend", ["cpp", "reference", TRITON])
def test_what_cannot_be_drawn_is_not_drawn(backend):
    logits = torch.full((200, 9000), -math.inf)
    logits[:, [3, 4100, 8999]] = torch.tensor([1.0, 1.0, 1.0])
    few = 12 if backend == TRITON else 200
    ids = draw(backend, logits[:few], torch.arange(few), 0, 1.0)[0]
    assert set(ids.tolist()) == {3, 4100, 8999}


@pytest.mark.parametrize("backend", ["cpp", "reference", TRITON])
def test_greedy_takes_the_lowest_of_equals(backend):
    logits = torch.zeros(3, 9000)
    logits[0, [4500, 77]] = 2.0
    logits[1, [8999, 4096]] = 2.0
    ids, logprobs = draw(backend, logits, torch.zeros(3, dtype=torch.int64), 0, 0.0)
    assert ids.tolist() == [77, 4096, 0]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1), atol=2e-5, rtol=1e-5)


def test_filters_keep_what_transformers_keeps():
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits, _ = make(8, 500)
    for temperature, top_p, top_k in ((1.0, 0.9, 0), (0.5, 0.6, 0), (2.0, 1.0, 7), (0.8, 0.7, 20), (1.0, 1e-6, 0)):
        warped = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            warped = TopKLogitsWarper(top_k)(None, warped)
        if top_p < 1:
            warped = TopPLogitsWarper(top_p)(None, warped)
        kept = reference.keep_top(logits, temperature, top_p, top_k)
        assert torch.equal(kept.isinf(), warped.isinf())
        assert torch.equal(kept[~kept.isinf()], logits[~kept.isinf()])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_rows_that_are_no_distribution_are_named(backend):
    logits, seeds = make(5, 50)
    logits[1, 3] = math.nan
    logits[3] = -math.inf
    logits[4, 0] = math.inf
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="row 1, 3, 4 are NaN"):
            sample(logits, seeds, 0, temperature, backend=backend)
    logits[1, 3] = -math.nan
    with pytest.raises(ModelError, match="row 1, 3, 4"):
        sample(logits, seeds, 0, 1.0, backend=backend)


def test_rows_that_are_no_distribution_get_no_id_where_nothing_waits():
    logits, seeds = make(3, 50)
    logits[1, 3] = math.nan
    ids, logprobs = draw(TRITON, logits, seeds, 0, 1.0)
    assert ids[1] == -1 and logprobs[1].isnan()
    assert_same((ids, logprobs), reference.run(logits, logits, seeds, 0, 1.0))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_no_rows(backend):
    ids, logprobs = sample(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 0, 1.0, backend=backend)
    assert ids.shape == logprobs.shape == (0,)


def test_bad_arguments_are_named():
    logits, seeds = make(2, 10)
    bad = [
        ((logits[0], seeds, 0, 1.0), r"\[B, V\]"),
        ((logits.double(), seeds, 0, 1.0), "float64"),
        ((logits[:, :0], seeds, 0, 1.0), "0 columns"),
        ((logits, seeds[:1], 0, 1.0), r"int64 \[2\]"),
        ((logits, seeds.int(), 0, 1.0), "int32"),
        ((logits, seeds, -1, 1.0), "step is -1"),
        ((logits, seeds, 0, -0.1), "temperature is -0.1"),
        ((logits, seeds, 0, 1e-6), "temperature is 1e-06"),
        ((logits, seeds, 0, math.nan), "temperature is nan"),
        ((logits, seeds, 0, 1.0, 0.0), "top_p is 0.0"),
        ((logits, seeds, 0, 1.0, 1.0, -1), "top_k is -1"),
    ]
    for arguments, message in bad:
        with pytest.raises(ConfigError, match=message):
            sample(*arguments)
    if not backends.available("triton").ok:
        with pytest.raises(BackendError, match="Remedy"):
            sample(logits, seeds, 0, 1.0, backend="triton")


NO_FUSION = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from vstar_fast.kernels.sample import triton_kernel as k
def fused(greedy):
    v = next(v for v in k.AOT if v["constexprs"]["GREEDY"] == greedy)
    source = ASTSource(fn=v["kernel"], signature=v["signature"], constexprs=v["constexprs"])
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=v["options"]).asm["ptx"].count("fma.rn.f32")
drawn, greedy = fused(False), fused(True)
assert drawn == greedy, (drawn, greedy)
"""


def test_compiled_weights_are_never_fused():
    """The sampling kernel has no more fused multiply-adds than the greedy one, whose log() has them all."""
    pytest.importorskip("triton")
    import os

    env = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", NO_FUSION], check=True, env=env)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), SETTINGS)
def test_gpu_ids_equal_the_reference(dtype, temperature, top_p, top_k):
    for rows, columns in ((1, 7), (3, 1000), (33, 49152), (8, 151936)):
        logits, seeds = make(rows, columns, dtype)
        filtered = temperature > 0 and (top_p < 1 or top_k > 0)
        ours = sample(logits.cuda(), seeds.cuda(), 5, temperature, top_p, top_k, backend="triton")
        if not filtered:
            assert_same(ours, sample(logits, seeds, 5, temperature, backend="reference"))
        kept = sample(logits.cuda(), seeds.cuda(), 5, temperature, top_p, top_k, backend="reference")
        assert_same(ours, tuple(tensor.cpu() for tensor in kept))


@pytest.mark.gpu
def test_gpu_does_not_wait_for_bad_rows():
    logits, seeds = make(3, 50)
    logits[1] = math.nan
    ids, logprobs = sample(logits.cuda(), seeds.cuda(), 0, 1.0)
    assert ids[1].item() == -1 and logprobs[1].isnan().item() and ids[0].item() >= 0
