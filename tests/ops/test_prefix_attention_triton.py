"""The Triton kernel of `prefix_attention` in the interpreter, and all backends on a GPU, against the reference."""

import os

import pytest
import torch
from vstar_fast.kernels.prefix_attention import (
    Groups,
    Segment,
    flash_attn,
    flash_gpu,
    prefix_attention,
    threshold,
    tiles,
)
from vstar_fast.kernels.prefix_attention.reference import run as reference

from attention_tools import segment
from vstar_fast import backends
from vstar_fast.errors import ConfigError

triton_kernel = pytest.importorskip("vstar_fast.kernels.prefix_attention.triton_kernel")
pytestmark = pytest.mark.no_cover  # of the interpreter, which is twice as slow under it
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the kernel is compiled here")

ROWS = 7
TOKENS = torch.tensor([[4, 0, 2], [3, -1, -1], [1, 5, 6]])
LOOSE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def rows(heads, width, dtype):
    made = torch.Generator().manual_seed(heads * width)
    return torch.randn(ROWS, heads, width, generator=made).to(dtype)


def everything(positions, key_heads, width, dtype, value_width=None):
    """A ragged prefix behind a head that all see, and pages of their own in scattered slots."""
    like = {"heads": key_heads, "width": width, "dtype": dtype, "value_width": value_width}
    lengths = torch.tensor([[positions], [1], [max(1, positions // 2)]])
    pages = torch.tensor([8, 2, 0, 5, 6, 3, 1])
    own = Groups(torch.arange(ROWS)[:, None], pages, torch.arange(1, ROWS + 1)[:, None])
    return [
        [segment(Groups(torch.arange(ROWS)[None]), 5, seed=1, **like)],
        [segment(Groups(TOKENS, visible=lengths), positions, seed=2, **like)],
        [segment(own, 16, slots=9, seed=3, **like)],
    ]


def exact(levels):
    return [[Segment(s.keys.float(), s.values.float(), s.groups) for s in level] for level in levels]


def check(query, levels, found, loose=None, loose_lse=1e-4):
    """Output and log-sum-exp are those of the reference on the same numbers in fp32."""
    want, want_lse = reference(query.float(), exact(levels), query.shape[-1] ** -0.5)
    loose = loose or LOOSE[query.dtype]
    assert found[0].dtype == query.dtype and found[1].dtype == torch.float32
    torch.testing.assert_close(found[0].float().cpu(), want, atol=loose, rtol=loose)
    torch.testing.assert_close(found[1].cpu(), want_lse, atol=loose_lse, rtol=loose_lse)


def run(query, levels):
    return triton_kernel.run(query, levels, query.shape[-1] ** -0.5)


HEADS = [(4, 4), (6, 2), (7, 1)]


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "key_heads"), HEADS)
@pytest.mark.parametrize("width", [64, 80, 128])
def test_heads_widths_and_ragged_prefixes(dtype, heads, key_heads, width, poison):
    query, levels = rows(heads, width, dtype), everything(130, key_heads, width, dtype)
    check(query, levels, run(query, levels))


@interpreted
@pytest.mark.parametrize(("positions", "width"), [(1, 96), (63, 256), (64, 72), (129, 8), (257, 40)])
def test_awkward_lengths_and_widths(positions, width, poison):
    query, levels = rows(4, width, torch.float16), everything(positions, 2, width, torch.float16)
    check(query, levels, run(query, levels))


@interpreted
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_a_split_prefix_is_merged(parts, monkeypatch, poison):
    """More parts than there are blocks of positions, too: some are empty."""
    monkeypatch.setattr(triton_kernel, "splits", lambda *_: parts)
    query, levels = rows(6, 64, torch.float32), everything(300, 2, 64, torch.float32)
    check(query, levels, run(query, levels))


@interpreted
def test_values_of_another_width(poison):
    query, levels = rows(4, 48, torch.float32), everything(70, 2, 48, torch.float32, value_width=24)
    check(query, levels, run(query, levels))


@interpreted
def test_more_rows_than_a_tile_causally_behind_a_head(poison):
    query = torch.randn(150, 2, 16, generator=torch.Generator().manual_seed(0))
    prompts = torch.full((2, 100), -1)
    prompts[0], prompts[1, :50] = torch.arange(100), torch.arange(100, 150)
    head = segment(Groups(torch.arange(150)[None]), 20, 1, 16, seed=1)
    own = segment(Groups(prompts, causal=True), 100, 1, 16, seed=2)
    check(query, [[head], [own]], run(query, [[head], [own]]))
    check(query, [[own]], run(query, [[own]]))  # the only part is the result


@interpreted
def test_masks_blind_tokens_and_those_in_no_segment(poison):
    query = rows(4, 32, torch.float32)
    mask = torch.rand(1, 3, 70, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[0, 1] = False
    masked = segment(Groups(torch.tensor([[0, 1, 2]]), visible=mask), 70, width=32, seed=1)
    one = segment(Groups(torch.tensor([[0, 1, 2]]), visible=mask[:, :1]), 70, width=32, seed=1)
    blind = segment(Groups(torch.tensor([[3, 4]]), visible=torch.tensor([[0, 3]])), 4, width=32, seed=2)
    for levels in ([[masked]], [[one]], [[masked, blind]], [[blind], [masked]], [[], [blind]]):
        found = run(query, levels)
        check(query, levels, found)
        assert bool((found[0][5] == 0).all()) and bool((found[1][5] == -torch.inf).all())


@interpreted
def test_views_of_an_arena_are_read_in_place(poison):
    """Keys of slots 2 to 5, positions 16 to 80 of a wider store; queries as a transposed view."""
    store = torch.randn(2, 8, 2, 128, 32, generator=torch.Generator().manual_seed(0))
    keys, values = (part[2:5, :, 16:80] for part in store)
    query = rows(4, 32, torch.float32).transpose(0, 1).contiguous().transpose(0, 1)
    levels = [[Segment(keys, values, Groups(TOKENS))]]
    check(query, levels, run(query, levels))


@interpreted
def test_scores_of_great_size_do_not_overflow():
    query = 300 * rows(2, 16, torch.float32)
    levels = [[segment(Groups(TOKENS), 40, width=16)], [segment(Groups(torch.arange(7)[:, None]), 4, width=16, seed=1)]]
    check(query, levels, run(query, levels), 1e-4)


@interpreted
def test_nothing_to_see_and_no_tokens():
    query = rows(4, 16, torch.float32)
    empty = segment(Groups(TOKENS), 0, width=16)
    for levels in ([], [[]], [[empty]]):
        out, lse = run(query, levels)
        assert out.shape == (ROWS, 4, 16) and not out.any() and bool((lse == -torch.inf).all())
    out, lse = run(query[:0], [[segment(Groups(torch.zeros(0, 1, dtype=torch.int64)), 4, width=16)]])
    assert out.shape == (0, 4, 16) and lse.shape == (0, 4)


def test_a_tile_has_all_rows_of_a_group_where_it_can():
    for count, wide, held in [(8, 128, 16), (56, 128, 64), (64, 64, 64), (17, 80, 32), (200, 128, 64), (3, 256, 16)]:
        cut = tiles.tile(count, wide, 2)
        assert cut.rows == held and cut.warps in (4, 8) and cut.columns >= 32


def test_prefixes_are_split_until_the_gpu_is_full_and_no_further():
    assert tiles.splits(1024, 2000, 132) == 1
    assert tiles.splits(128, 2000, 132) == 1  # one wave, 97 % full
    assert tiles.splits(64, 2000, 132) == 2
    assert tiles.splits(4, 200, 132) == 1  # too short
    assert tiles.splits(4, 8000, 132) == 28  # 31 would be as full to a tenth
    assert 50 < tiles.splits(1, 10**6, 132) <= tiles.MOST_SPLITS
    assert all(tiles.splits(n, 4096, 264) * 256 <= 4096 for n in range(1, 300))


def test_what_flash_attention_2_has_no_form_for_is_left_to_products():
    half = segment(Groups(TOKENS), 9, width=16, dtype=torch.float16)
    query = rows(4, 16, torch.float16)
    ragged = Groups(TOKENS, visible=torch.tensor([[9], [2], [3]]))
    assert flash_gpu.takes(query, half.keys, half.values, Groups(TOKENS))
    assert not flash_gpu.takes(query, half.keys, half.values, ragged)
    assert not flash_gpu.takes(query, half.keys, half.values, Groups(TOKENS, causal=True))  # 3 tokens, 9 positions
    assert not flash_gpu.takes(query.float(), half.keys.float(), half.values.float(), Groups(TOKENS))
    out, lse = flash_gpu.flash_gpu(query, half.keys, half.values, ragged, 0.25)
    assert out.shape == (9, 4, 16) and lse.shape == (9, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "flash", "gemm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads"), HEADS)
@pytest.mark.parametrize(("positions", "width"), [(1, 64), (130, 80), (2000, 128), (700, 256), (333, 96)])
def test_on_a_gpu(backend, dtype, heads, key_heads, positions, width):
    query, levels = rows(heads, width, dtype), everything(positions, key_heads, width, dtype)
    moved = [[Segment(s.keys.cuda(), s.values.cuda(), on_gpu(s.groups)) for s in level] for level in levels]
    found = prefix_attention(query.cuda(), moved, backend=backend)
    torch.cuda.synchronize()
    check(query, levels, found, 2e-2, 1e-4 if backend == "triton" else 1e-2)  # products of 16 bits


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "flash", *flash_attn.FUNCTIONS])
def test_prompts_on_a_gpu(backend):
    probe = backends.available(backend)
    if not probe.ok:
        pytest.skip(probe.why)
    tokens = torch.arange(600).view(2, 300)
    query = torch.randn(600, 6, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    own = segment(Groups(tokens, causal=True), 300, 2, 128, dtype=torch.bfloat16)
    moved = [[Segment(own.keys.cuda(), own.values.cuda(), on_gpu(own.groups))]]
    check(query, [[own]], prefix_attention(query.cuda(), moved, backend=backend), 2e-2, 1e-3)


def on_gpu(groups):
    moved = [None if t is None else t.cuda() for t in (groups.tokens, groups.slots, groups.visible)]
    return Groups(*moved, causal=groups.causal)


def test_the_threshold_is_the_cards_and_can_be_set(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200 NVL")
    threshold._of_card.cache_clear()
    assert (threshold.plain_below(cpu), threshold.plain_below(gpu)) == (16, 192)
    threshold._of_card.cache_clear()
    monkeypatch.setitem(threshold.MEASURED, "H200", 77)
    assert threshold.plain_below(gpu) == 77
    monkeypatch.setenv(threshold.VARIABLE, "0")
    assert threshold.plain_below(cpu) == threshold.plain_below(gpu) == 0
    monkeypatch.setenv(threshold.VARIABLE, "-3")
    with pytest.raises(ConfigError, match="VSTAR_PLAIN_BELOW is '-3'"):
        threshold.plain_below(cpu)
    threshold._of_card.cache_clear()
