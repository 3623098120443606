"""constrain's operations: every backend the same, logits keep their bits, batches do not matter, bad input is named."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_rows import assert_same, make_logits, mixed
from constrain_tools import allowed
from vstar_fast import ops

pytestmark = pytest.mark.usefixtures("poison")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SETTINGS = [(0.0, 1.0, 0), (1.0, 1.0, 0), (0.3, 1.0, 0), (1.0, 0.7, 0), (1.0, 1.0, 3), (2.0, 0.9, 5), (1.0, 1e-6, 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), SETTINGS)
def test_every_operation_equals_the_reference(dtype, temperature, top_p, top_k, device):
    rows, seeds = 13, torch.arange(13) * 77
    ours, theirs = mixed(rows, "auto", device), mixed(rows, "reference")
    for step in range(12):
        logits = make_logits(rows, step, dtype)
        masked, expected = ours.mask_(logits.clone().to(device)), theirs.mask_(logits.clone())
        assert torch.equal(masked.cpu(), expected)
        assert torch.equal(ours.fill_bitmask().cpu(), theirs.fill_bitmask())
        forced = ours.forced(5, advance=False), theirs.forced(5, advance=False)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(*forced, strict=True))
        got = ours.sample_(logits.to(device), seeds.to(device), temperature, top_p, top_k)
        want = theirs.sample_(logits, seeds, temperature, top_p, top_k)
        assert torch.equal(got[0].cpu(), want[0])
        torch.testing.assert_close(got[1].cpu(), want[1], atol=2e-5, rtol=1e-5)
        assert_same(ours, theirs)
        if step % 4 == 3:
            ours.forced(3)
            theirs.forced(3)
            assert_same(ours, theirs)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_draw_is_sample_on_masked_logits(temperature):
    state, seeds = mixed(60), torch.arange(60)
    for step in range(8):
        logits = make_logits(60, step)
        masked = state.mask_(logits.clone())
        ids, logprobs = ops.sample(masked, seeds, step, temperature)
        got = state.sample_(logits, seeds, temperature)
        assert torch.equal(got[0], ids)
        torch.testing.assert_close(got[1], logprobs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_legal_logits_keep_their_bits_and_strides_do_not_matter(dtype, device):
    state, wide = mixed(12, device=device, backend="auto"), torch.full((12, 3, 345), 7.0, dtype=dtype, device=device)
    logits = make_logits(12, 3, dtype).to(device)
    logits[:, 5::7] = math.nan
    logits[:, 6::7] = -math.inf
    wide[:, 1, 3:333] = logits
    view = wide[:, 1, 3:333]
    masked = state.mask_(view)
    for row in range(12):
        legal = torch.tensor(allowed(state, row), device=device) if state.grammars[row] else torch.arange(330)
        assert torch.equal(masked[row, legal].view(torch.int8), logits[row, legal].contiguous().view(torch.int8))
        rest = torch.ones(330, dtype=torch.bool)
        rest[legal.cpu()] = False
        assert (masked[row, rest.to(device)] == -math.inf).all()
    assert (wide[:, 0] == 7).all() and (wide[:, 2] == 7).all()
    assert (wide[:, 1, :3] == 7).all() and (wide[:, 1, 333:] == 7).all()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_arena_of_many_equals_each_alone_in_any_order_and_batch(backend):
    rows, seeds = 18, torch.arange(18) + 5
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(2))
    whole = mixed(rows, backend)
    shuffled = ops.DecodeState([whole.grammars[i] for i in order], max_new_tokens=40, backend=backend)
    alone = [ops.DecodeState(g, 1, max_new_tokens=40, backend=backend) if g else None for g in whole.grammars]
    for step in range(10):
        logits = make_logits(rows, step)
        ids = whole.sample_(logits, seeds, 1.0, 0.95)[0]
        assert torch.equal(shuffled.sample_(logits[order], seeds[order], 1.0, 0.95)[0], ids[order])
        for row, state in enumerate(alone):
            if state is not None:
                one = slice(row, row + 1)
                assert state.sample_(logits[one], seeds[one], 1.0, 0.95)[0] == ids[row]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_advance_by_what_was_sampled_and_fused_equals_separate(seed):
    one, two, three = mixed(6), mixed(6), mixed(6)
    for step in range(10):
        logits = make_logits(6, seed + step)
        ids = one.sample_(logits, torch.arange(6), 1.0)[0]
        two.advance_(ids)
        assert_same(one, two)
        fused = three.advance_mask_(logits.clone(), ids.int())
        assert torch.equal(fused, two.mask_(logits.clone()))
    assert not one.lost.any()


def test_bits_into_any_buffer_equal_the_states_own():
    state = mixed(12)
    for step in range(15):
        fresh = torch.full((12, 20), -1, dtype=torch.int32)[:, 4:15]
        assert torch.equal(state.fill_bitmask(fresh), state.fill_bitmask())
        state.sample_(make_logits(12, step), torch.arange(12), 1.0)


def test_threads_and_vector_widths_do_not_change_a_mask():
    vocab = ops.TokenVocab([bytes([i % 256, i // 256]) for i in range(60_000)], 60_000, logits_size=70_001)
    grammar = ops.compile(ops.template("{x}\n{y}", x=ops.text(), y=ops.choice(["ab", "cd"])), vocab)
    logits = torch.randn(64, 70_001)
    expected = ops.DecodeState(grammar, 64, backend="reference").mask_(logits.clone())
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            assert torch.equal(ops.DecodeState(grammar, 64).mask_(logits.clone()), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_vector_width_masks_the_same(level, dtype):
    """Widths that this processor lacks run as the widest it has."""
    from vstar_fast import _C

    assert _C.constrain_simd(level) in ("plain", "avx2", "avx512")
    try:
        for offset in (0, 1, 7):
            buffer, copy = torch.full((6, 350), 1.0, dtype=dtype), make_logits(6, 1, dtype)
            view = buffer[:, offset : offset + 330]
            view.copy_(copy)
            assert torch.equal(mixed(6).mask_(view), mixed(6, "reference").mask_(copy))
            assert (buffer[:, offset + 330 :] == 1).all() and (buffer[:, :offset] == 1).all()
    finally:
        _C.constrain_simd(-1)


def test_reorder_moves_everything_a_row_has(device):
    state, twin = mixed(6, "auto", device), mixed(6, "auto", device)
    index = torch.tensor([3, 3, 0, 1, 5, 2], device=device)
    for step in range(6):
        state.sample_(make_logits(6, step).to(device), torch.arange(6, device=device), 1.0)
    before = state.fill_bitmask().clone()
    addresses = [tensor.data_ptr() for tensor in (state.state, state.remaining, state.step)]
    old = state.state.clone()
    state.reorder(index)
    assert torch.equal(state.state, old[index]) and torch.equal(state.fill_bitmask(), before[index])
    assert addresses == [tensor.data_ptr() for tensor in (state.state, state.remaining, state.step)]
    state.reset()
    twin.reorder(index)
    twin.reset()
    assert_same(state, twin)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_and_graphs_replay():
    state, twin = mixed(24, "cuda", "cuda"), mixed(24)
    logits, seeds = make_logits(24, 1), torch.arange(24)
    on_gpu, seeds_gpu = logits.cuda(), seeds.cuda()
    ids = torch.zeros(24, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        state.mask_(on_gpu.clone())
        state.fill_bitmask()
        state.forced(4, advance=False)
        ids.copy_(state.sample_(on_gpu, seeds_gpu, 0.8)[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ids.cpu(), twin.sample_(logits, seeds, 0.8)[0])
    graph = torch.cuda.CUDAGraph()
    before = [tensor.clone() for tensor in (state.state, state.remaining, state.step)]
    with torch.cuda.graph(graph):
        drawn = state.sample_(on_gpu, seeds_gpu, 0.8)[0]
    for tensor, value in zip((state.state, state.remaining, state.step), before, strict=True):
        tensor.copy_(value)
    for _ in range(6):
        graph.replay()
        assert torch.equal(drawn.cpu(), twin.sample_(logits, seeds, 0.8)[0])
    assert_same(state, twin)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_move_and_its_mask_are_one_launch_that_graphs_replay(dtype):
    state, twin = mixed(24, "cuda", "cuda"), mixed(24)
    logits, seeds = make_logits(24, 2).to(dtype), torch.arange(24)
    on_gpu, ids = logits.cuda(), torch.zeros(24, dtype=torch.int64, device="cuda")
    before = [tensor.clone() for tensor in (state.state, state.remaining, state.step)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        state.advance_mask_(on_gpu.clone(), ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, buffer = torch.cuda.CUDAGraph(), on_gpu.clone()
    with torch.cuda.graph(graph):
        buffer.copy_(on_gpu)
        state.advance_mask_(buffer, ids)
    for tensor, value in zip((state.state, state.remaining, state.step), before, strict=True):
        tensor.copy_(value)
    for _ in range(6):
        chosen = twin.sample_(logits, seeds, 0.8)[0]
        ids.copy_(chosen)
        graph.replay()
        assert torch.equal(buffer.cpu(), twin.mask_(logits.clone()))
        assert_same(state, twin)
    assert not state._tickets.any()
