"""No op makes the host wait for a GPU: their code up to the launch, on a pretended GPU."""

import types

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from vstar_fast.kernels import sample as sampling
from vstar_fast.kernels.label_match.labels import fold_literal
from vstar_fast.kernels.tree_attention.tree import Node, Tree
from vstar_fast.kernels.value_match import job

from constrain_tools import small_vocab
from pretended_gpu import CUDA, Kernel, NoCopies, WaitsForTheGpu, pretended_gpu
from vstar_fast import ops
from vstar_fast.errors import DataError

ROWS = 4
HOST = torch.device("cpu")


@pytest.fixture
def words():
    """A label set and a token table, compiled on the host."""
    labels = ops.LabelSet(["kick", "spin kick", "snow"])
    tokens = ops.TokenBytes([b"answer: ", b"3", b" to ", b"5.5", b" s", b"kick, ", b"snow", None])
    tokens.table()
    for after in (None, "Answer:"):
        job._tables(after, HOST)
        labels.hints(tokens, fold_literal(after) if after else (), HOST)
    return labels, tokens


def on_gpu(*shape, dtype=torch.float64):
    return torch.empty(shape, dtype=dtype, device=CUDA)


def ids():
    return on_gpu(ROWS, 6, dtype=torch.int64)


def test_the_pretended_gpu_sees_waits(monkeypatch):
    with pretended_gpu(monkeypatch), NoCopies():
        for wait, error in (
            (lambda x: x.cpu(), WaitsForTheGpu),
            (lambda x: x[:1].item(), DataDependentOutputException),
            (lambda x: x.tolist(), DataDependentOutputException),
            (lambda x: bool((x > 0).any()), DataDependentOutputException),
            (lambda x: x.nonzero(), DynamicOutputShapeException),
            (lambda _: torch.zeros(3).to(CUDA), WaitsForTheGpu),
        ):
            with pytest.raises(error):
                wait(on_gpu(3))


VALUES = {
    "number": lambda x, _, tokens: ops.match_number(x, on_gpu(ROWS), unit="s", abs_tolerance=0.5, tokens=tokens),
    "number, all tensors": lambda x, _, tokens: ops.match_number(
        x, on_gpu(ROWS), abs_tolerance=on_gpu(ROWS), rel_tolerance=on_gpu(ROWS), tokens=tokens,
        lengths=on_gpu(ROWS, dtype=torch.int64), after=None, pick="last",
    ),
    "number, lists": lambda x, _, tokens: ops.match_number(
        x, [1.0] * ROWS, unit=["s", "min", "", "odd"], tokens=tokens, lengths=[6] * ROWS
    ),
    "interval": lambda x, _, tokens: ops.match_interval(x, on_gpu(ROWS, 2, dtype=torch.float32), tokens=tokens),
    "intervals": lambda x, _, tokens: ops.match_interval(x, on_gpu(ROWS, 3, 2), tokens=tokens),
    "interval, lists": lambda x, _, tokens: ops.match_interval(x, [[(1, 2), (3, 4)], (0, 1), [], []], tokens=tokens),
    "sequence": lambda x, names, tokens: ops.match_sequence(x, names, ids()[:, :3], tokens=tokens),
    "sequence, lists": lambda x, names, tokens: ops.match_sequence(x, names, [["kick"], [0, 2], [], []], tokens=tokens),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_matches_of_values_do_not_wait(case, words, monkeypatch):
    with pretended_gpu(monkeypatch) as launches:
        VALUES[case](ids(), *words)  # tables go to the GPU once
        with NoCopies():
            match = VALUES[case](ids(), *words)
            assert match.backend == "cuda" and match.matched.device == match.negated.device == CUDA
    assert launches.names == ["match_values_ids_cuda"] * 2


@pytest.mark.parametrize("own", ["tensor", "names"])
def test_label_match_does_not_wait(own, words, monkeypatch):
    labels, tokens = words
    with pretended_gpu(monkeypatch) as launches:
        wanted = on_gpu(ROWS, dtype=torch.int64) if own == "tensor" else ["kick", "snow", -1, 1]
        options = {"tokens": tokens, "lengths": on_gpu(ROWS, dtype=torch.int64), "which": True, "negation": True}
        ops.label_match(ids(), labels, wanted, **options)
        with NoCopies():
            match = ops.label_match(ids(), labels, wanted, **options)
            assert match.matched.device == match.negated.device == CUDA
    assert launches.names == ["label_match_ids_cuda"] * 2


def test_decode_states_do_not_wait(monkeypatch):
    grammar = ops.compile(
        ops.template("Answer: {x}", x=ops.choice(["walk", "snow", "snowboard"])), small_vocab("byte_level")
    )
    with pretended_gpu(monkeypatch) as launches:
        state = ops.DecodeState(grammar, ROWS, CUDA, max_new_tokens=30)
        logits = on_gpu(ROWS, state.vocabulary, dtype=torch.bfloat16)
        whole = {"dtype": torch.int64}
        with NoCopies():
            state.advance_mask_(logits, on_gpu(ROWS, **whole))
            state.mask_(logits)
            state.advance_(on_gpu(ROWS, dtype=torch.int32))
            drawn, _ = state.sample_(logits, on_gpu(ROWS, **whole), 0.7, 0.9, 5)
            state.forced(4)
            state.fill_bitmask()
            state.fill_bitmask(on_gpu(ROWS, state.words, dtype=torch.int32))
            state.reorder(on_gpu(ROWS, **whole))
            state.restart_(on_gpu(ROWS, dtype=torch.bool))
            state.reset()
            assert drawn.device == state.done.device == state.lost.device == CUDA
    names = ("advance_mask", "mask", "advance", "sample", "forced", "fill", "fill")
    assert launches.names == [f"constrain_{name}_cuda" for name in names]


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(0.0, 1.0, 0), (0.7, 1.0, 0), (0.7, 0.9, 20)])
def test_sample_does_not_wait(temperature, top_p, top_k, monkeypatch):
    def run(logits, allowed, seeds, _step, _temperature):
        assert allowed.device == logits.device == CUDA
        return torch.empty_like(seeds), logits.new_empty(ROWS, dtype=torch.float32)

    monkeypatch.setitem(sampling._BACKENDS, "triton", lambda: run)
    with pretended_gpu(monkeypatch, "triton"), NoCopies():
        seeds = on_gpu(ROWS, dtype=torch.int64)
        drawn, _ = ops.sample(on_gpu(ROWS, 50, dtype=torch.float16), seeds, 2, temperature, top_p, top_k)
        assert drawn.device == CUDA


