"""prefix_attention: every backend against a dense softmax over all that a token sees, in awkward shapes."""

import math
import subprocess
import sys

import pytest
import torch
from vstar_fast.kernels.prefix_attention import Groups, Segment, prefix_attention

from attention_tools import dense, segment
from vstar_fast import backends
from vstar_fast.errors import ModelError

BACKENDS = tuple(n for n in ("reference", "gemm", "flash", "avx512") if backends.available(n).ok)


def check(query, levels, backend):
    scale = query.shape[-1] ** -0.5
    out, lse = prefix_attention(query, levels, backend=backend)
    want, want_lse = dense(query, levels, scale)
    torch.testing.assert_close(out, want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("positions", [1, 7, 64, 257])
def test_rows_behind_shared_prefixes_with_tokens_of_their_own(backend, heads, key_heads, positions):
    torch.manual_seed(positions)
    rows = 7
    query = torch.randn(rows, heads, 8)
    tokens = torch.tensor([[0, 1, 2], [3, -1, -1], [4, 5, 6]])
    lengths = torch.tensor([[positions], [1], [max(1, positions // 2)]])
    shared = segment(Groups(tokens, visible=lengths), positions, key_heads, seed=1)
    own = Groups(torch.arange(rows)[:, None], visible=torch.arange(1, rows + 1)[:, None])
    check(query, [[shared], [segment(own, rows + 3, key_heads, seed=2)]], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_named_slots_and_several_segments_in_a_level(backend):
    query = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))
    first = segment(Groups(torch.tensor([[4, 0]]), torch.tensor([2])), 9, slots=3)
    second = segment(Groups(torch.tensor([[1, 2]])), 5, seed=3)
    check(query, [[first, second]], backend)  # token 3 sees nothing


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_sees_itself_causally_and_what_came_before(backend):
    query = torch.randn(9, 4, 8, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, -1, -1, -1]])
    causal = segment(Groups(tokens, causal=True), 6)
    head = segment(Groups(torch.arange(9)[None]), 3, seed=5)
    check(query, [[head], [causal]], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tree_sees_its_ancestors(backend):
    query = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    check(query, [[segment(Groups(torch.arange(4)[None], visible=mask[None]), 4)]], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_that_sees_nothing_in_a_page_leaves_it_out(backend):
    query = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0))
    page = segment(Groups(torch.tensor([[0, 1]]), visible=torch.tensor([[0, 1]])), 4)
    check(query, [[page]], backend)
    check(query, [[segment(Groups(torch.tensor([[0, 1]])), 3, seed=9)], [page]], backend)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_scores_of_great_size_do_not_overflow(backend):
    query = 300 * torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    levels = [[segment(Groups(torch.tensor([[0, 1, 2]])), 20)], [segment(Groups(torch.arange(3)[:, None]), 4, seed=1)]]
    out, _ = prefix_attention(query, levels, backend=backend)
    torch.testing.assert_close(out, dense(query, levels, 8**-0.5)[0], atol=1e-4, rtol=1e-4)


def test_queries_in_blocks_give_the_same(monkeypatch):
    from vstar_fast.kernels.prefix_attention import parts

    query = torch.randn(9, 4, 8, generator=torch.Generator().manual_seed(0))
    levels = [[segment(Groups(torch.arange(9)[None], causal=True), 9)]]
    monkeypatch.setattr(parts, "MOST_SCORES", 40)
    check(query, levels, "gemm")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_and_no_positions(backend):
    query, nothing = torch.randn(2, 4, 8), torch.empty(1, 0, dtype=torch.int64)
    for levels in ([[segment(Groups(torch.tensor([[0, 1]])), 0)]], [[segment(Groups(nothing), 3)]], [[]], []):
        out, lse = prefix_attention(query, levels, backend=backend)
        assert out.shape == query.shape and not out.any() and bool((lse == -math.inf).all())
    check(query, [[segment(Groups(torch.tensor([[0, 1]])), 3)], [segment(Groups(torch.tensor([[0, 1]])), 0)]], backend)
    assert prefix_attention(query[:0], [[segment(Groups(nothing), 3)]], backend=backend)[0].shape == (0, 4, 8)


def test_groups_and_kinds_that_do_not_fit_are_named():
    both = torch.tensor([[0, 1]])
    with pytest.raises(ModelError, match="tokens of groups are"):
        Groups(both[0])
    with pytest.raises(ModelError, match="visible is torch.int64"):
        Groups(both, visible=torch.tensor([1, 2]))
    with pytest.raises(ModelError, match=r"query is \(4, 8\)"):
        prefix_attention(torch.randn(4, 8), [[segment(Groups(both), 3)]])
    with pytest.raises(ModelError, match="use one dtype"):
        prefix_attention(torch.randn(2, 4, 8, dtype=torch.bfloat16), [[segment(Groups(both), 3)]])


def test_keys_that_do_not_fit_are_named():
    query = torch.randn(2, 3, 8)
    with pytest.raises(ModelError, match="3 query heads are no multiple of 2 key heads"):
        prefix_attention(query, [[segment(Groups(torch.tensor([[0, 1]])), 4)]])
    with pytest.raises(ModelError, match="do not fit query"):
        prefix_attention(query, [[segment(Groups(torch.tensor([[0, 1]])), 4, width=6, heads=3)]])
    with pytest.raises(ModelError, match="1 groups need as many keys"):
        prefix_attention(query, [[segment(Groups(torch.tensor([[0, 1]])), 4, heads=3, slots=2)]])


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this processor has no AVX-512")
@pytest.mark.parametrize(
    ("tokens", "named"),
    [([[[0, 1, 0]]], 0), ([[[0, 1], [1, -1]]], 1), ([[[0, 2]], [[1], [2]]], 2)],
    ids=["in a group", "in two groups", "in two segments"],
)
def test_a_token_that_a_level_names_twice_is_refused(tokens, named):
    query = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    level = [segment(Groups(torch.tensor(x)), 5, slots=len(x), seed=n) for n, x in enumerate(tokens)]
    again = [segment(Groups(torch.arange(3)[None]), 4, seed=7)]
    with pytest.raises(ModelError, match=rf"token {named} is named twice in one level; put what else it sees"):
        prefix_attention(query, [again, level], backend="avx512")
    check(query, [again, again], "avx512")


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this processor has no AVX-512")
@pytest.mark.parametrize(("heads", "key_heads"), [(9, 3), (5, 1), (71, 1), (4, 4)])
@pytest.mark.parametrize(("width", "value_width"), [(64, 64), (80, 80), (128, 96), (24, 5)])
def test_vectors_of_any_number_of_rows_and_widths(heads, key_heads, width, value_width):
    made = torch.Generator().manual_seed(heads * width)

    def pair(slots, positions, groups):
        sizes = [(slots, key_heads, positions, n) for n in (width, value_width)]
        return Segment(*(torch.randn(size, generator=made) for size in sizes), groups)

    query = torch.randn(2, heads, 41, width, generator=made)[0].transpose(0, 1)
    shared = Groups(torch.arange(41)[None], slots=torch.tensor([2]))
    causal = Groups(torch.arange(40).view(2, 20), causal=True)
    pages = Groups(torch.arange(41)[:, None], visible=(torch.arange(41) * 7 % 150)[:, None])
    levels = [[pair(4, 300, shared)], [pair(2, 20, causal)], [pair(41, 150, pages)]]
    out, lse = prefix_attention(query, levels, backend="avx512")
    want, want_lse = prefix_attention(query, levels, backend="reference")
    torch.testing.assert_close(out, want, atol=3e-6, rtol=2e-5)
    torch.testing.assert_close(lse, want_lse, atol=3e-6, rtol=1e-5)


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this processor has no AVX-512")
def test_threads_and_kinds_of_numbers(monkeypatch):
    query = torch.randn(600, 4, 64, generator=torch.Generator().manual_seed(0))
    levels = [[segment(Groups(torch.arange(600)[None], causal=True), 600, width=64)]]
    found = prefix_attention(query, levels, backend="avx512")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(found, prefix_attention(query, levels, backend="avx512"), strict=True))
    half = query.bfloat16(), [[Segment(s.keys.bfloat16(), s.values.bfloat16(), s.groups) for s in levels[0]]]
    with pytest.raises(ModelError, match="takes float32, not torch.bfloat16; use 'flash'"):
        prefix_attention(*half, backend="avx512")
    backends.reset_report()
    prefix_attention(*half)
    assert backends.report()["prefix_attention"] == {"flash": 1}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
def test_rows_whose_numbers_do_not_stand_side_by_side(backend, causal):
    wide = segment(Groups(torch.arange(5)[None], causal=causal), 5, width=16)
    apart = Segment(wide.keys[..., ::2], wide.values[..., ::2], wide.groups)
    check(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0))[..., ::2], [[apart]], backend)


