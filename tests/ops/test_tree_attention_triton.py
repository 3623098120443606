"""The Triton form of `tree_attention`: values and gradients in the interpreter and on a GPU; which blocks it visits."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vstar_fast.kernels.tree_attention import blocks, reference
from vstar_fast.kernels.tree_attention.tree import Node, Tree

from vstar_fast.errors import ModelError

triton_kernel = pytest.importorskip("vstar_fast.kernels.tree_attention.triton_kernel")
pytestmark = pytest.mark.no_cover  # of the interpreter, which is twice as slow under it
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the kernel is compiled here")


def behind(prefix, *answers):
    """A prefix with answers behind it."""
    total = prefix + sum(answers)
    nodes = [Node(0, prefix, total, 0)]
    for size in answers:
        start = nodes[-1].stop
        nodes.append(Node(start, start + size, start + size, 1))
    return Tree(nodes)


def nested():
    """Two videos with questions and answers, as packed training has them."""
    return Tree(
        [
            Node(0, 5, 83, 0), Node(5, 40, 62, 1), Node(40, 43, 56, 2), Node(43, 50, 50, 3), Node(50, 56, 56, 3),
            Node(56, 62, 62, 2), Node(62, 80, 83, 1), Node(80, 83, 83, 2), Node(83, 90, 90, 0),
        ]
    )  # fmt: skip


TREES = {
    "one token": behind(1),
    "one row": behind(70),
    "prefix and answers": behind(61, 20, 7, 33, 1),
    "nested": nested(),
}


def inputs(tree, heads=(4, 2), width=16, dtype=torch.float32):
    made = torch.Generator().manual_seed(0)
    sizes = [(tree.tokens, heads[0], width), (tree.tokens, heads[1], width), (tree.tokens, heads[1], width)]
    return [torch.randn(s, generator=made).to(dtype).requires_grad_() for s in sizes]


def results(run, tree, tensors, scale=0.3):
    """Output and gradients of the three inputs."""
    out = run(*tensors, tree, scale)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device)
    return [out, *torch.autograd.grad((out.float() * weights).sum(), tensors)]


def check(tree, tensors, loose):
    exact = [t.detach().float().cpu().requires_grad_() for t in tensors]
    ours = results(triton_kernel.run, tree, tensors)
    assert all(o.dtype == tensors[0].dtype for o in ours)
    for a, b in zip(ours, results(reference.run, tree, exact), strict=True):
        torch.testing.assert_close(a.detach().float().cpu(), b.detach(), atol=loose, rtol=loose)


@interpreted
@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_values_and_gradients_are_the_references(shape, heads, poison):
    check(TREES[shape], inputs(TREES[shape], heads), 1e-5)


@interpreted
@pytest.mark.parametrize("width", [8, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_widths_and_half_precision(width, dtype, poison):
    tree = TREES["prefix and answers"]
    check(tree, inputs(tree, (2, 1), width, dtype), 2e-5 if dtype == torch.float32 else 2e-2)


@interpreted
@pytest.mark.parametrize("cut", [(16, 32), (64, 16)])
def test_blocks_need_not_be_square(cut, monkeypatch, poison):
    monkeypatch.setattr(triton_kernel, "sizes", lambda *_: triton_kernel.Sizes(*cut, 4, 1))
    check(TREES["nested"], inputs(TREES["nested"]), 1e-5)


@interpreted
def test_views_and_no_tokens():
    tree = TREES["nested"]
    wide = [t.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for t in inputs(tree)]
    check(tree, wide, 1e-5)
    empty = [torch.zeros(0, 2, 16, requires_grad=True) for _ in range(3)]
    assert all(t.numel() == 0 for t in results(triton_kernel.run, Tree([]), empty))


@interpreted
def test_sinks(poison):
    tree = TREES["nested"]
    tensors = [*inputs(tree), torch.randn(4, generator=torch.Generator().manual_seed(1)).requires_grad_()]

    def results(run):
        out = run(*tensors[:3], tree, 0.3, tensors[3])
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
        return [out, *torch.autograd.grad((out * weights).sum(), tensors)]

    for ours, theirs in zip(results(triton_kernel.run), results(reference.run), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_other_widths_and_dtypes_are_refused():
    tree = TREES["one row"]
    q, k, v = inputs(tree)
    with pytest.raises(ModelError, match="one width and one dtype"):
        triton_kernel.run(q, k, v[..., :8], tree, 1.0)
    with pytest.raises(ModelError, match="one width and one dtype"):
        triton_kernel.run(q.half(), k, v, tree, 1.0)


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(SIZES, SIZES, st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 4, 5]))
@settings(max_examples=40)
def test_blocks_are_those_that_the_mask_needs(first, second, rows, columns):
    """None is missing; with blocks of one token none is visited in vain either."""
    one, two = behind(*first), behind(*second)
    shifted = [Node(*(n + one.tokens for n in node.__dict__.values())) for node in two.nodes]
    tree = Tree([*one.nodes, *(Node(s.start, s.stop, s.end, s.depth - one.tokens) for s in shifted)])
    shown = blocks.seen(tree, rows, columns)
    mask = tree.mask().numpy()
    for i, j in np.ndindex(*shown.shape):
        needed = mask[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].any()
        assert shown[i, j] or not needed
        if rows == columns == 1:
            assert shown[i, j] == needed
    made = blocks.blocks(tree, torch.device("cpu"), rows, columns)
    assert made.visited == shown.sum() == len(made.queries) and made is blocks.blocks(
        tree, torch.device("cpu"), rows, columns
    )


def test_a_shared_prefix_is_visited_once_and_answers_do_not_visit_one_another():
    tree = behind(2048, *[128] * 4)
    visited = blocks.blocks(tree, torch.device("cpu"), 64, 64).visited
    prefix, answers = 32 * 33 // 2, 4 * (2 * 32 + 3)
    assert visited == prefix + answers
    assert visited < 0.35 * 4 * (34 * 35 // 2)  # four rows of their own


@pytest.mark.gpu
@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize(("width", "heads"), [(64, (6, 2)), (128, (7, 1)), (80, (4, 4)), (256, (4, 1))])
def test_on_a_gpu(shape, width, heads):
    tensors = [t.detach().to("cuda", torch.bfloat16).requires_grad_() for t in inputs(TREES[shape], heads, width)]
    check(TREES[shape], tensors, 6e-2)