def test_lists_are_refused_while_a_graph_is_captured(words, monkeypatch):
    with pretended_gpu(monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(DataError, match="tensors that lie on the GPU"):
            ops.match_number(ids(), [1.0] * ROWS, tokens=words[1])


def test_prefix_attention_does_not_wait(monkeypatch):
    """A prefix with lengths, scattered pages, a prompt of its own: two kernels, whatever lies on the GPU."""
    kernels = pytest.importorskip("vstar_fast.kernels.prefix_attention.triton_kernel")
    attend, merge = Kernel(), Kernel()
    monkeypatch.setattr(kernels, "attend", attend)
    monkeypatch.setattr(kernels, "merge", merge)
    monkeypatch.setattr(kernels, "_processors", lambda _: 132)
    with pretended_gpu(monkeypatch, "triton"), NoCopies():
        whole = {"dtype": torch.int64}
        half = {"dtype": torch.bfloat16}
        video = ops.Groups(on_gpu(2, 8, **whole), None, on_gpu(2, 1, **whole))
        page = ops.Groups(on_gpu(16, 1, **whole), on_gpu(16, **whole), on_gpu(16, 1, **whole))
        prompt = ops.Groups(on_gpu(1, 16, **whole), causal=True)
        levels = [
            [ops.Segment(on_gpu(2, 4, 2000, 128, **half), on_gpu(2, 4, 2000, 128, **half), video)],
            [ops.Segment(on_gpu(40, 4, 64, 128, **half), on_gpu(40, 4, 64, 128, **half), page)],
            [ops.Segment(on_gpu(1, 4, 16, 128, **half), on_gpu(1, 4, 16, 128, **half), prompt)],
        ]
        out, lse = ops.prefix_attention(on_gpu(16, 28, 128, **half), levels)
        assert out.shape == (16, 28, 128) and out.device == lse.device == CUDA
    assert attend.grids == [(2, 4, 7), (16, 4, 1), (2, 4, 1)] and merge.grids == [(16 * 28,)]


def test_patchify_does_not_wait(monkeypatch):
    kernels = pytest.importorskip("vstar_fast.kernels.patchify.triton_kernel")
    kernel = Kernel()
    monkeypatch.setattr(kernels, "patchify_rows", kernel)
    layout = ops.Layout((1.0,) * 3, (2.0,) * 3, 14, 2, 2)
    with pretended_gpu(monkeypatch, "triton"):
        kernels._table(layout, CUDA)  # goes to the GPU once
        with NoCopies():
            found = ops.patchify(on_gpu(5, 3, 56, 84, dtype=torch.uint8), layout)
            assert found.shape == (3 * 4 * 6, 3 * 2 * 14 * 14) and found.device == CUDA
        kernels._TABLES.clear()
    assert kernel.grids == [(72, 2)]


def test_a_fused_sample_is_launched_where_its_logits_are(monkeypatch):
    kernels = pytest.importorskip("vstar_fast.kernels.sample.triton_kernel")
    kernel = Kernel()
    monkeypatch.setattr(kernels, "sample_rows", kernel)
    with pretended_gpu(monkeypatch, "triton"), NoCopies():
        ops.sample(on_gpu(ROWS, 50, dtype=torch.float16), on_gpu(ROWS, dtype=torch.int64), 2, 0.7)
    assert kernel.grids == [(ROWS,)]


def test_tree_attention_is_launched_where_its_tokens_are(monkeypatch):
    """Forward and back; on a machine without CUDA there is no autograd thread for its tensors."""
    kernels = pytest.importorskip("vstar_fast.kernels.tree_attention.triton_kernel")
    made = {name: Kernel() for name in ("forward", "keys_back", "query_back")}
    for name, kernel in made.items():
        monkeypatch.setattr(kernels, name, kernel)
    tree = Tree([Node(0, 100, 164, 0), Node(100, 132, 132, 1), Node(132, 164, 164, 1)])
    with pretended_gpu(monkeypatch, "triton"):
        query, keys, values = (on_gpu(164, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2))
        tokens = types.SimpleNamespace(save_for_backward=lambda *tensors: setattr(tokens, "saved_tensors", tensors))
        out = kernels._TreeAttention.forward(tokens, query, keys, values, None, tree, 0.125)
        grads = kernels._TreeAttention.backward(tokens, torch.empty_like(out))
        assert [g.shape for g in grads[:3]] == [t.shape for t in (query, keys, values)]
    assert [kernel.grids for kernel in made.values()] == [[(3, 4)], [(3, 2)], [(3, 4)]]