@pytest.mark.parametrize("backend", ["reference", "gemm", "flash"])
@pytest.mark.parametrize("causal", [True, False])
def test_double_precision_and_other_default_numbers(backend, causal, monkeypatch):
    levels = [[segment(Groups(torch.arange(5)[None], causal=causal), 5, dtype=torch.float64)]]
    query = torch.randn(5, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out, lse = prefix_attention(query, levels, backend=backend)
    want, want_lse = dense(query, levels, 8**-0.5)
    assert out.dtype == torch.float64 and lse.dtype == torch.float32
    torch.testing.assert_close(out, want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse.float(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_kind_of_numbers_does_not_matter(backend):
    levels = [[segment(Groups(torch.arange(5)[None]), 5)]]
    query = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))
    want = prefix_attention(query, levels, backend=backend)
    torch.set_default_dtype(torch.float64)
    try:
        found = prefix_attention(query, levels, backend=backend)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, want, strict=True))


def test_groups_of_other_integers_and_places_that_are_not_there_are_refused():
    both, query = torch.tensor([[0, 1]]), torch.randn(2, 4, 8)
    with pytest.raises(ModelError, match=r"tokens of groups are torch.int32 \(1, 2\) .*; they are int64"):
        Groups(both.int())
    with pytest.raises(ModelError, match="slots are torch.int32"):
        Groups(both, both[0, :1].int())
    with pytest.raises(ModelError, match=r"slots are torch.int64 \(2,\) for 1 groups"):
        Groups(both, both[0])
    with pytest.raises(ModelError, match="visible is torch.int32"):
        Groups(both, visible=both.int())
    with pytest.raises(ModelError, match="token 2 of 2 and slot -1 of 1"):
        prefix_attention(query, [[segment(Groups(both + 1), 3)]])
    with pytest.raises(ModelError, match="token 1 of 2 and slot 4 of 3"):
        prefix_attention(query, [[segment(Groups(both, torch.tensor([4])), 3, slots=3)]])
    with pytest.raises(ModelError, match=r"visible is \(1, 2, 2\) for keys of 3 positions"):
        prefix_attention(query, [[segment(Groups(both, visible=both.bool()[..., None].repeat(1, 1, 2)), 3)]])
    with pytest.raises(ModelError, match="as many heads"):
        prefix_attention(query, [[segment(Groups(both), 3)], [segment(Groups(both), 3, heads=1)]])
    with pytest.raises(ModelError, match="values of one width"):
        prefix_attention(query, [[segment(Groups(both), 3)], [segment(Groups(both), 3, value_width=4)]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_is_right_or_refused(backend):
    query = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    levels = [[segment(Groups(torch.arange(4)[None]), 5)], [segment(Groups(torch.arange(4)[None], causal=True), 4)]]
    out, _ = prefix_attention(query, levels, backend=backend)
    if backend == "reference":
        (found,) = torch.autograd.grad(out.square().sum(), query)
        (want,) = torch.autograd.grad(dense(query, levels, 8**-0.5)[0].square().sum(), query)
        torch.testing.assert_close(found, want, atol=2e-6, rtol=1e-5)
    else:
        with pytest.raises(ModelError, match="has no gradient; train with tree_attention"):
            out.square().sum().backward()


FEWER_THREADS = """
import resource, torch
from vstar_fast.kernels.prefix_attention import Groups, Segment, prefix_attention
made = torch.Generator().manual_seed(0)
query, keys = torch.randn(600, 4, 64, generator=made), torch.randn(1, 4, 600, 64, generator=made)
levels = [[Segment(keys, keys, Groups(torch.arange(600)[None]))]]
want = prefix_attention(query, levels, backend="avx512")
torch.get_num_threads = lambda: 500
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (20 << 20), held + (20 << 20)))  # a thread takes 8 MiB
print(all(map(torch.equal, want, prefix_attention(query, levels, backend="avx512"))))
"""


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this processor has no AVX-512")
def test_where_the_system_gives_no_more_threads_those_there_are_do_the_work():
    done = subprocess.run([sys.executable, "-c", FEWER_THREADS], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", (done.returncode, done.stderr[-2000:])
