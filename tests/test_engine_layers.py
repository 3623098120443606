"""Text stacks whose layers are not all of one kind: what is seen of them, and Hugging Face's own answers."""

import pytest
import torch

from test_engine import text_model
from vstar_fast.engine import cache
from vstar_fast.engine.layers import layers_of, shape_of
from vstar_fast.engine.store import LayerShape, Store

GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 97,
    "num_kv_shared_layers": 2,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
}


def stack(kind, **more):
    return text_model(kind, **more).get_decoder()


def test_what_layers_keep_is_seen_layer_by_layer_and_equal_ones_lie_together():
    narrow, wide = LayerShape(2, 16, 16), LayerShape(2, 32, 32)
    found = stack("Gemma4", **GEMMA4)
    assert layers_of(found) == ((narrow, wide, None, None), (8,), "")
    shape = shape_of(found, torch.device("cpu"))
    assert shape.kinds == (narrow, wide) and shape.layers == ((0, 0), (1, 0), None, None)
    node = Store(shape).take(70)
    assert [tuple(t.shape[2:]) for t in node.arena.tensors] == [(2, 128, 16), (2, 128, 32)] * 2
    assert node.arena.nbytes == shape.token_bytes * node.arena.capacity * node.arena.slots
    equal = shape_of(stack("Llama"), torch.device("cpu"))
    assert equal.kinds == (LayerShape(2, 8, 8),) and equal.layers == ((0, 0), (0, 1))
    assert equal.token_bytes == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("Llama", {}, ""),
        ("Gemma2", {"head_dim": 16}, "Gemma2Model has attention with softcap"),
        ("Mistral", {"sliding_window": 8}, "MistralModel has layers with a sliding window of 8 tokens"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, ""),
        ("FalconH1", {}, "FalconH1Model has layers of hybrid"),
    ],
)
def test_the_reason_why_a_stack_is_refused_is_told_and_the_model_is_called_once(kind, more, said, monkeypatch):
    found = stack(kind, **more)
    calls = []
    found.register_forward_pre_hook(lambda *_: calls.append(1))
    before = found.config._attn_implementation
    reason = cache.refusal(found)
    assert reason.startswith(said) if said else reason == ""
    assert cache.refusal(found) == reason and len(calls) <= 1 and found.config._attn_implementation == before
