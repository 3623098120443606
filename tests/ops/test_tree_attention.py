"""`tree_attention`: every backend against the specification, values and gradients; the tree against its mask."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vstar_fast.kernels.tree_attention import _BACKENDS, _indices, _OnCpu, _places, banded, tree_attention
from vstar_fast.kernels.tree_attention.tree import Node, Sighted, Tree

from vstar_fast import backends
from vstar_fast.errors import BackendError, ModelError

NAMES = ("reference", "sdpa", "flash")
SHAPES = st.recursive(st.integers(1, 5), lambda inner: st.tuples(st.integers(1, 5), st.lists(inner, max_size=3)))


def grown(shapes):
    """A tree of nested (tokens, [branches])."""
    nodes = []

    def add(shape, start, depth):
        own, behind = (shape, []) if isinstance(shape, int) else shape
        place = len(nodes)
        nodes.append(None)
        end = start + own
        for branch in behind:
            end = add(branch, end, depth + 1)
        nodes[place] = Node(start, start + own, end, depth)
        return end

    at = 0
    for shape in shapes:
        at = add(shape, at, 0)
    return Tree(nodes)


TREES = {
    "one token": [1],
    "one row": [7],
    "prefix and answers": [(12, [3, 1, 4, 4])],
    "head, videos, questions, answers": [(5, [(9, [(2, [3, 3]), 4]), (8, [(1, [1])]), (3, [])])],
    "two roots": [(4, [2, 3]), (6, [1])],
}


def inputs(tree, heads=(4, 2), width=16, dtype=torch.float32, seed=0):
    made = torch.Generator().manual_seed(seed)
    sizes = [(tree.tokens, heads[0], width), (tree.tokens, heads[1], width), (tree.tokens, heads[1], width)]
    return [torch.randn(s, generator=made, dtype=dtype).requires_grad_() for s in sizes]


def run(name, tree, tensors, scale=None):
    out = tree_attention(*tensors, tree, scale, backend=name)
    made = torch.Generator().manual_seed(9)
    grads = torch.autograd.grad((out.float() * torch.randn(out.shape, generator=made)).sum(), tensors)
    return [out, *grads]


def close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_values_and_gradients_are_the_specifications(name, shape, heads, poison):
    tree = grown(TREES[shape])
    tensors = inputs(tree, heads)
    close(run(name, tree, tensors), run("reference", tree, tensors), 2e-6 * 10)


@given(st.lists(SHAPES, min_size=1, max_size=3), st.integers(0, 99))
def test_any_tree(shapes, seed):
    tree = grown(shapes)
    tensors = inputs(tree, seed=seed, width=8)
    close(run("flash", tree, tensors, 0.7), run("reference", tree, tensors, 0.7), 2e-5)


def test_gradients_in_double_precision_are_those_of_finite_differences():
    tree = grown([(3, [(2, [1, 2]), 2])])
    tensors = inputs(tree, width=8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: tree_attention(q, k, v, tree, backend="flash"), tensors)


def test_bf16_stays_within_its_rounding():
    tree = grown([(40, [9, 9, 9, 9])])
    tensors = inputs(tree, dtype=torch.bfloat16)
    exact = [t.detach().float().requires_grad_() for t in tensors]
    found = run("flash", tree, tensors)
    assert all(t.dtype == torch.bfloat16 for t in found)
    close([t.float() for t in found], run("reference", tree, exact), 6e-2)


@given(st.lists(SHAPES, min_size=1, max_size=3))
def test_mask_is_what_the_nodes_say(shapes):
    tree = grown(shapes)
    mask = tree.mask()
    for node in tree.nodes:
        path = [n for n in tree.nodes if n.start < node.start and node.start < n.end]
        for token in range(node.start, node.stop):
            seen = {j for n in path for j in range(n.start, n.stop)} | set(range(node.start, token + 1))
            assert mask[token].nonzero().flatten().tolist() == sorted(seen)
    assert tree.longest == int(mask.sum(1).max())


def test_calls_of_the_gpu_form_cover_the_mask_once():
    tree = grown(TREES["head, videos, questions, answers"])
    times = torch.zeros(tree.tokens, tree.tokens, dtype=torch.int64)
    for level in tree.levels:
        asked, _ = _places(level, torch.device("cpu"))
        assert len(asked.unique()) == len(asked)
        for call in level:
            times[call.first : call.last, call.start : call.stop] += 1
    for call in tree.own:
        times[call.first : call.last, call.start : call.stop] += 1
    upper = torch.ones_like(times).triu(1).bool()
    assert torch.equal(times.masked_fill(upper, 0), tree.mask().long())


def test_wrong_shapes_and_backends_are_refused():
    tree = grown([3])
    q, k, v = inputs(tree)
    with pytest.raises(ModelError, match="must have the tree's 3 tokens"):
        tree_attention(q[:2], k, v, tree)
    with pytest.raises(ModelError, match="4 query heads are no multiple of 3"):
        tree_attention(q, k[:, :1].expand(-1, 3, -1), v[:, :1].expand(-1, 3, -1), tree)
    with pytest.raises(BackendError, match="has no backend 'gemm'"):
        tree_attention(q, k, v, tree, backend="gemm")
    with pytest.raises(ModelError, match="without a gap"):
        Tree([Node(0, 2, 2, 0), Node(3, 4, 4, 0)])


def test_what_ran_is_reported_and_windows_shorter_than_a_row_go_block_by_block():
    tree = grown([(3, [2])])
    q, k, v = inputs(tree)
    backends.reset_report()
    tree_attention(q, k, v, tree, window=5)
    assert backends.report()["tree_attention"] == {"flash": 1}
    tree_attention(q, k, v, tree, window=4)
    assert backends.report()["tree_attention"] == {"flash": 1, "sdpa": 1}
    with pytest.raises(ModelError, match="'flash' of tree_attention has no sliding windows"):
        tree_attention(q, k, v, tree, window=4, backend="flash")
    assert set(_BACKENDS) == {*NAMES, "triton"} and _OnCpu is not None


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("widths", [(16, 16), (16, 11), (8, 20)])
@pytest.mark.parametrize("sunk", [False, True])
def test_values_of_another_width_and_sinks(name, widths, sunk, poison):
    tree = grown(TREES["head, videos, questions, answers"])
    q, k, v = inputs(tree, width=widths[0])
    made = torch.Generator().manual_seed(3)
    values = torch.randn(tree.tokens, 2, widths[1], generator=made).requires_grad_()
    sinks = torch.randn(4, generator=made).requires_grad_()
    weights = torch.randn(tree.tokens, 4, widths[1], generator=made)
    tensors = [q, k, values, *([sinks] if sunk else [])]

    def results(backend):
        out = tree_attention(q, k, values, tree, 0.4, sinks=sinks if sunk else None, backend=backend)
        return [out, *torch.autograd.grad((out * weights).sum(), tensors)]

    close(results(name), results("reference"), 2e-5)


@given(st.lists(SHAPES, min_size=1, max_size=3), st.integers(1, 12))
def test_a_window_is_counted_along_the_row_of_each_branch(shapes, window):
    tree = grown(shapes)
    mask = tree.mask(window=window)
    for token in range(tree.tokens):
        row = tree.mask()[token].nonzero()[:, 0]
        assert mask[token].nonzero()[:, 0].tolist() == row[-window:].tolist()
        assert tree.places[token] == len(row) - 1
    tensors = inputs(tree, width=8)
    ours, theirs = (tree_attention(*tensors, tree, window=window, backend=name) for name in ("sdpa", "reference"))
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)


@given(st.lists(SHAPES, min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_blocks_of_any_size_give_values_and_gradients_of_the_specification(shapes, window, block, sunk):
    tree = grown(shapes)
    ahead = torch.ones(min(3, tree.tokens), min(3, tree.tokens), dtype=torch.bool)
    tree = Tree(tree.nodes, [Sighted(0, torch.arange(len(ahead)), {None: ahead})])
    tensors = [*inputs(tree, width=8), *([torch.randn(4, requires_grad=True)] if sunk else [])]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(banded, "BLOCK", block)
        for name in ("sdpa", "reference"):
            out = tree_attention(*tensors[:3], tree, sinks=tensors[3] if sunk else None, window=window, backend=name)
            found.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    close(*found, 2e-5)


def test_a_window_costs_its_length_a_token_and_not_the_packs():
    tree, window = grown([(3000, [200, 200])]), 64
    made = banded.bands(tree, torch.device("cpu"), window)
    assert sum(band.mask.numel() for band in made) < tree.tokens * (window + 3 * banded.BLOCK)


def test_gradients_of_sinks_are_those_of_finite_differences():
    tree = grown([(2, [1, 2])])
    tensors = [*inputs(tree, width=8, dtype=torch.float64), torch.randn(4, dtype=torch.float64, requires_grad=True)]

    def run(q, k, v, sinks):
        return tree_attention(q, k, v, tree, sinks=sinks, backend="flash")

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("width", [64, 128])
def test_flash_on_a_gpu(shape, width):
    tree = grown(TREES[shape])
    tensors = [t.detach().to("cuda", torch.bfloat16).requires_grad_() for t in inputs(tree, (6, 2), width)]
    exact = [t.detach().float().cpu().requires_grad_() for t in tensors]
    out = tree_attention(*tensors, tree, backend="flash")
    grads = torch.autograd.grad(out.float().sum(), tensors)
    reference = tree_attention(*exact, tree, backend="reference")
    theirs = torch.autograd.grad(reference.sum(), exact)
    close([t.float().cpu() for t in (out, *grads)], [reference, *theirs], 6e-2)


@pytest.mark.parametrize("backend", ["flash", "sdpa"])
def test_rows_whose_numbers_do_not_stand_side_by_side(backend):
    tree = Tree([Node(0, 4, 9, 0), Node(4, 6, 6, 1), Node(6, 9, 9, 1)])
    made = torch.Generator().manual_seed(0)
    rows = [torch.randn(8, h, 9, generator=made).permute(2, 1, 0).requires_grad_() for h in (4, 2, 2)]
    found, want = (tree_attention(*rows, tree, backend=name) for name in (backend, "reference"))
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
    weights = torch.randn(8, 4, 9, generator=made).permute(2, 1, 0)
    grads = [torch.autograd.grad((out * weights).sum(), rows) for out in (found, want)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


def test_what_a_level_is_indexed_by_is_made_once_a_tree():
    """Each layer asks for it, forward and back; on a GPU a copy would make it wait for the one before."""
    tree, cpu = Tree([Node(0, 5, 10, 0), Node(5, 8, 8, 1), Node(8, 10, 10, 1)]), torch.device("cpu")
    for calls in (tree.own, *tree.levels):
        found = _indices(calls, cpu)
        assert _indices(calls, cpu) is found
        assert all(torch.equal(a, b) for a, b in zip(found[:2], _places(calls, cpu), strict=True))
    starts, ends, most, longest = _indices(tree.own, cpu).lengths
    assert starts.tolist() == ends.tolist() == [0, 5, 8, 10] and (most, longest) == (5, 5)
