"""Text stacks whose layers are not all of one kind: what is seen of them, and Hugging Face's own answers."""

import copy
import functools

import numpy as np
import pytest
import torch
from vstar_fast.kernels.prefix_attention import prefix_attention

from test_engine import drawn, prompts, request, text_model, theirs
from test_engine_score import rows
from vstar_fast.engine import Request, Scheduler, Scorer, Settings, TextLM, cache, chunked_prefill, windows
from vstar_fast.engine.plan import Level, Span
from vstar_fast.engine.store import Shape, Store
from vstar_fast.errors import ModelError
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.layers import LayerShape, layers_of

HYBRID = ["sliding_attention", "full_attention"]
LATENT = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 6,
}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 97,
    "num_kv_shared_layers": 2,
    "num_hidden_layers": 4,
    "layer_types": HYBRID * 2,
    "sliding_window": 8,
}
STACKS = {
    "all layers with a window": ("Mistral", {"sliding_window": 8}),
    "window over a page's edge": ("Exaone4", {"sliding_window": 70, "layer_types": HYBRID}),
    "shared keys, several widths": ("Gemma4", GEMMA4),
    "latent": ("DeepseekV3", LATENT),
    "sinks": ("GptOss", {"num_local_experts": 4, "head_dim": 8, "sliding_window": 9, "layer_types": HYBRID}),
}


def decoder(kind, **more):
    return text_model(kind, **more).get_decoder()


def test_what_layers_keep_is_seen_layer_by_layer_and_equal_ones_lie_together():
    narrow, wide = LayerShape(2, 16, 16), LayerShape(2, 32, 32)
    found = decoder("Gemma4", **GEMMA4)
    assert layers_of(found) == ((narrow, wide, None, None), (8,), "", False)
    shape = Shape.of(layers_of(found).shapes, torch.float32, torch.device("cpu"))
    assert shape.kinds == (narrow, wide) and shape.layers == ((0, 0), (1, 0), None, None)
    node = Store(shape).take(70)
    assert [tuple(t.shape[2:]) for t in node.arena.tensors] == [(2, 128, 16), (2, 128, 32)] * 2
    assert node.arena.nbytes == shape.token_bytes * node.arena.capacity * node.arena.slots
    equal = Shape.of(layers_of(decoder("Llama")).shapes, torch.float32, torch.device("cpu"))
    assert equal.kinds == (LayerShape(2, 8, 8),) and equal.layers == ((0, 0), (0, 1))
    assert equal.token_bytes == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("Llama", {}, ""),
        ("Gemma2", {"head_dim": 16}, "Gemma2Model has attention with softcap"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, ""),
        ("FalconH1", {}, "FalconH1Model has layers of hybrid"),
    ],
)
def test_the_reason_why_a_stack_is_refused_is_told_and_the_model_is_called_once(kind, more, said, monkeypatch):
    found = decoder(kind, **more)
    calls = []
    found.register_forward_pre_hook(lambda *_: calls.append(1))
    before = found.config._attn_implementation
    reason = cache.refusal(found)
    assert reason.startswith(said) if said else reason == ""
    assert cache.refusal(found) == reason and len(calls) <= 1 and found.config._attn_implementation == before


@pytest.fixture(scope="module", params=STACKS)
def model(request):
    kind, more = STACKS[request.param]
    return text_model(kind, **more)


@pytest.mark.parametrize("plain_below", [0, 64])
def test_greedy_answers_are_generates(model, plain_below):
    """Prompts shorter than the windows, as long and longer; answers that outgrow windows and pages."""
    asked = prompts(1, 7, 8, 40, 64, 150)
    scheduler = Scheduler(TextLM(model), max_rows=7, plain_below=plain_below)
    found = drawn(scheduler, [request(ids, max_new_tokens=30) for ids in asked])
    for ids, answers in zip(asked, found, strict=True):
        assert answers == [theirs(model, ids, 30)] * 3


def test_samples_have_the_models_own_log_probabilities_and_do_not_depend_on_their_batch(model):
    asked = [request(i, temperature=1.0, max_new_tokens=24) for i in prompts(5, 8, 9, 63, 130, 200)]
    together = {id(r): answers for r, answers in Scheduler(TextLM(model)).run(asked)}
    assert drawn(Scheduler(TextLM(model), max_rows=2), asked) == [[a.token_ids for a in together[id(r)]] for r in asked]
    lm = TextLM(model)
    for r in asked:
        for answer in together[id(r)]:
            assert answer.logprob == pytest.approx(rows(lm, r.tail, answer.token_ids), abs=2e-4)


class Clip:
    """A video of a text model: so many tokens."""

    def __init__(self, ids):
        self.ids = ids


def questions(**settings):
    """Two questions about one clip, and one about another, behind the same system prompt."""
    head, one, other, *asked = prompts(5, 61, 20, 9, 3, 30)
    clips = [Clip(one)] * 2 + [Clip(other)]
    return [Request(head, tail, clip, (1, 2), Settings(**settings)) for clip, tail in zip(clips, asked, strict=True)]


def whole(r):
    return torch.cat([r.head, r.features.ids, r.tail])


