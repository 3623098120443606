"""constrain's operations: every backend the same, logits keep their bits, batches do not matter, bad input is named."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_tools import allowed, small_vocab
from vstar_fast import ops
from vstar_fast.errors import BackendError, ConstrainError, ModelError

pytestmark = pytest.mark.usefixtures("poison")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = ["walk the dog", "walk", "snow", "snowboard", "back flip", "\u00e9t\u00e9"]


@functools.cache
def grammars() -> tuple[ops.Grammar, ...]:
    """Sparse, dense, counted and canonical automata of one vocabulary."""
    vocab = small_vocab("byte_level")
    label = ops.choice(NAMES)
    return (
        ops.compile(ops.template("Answer: {x}", x=label), vocab),
        ops.compile(ops.template("{why}\nA: {x}", why=ops.text(), x=label), vocab),
        ops.compile(ops.interval(20, decimals=1), vocab, "forced"),
        ops.compile(ops.template("Answer: {x}", x=label), vocab, "canonical"),
        ops.compile(ops.text(most_chars=6), vocab),
    )


def mixed(rows: int, backend: str = "cpp", device: str = "cpu", budget: int | None = 40) -> ops.DecodeState:
    """Rows of different grammars, every sixth one free."""
    every = [*grammars(), None]
    return ops.DecodeState([every[i % 6] for i in range(rows)], device=device, max_new_tokens=budget, backend=backend)


def make_logits(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, 330, generator=generator)).to(dtype)


SETTINGS = [(0.0, 1.0, 0), (1.0, 1.0, 0), (0.3, 1.0, 0), (1.0, 0.7, 0), (1.0, 1.0, 3), (2.0, 0.9, 5), (1.0, 1e-6, 0)]


def assert_same(ours: ops.DecodeState, theirs: ops.DecodeState) -> None:
    for name in ("state", "remaining", "step", "done", "lost", "complete"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name).cpu()), name


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


def test_no_rows():
    state = ops.DecodeState(grammars()[0], 0, max_new_tokens=20)
    none = torch.zeros(0, dtype=torch.int64)
    assert state.mask_(torch.zeros(0, 330)).shape == (0, 330)
    assert state.fill_bitmask().shape == (0, 11)
    assert state.sample_(torch.zeros(0, 330), none)[0].shape == (0,)
    assert state.forced()[1].shape == (0,)
    state.advance_(none)
    state.reorder(none)
    assert state.done.shape == (0,)


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


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_tokens_that_are_not_legal_are_named_and_lose_the_row(backend):
    for token in (5, -1, 10**12, 329):
        state = ops.DecodeState(grammars()[0], 3, backend=backend)
        good = next(t for t in allowed(state) if t != token)
        with pytest.raises(ConstrainError, match=f"row 1 took token {token}, which its grammar"):
            state.advance_(torch.tensor([good, token, good]))
        assert state.lost.tolist() == [False, True, False]
        assert allowed(state, 1) == list(state.grammars[1].vocab.eos_ids)
        state.advance_(torch.tensor([next(iter(allowed(state))), 7, allowed(state, 2)[0]]), strict=False)
        assert bool(state.lost[1]) and bool(state.done[1])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_logits_that_are_no_distribution(backend):
    state = ops.DecodeState(grammars()[0], 4, backend=backend)
    legal = allowed(state)
    logits = torch.zeros(4, 330)
    logits[1, legal[0]] = math.nan
    logits[2, legal] = -math.inf
    logits[3, legal[0]] = math.inf
    before = state.state.clone()
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="row 1, 2, 3 are NaN"):
            state.sample_(logits, torch.arange(4), temperature)
        assert torch.equal(state.state[1:], before[1:])
        state.reset()
    logits = torch.full((4, 330), math.nan)
    logits[:, legal] = -math.inf
    logits[:, legal[-1]] = -1e30
    assert state.sample_(logits, torch.arange(4))[0].tolist() == [legal[-1]] * 4


def test_rows_that_ended_stay_ended_and_a_spent_budget_allows_the_end_only():
    vocab = small_vocab("byte_level")
    state = ops.DecodeState(ops.compile(ops.choice(["a", "ab"]), vocab), 2, max_new_tokens=1)
    state.advance_(torch.tensor([t for t in allowed(state) if vocab.tokens[t] == b"a"] * 2))
    assert state.done.all() and state.complete.all() and allowed(state) == list(vocab.eos_ids)
    state.advance_(torch.tensor([0, vocab.eos_ids[0]]))
    assert state.done.all() and not state.lost.any()


def test_bad_arguments_are_named():
    state, grammar = ops.DecodeState(grammars()[0], 2), grammars()[0]
    other = ops.compile(ops.choice(["a"]), small_vocab("twins"))
    good, seeds = torch.zeros(2, 330), torch.zeros(2, dtype=torch.int64)
    bad = [
        (lambda: state.mask_(good[0]), r"must be \[2, 330\]"),
        (lambda: state.mask_(good.double()), "float64"),
        (lambda: state.mask_(torch.zeros(3, 330)), r"\(3, 330\)"),
        (lambda: state.mask_(torch.zeros(2, 331)), "331 columns.*logits_size=331"),
        (lambda: state.mask_(torch.zeros(330, 2).t()), "column stride 2"),
        (lambda: state.mask_(torch.zeros(1, 330).expand(2, 330)), "rows of logits overlap"),
        (lambda: state.advance_(torch.zeros(3, dtype=torch.int64)), r"int64 \[2\]"),
        (lambda: state.advance_(torch.zeros(2)), "float32"),
        (lambda: state.sample_(good, seeds.int()), "int32"),
        (lambda: state.sample_(good, seeds, -1.0), "temperature is -1.0"),
        (lambda: state.sample_(good, seeds, 1.0, 0.0), "top_p is 0.0"),
        (lambda: state.sample_(good, seeds, 1.0, 1.0, -2), "top_k is -2"),
        (lambda: state.fill_bitmask(torch.zeros(2, 10, dtype=torch.int32)), r"int32 \(2, 11\)"),
        (lambda: state.fill_bitmask(torch.zeros(11, 2, dtype=torch.int32).t()), "side by side"),
        (lambda: state.reorder(torch.tensor([0, 2])), "rows are 0 to 1"),
        (lambda: state.reorder(torch.tensor([0.0, 1.0])), "float32"),
        (lambda: state.forced(0), r"most=0"),
        (lambda: ops.DecodeState(grammar), "number of rows"),
        (lambda: ops.DecodeState([grammar], 2), "1 grammars are given for a batch of 2"),
        (lambda: ops.DecodeState([grammar, "a"]), "Grammar or None"),
        (lambda: ops.DecodeState([grammar, other]), "different vocabularies"),
        (lambda: ops.DecodeState([None, None]), "no row has a grammar"),
        (lambda: ops.DecodeState(grammar, 2, max_new_tokens=[9]), "1 values for 2 rows"),
        (lambda: ops.DecodeState(grammar, 2, max_new_tokens=[99, 1]), "max_new_tokens is 1 for row 1"),
    ]
    for call, message in bad:
        with pytest.raises(ConstrainError, match=message):
            call()
    with pytest.raises(BackendError, match="no backend 'triton'"):
        ops.DecodeState(grammar, 2, backend="triton")


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