@pytest.mark.parametrize("most", [1 << 62, 21])
def test_a_window_reaches_over_clips_questions_and_pieces_of_prompts(model, most, monkeypatch):
    monkeypatch.setattr(windows, "BLOCK", 16)
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", most)
    lm = TextLM(model)
    asked = questions(max_new_tokens=20)
    for r, answers in zip(asked, drawn(Scheduler(lm, plain_below=0), asked), strict=True):
        assert answers == [theirs(model, whole(r), 20)] * 2


def test_blocks_of_a_long_prompt_have_one_mask():
    """In half precision a mask is as large as the scores of all heads: one a block would be window times prompt."""
    shape = Shape.of(layers_of(decoder("Llama")).shapes, torch.float32, torch.device("cpu"))
    node = Store(shape).take(3000)
    level = Level("causal", [Span(node, 0, 3000, 0, 3000)])
    (slabs,) = windows.within(64, [level], np.arange(3000), torch.device("cpu"))
    assert len(slabs) == 12 and len({id(slab.groups.visible) for slab in slabs}) == 3  # the first, the last, the others
    assert slabs[1].groups.bias(319, 2, torch.bfloat16) is slabs[9].groups.bias(319, 2, torch.bfloat16)


def test_labels_score_as_rows_of_their_own(model):
    lm = TextLM(model)
    asked = questions()
    labels = [[t.tolist()] for t in prompts(1, 4, 15, 15, 2)]
    labels[3][0][:9] = labels[2][0][:9]
    found = Scorer(lm).score(asked, labels)
    for r, scores in zip(asked, found.tolist(), strict=True):
        assert scores == pytest.approx([rows(lm, whole(r), surface) for (surface,) in labels], abs=2e-4)


def test_a_window_changes_what_is_said():
    """Else the tests above would show nothing."""
    narrow, wide = (text_model("Mistral", sliding_window=n) for n in (8, 1 << 20))
    (ids,) = prompts(40)
    assert theirs(narrow, ids, 20) != theirs(wide, ids, 20)


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_without_weights_can_be_looked_at(name):
    kind, more = STACKS[name]
    found = text_model(kind, **more).to("meta").get_decoder()
    assert cache.refusal(found) == ""


@pytest.mark.parametrize("change", ["keeps quiet", "looks ahead", "reads its keys"])
def test_layers_that_would_be_got_wrong_are_refused(change, monkeypatch):
    """A window that is not handed on, attention both ways, attention in code of its own."""
    found = decoder("Exaone4", sliding_window=8, layer_types=HYBRID)
    first = found.layers[0].self_attn
    if change == "keeps quiet":
        monkeypatch.setattr(first, "sliding_window", None)
        said = "sliding windows that its layers do not hand on"
    elif change == "looks ahead":
        first.is_causal = False
        said = "attention that is not causal"
    else:
        forward = first.forward

        def own(hidden_states, *args, **kwargs):
            update = kwargs[CACHE].update
            kwargs[CACHE].update = lambda *given, **named: (update(*given, **named)[0][..., :4], None)
            try:
                return forward(hidden_states, *args, **kwargs)
            finally:
                kwargs[CACHE].update = update

        monkeypatch.setattr(first, "forward", own)
        said = "layers that fail with handles in place of keys"
    assert said in cache.refusal(found)
    with pytest.raises(ModelError, match=said):
        cache.check(found)


def test_torchs_own_attention_does_not_leave_sinks_out():
    kind, more = STACKS["sinks"]
    model = text_model(kind, **more)
    cache.register()
    model.set_attn_implementation("vstar_prefix")
    with pytest.raises(ModelError, match="asks for s_aux, which torch's attention does not have"), torch.no_grad():
        model(input_ids=prompts(4)[0][None])


@pytest.mark.parametrize("backend", ["flash", "gemm"])
def test_other_backends_than_this_machines_best(model, backend, monkeypatch):
    """Fused attention of torch, and matrix products: what runs in half precision, and without AVX-512."""
    monkeypatch.setattr(windows, "BLOCK", 16)
    monkeypatch.setattr(cache, "prefix_attention", functools.partial(prefix_attention, backend=backend))
    lm = TextLM(model)
    asked = questions(max_new_tokens=12)
    for r, answers in Scheduler(lm, plain_below=0).run(asked):
        for answer in answers:
            assert answer.logprob == pytest.approx(rows(lm, whole(r), answer.token_ids), abs=2e-4)


@pytest.mark.parametrize("name", ["all layers with a window", "latent", "sinks"])
def test_half_precision_is_as_near_to_full_as_the_models_own(name):
    """Values of another width, masks and sinks in bf16."""
    kind, more = STACKS[name]
    model = text_model(kind, **more)
    half = copy.deepcopy(model).bfloat16()
    lm = TextLM(half)
    for r, answers in Scheduler(lm, plain_below=0).run(questions(max_new_tokens=12)):
        ids = whole(r)
        for answer in answers:
            exact, own = (rows(TextLM(m), ids, answer.token_ids) for m in (model, half))
            assert abs(answer.logprob - exact) < 3 * abs(own - exact) + 1.0
