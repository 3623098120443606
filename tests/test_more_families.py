"""Every other video family of transformers, tiny and random: rows, answers and gradients are the model's own."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import families
from test_engine_families import asked, theirs
from test_families import TEXTS, batch_of, through_stack
from vstar_fast import doctor, models
from vstar_fast.engine import ways
from vstar_fast.engine.engine import as_lm
from vstar_fast.errors import ModelError, NotPacked
from vstar_fast.models import placeholder

CLIPS = [(4, 0.5, (56, 84)), (1, 1.0, (50, 70)), (7, 2.0, (61, 93))]
"""Frames, seconds between them, size."""


@pytest.fixture(scope="module", params=sorted(families.MORE))
def lm(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def own_logits(lm, text, data, times):
    """Of the model's forward on the processor's output, log-probabilities `[T, V]`; and its ids."""
    inputs = lm.processed(lm.prompt(text), data, times)
    logits = lm.model(**{k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}, use_cache=False).logits
    lm.forget_positions()
    return logits[0].log_softmax(-1), inputs["input_ids"][0]


@torch.no_grad()
def test_rows_are_the_models_own_and_the_tower_runs_once(lm):
    for text, (frames, step_s, size) in zip(TEXTS, CLIPS, strict=True):
        batch = batch_of(size, frames_each=frames, step_s=step_s)
        wanted, ids = own_logits(lm, text, batch.data[0], batch.times_s[0])
        for features in (*lm.pixels(batch), *lm.encode(batch)):
            head, tail = lm.split(text)
            row = torch.cat([head, features.ids, tail])
            assert row.tolist() == ids.tolist()
            given = lm.embed(row, features, masked=True)
            found = lm.logits(through_stack(lm, given))[0].log_softmax(-1)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            assert given.position_ids.shape == (lm.position_rows, len(row))
        assert lm.tower.why_pixels == "" and "tower_features" in features.kwargs


@torch.no_grad()
def test_a_row_for_training_is_the_models_own_forward(lm):
    """The way of stacks that cannot be packed: `row_inputs` and `inputs` give one row, its hidden states the logits."""
    (features,) = lm.encode(batch_of((56, 84)))
    inputs = lm.inputs([TEXTS[0]], [features], ["red"])
    labels = inputs.pop("labels")
    row = lm.row_inputs(inputs["input_ids"][0], features) | {"attention_mask": torch.ones_like(labels)}
    lm.model.train()
    hidden = lm.hidden(row)
    lm.model.eval()
    lm.forget_positions()
    out = lm.model(**inputs, labels=labels)
    lm.forget_positions()
    torch.testing.assert_close(lm.logits(hidden), out.logits, atol=1e-4, rtol=1e-4)
    assert out.loss.isfinite()


def test_what_a_model_reads_and_cannot_write_is_in_no_grammar(lm):
    """Molmo 2 has embeddings of more tokens than its head has columns."""
    columns = lm.head.weight.shape[0]
    assert lm.vocab.logits_size == columns >= len(lm.vocab.tokens) and lm.token_bytes is not None
    assert lm.vocab.decode(lm.tokenizer(" red")["input_ids"]) == b" red"


@torch.no_grad()
def test_words_alone_are_the_models_own(lm):
    ids = torch.cat([*lm.split("which colour"), placeholder.said(lm)])
    given = lm.embed(ids)
    torch.testing.assert_close(given.inputs_embeds[0], lm.embed_tokens(ids))
    torch.testing.assert_close(lm.text_extras(ids), {k: given.extras[k] for k in lm.text_extras(ids)})
    logits = lm.model(input_ids=ids[None]).logits
    torch.testing.assert_close(lm.logits(through_stack(lm, given)), logits, atol=1e-4, rtol=1e-4)


def test_gradients_reach_what_follows_the_tower(lm):
    (features,) = lm.encode(batch_of((56, 84)))
    given = lm.embed(torch.cat([lm.split("a")[0], features.ids]), features, masked=True)
    through_stack(lm, given).square().sum().backward()
    for name in lm.projector_names():
        weights = list(lm.model.get_submodule(name).parameters())
        assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in weights)
    lm.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["dots3_note", "minimax_m3_vl", "qwen4_exp"])
def test_all_that_lora_is_put_on_gets_a_gradient(name, tmp_path):
    """Indexers choose keys by number, through which no gradient goes."""
    from peft import LoraConfig, get_peft_model

    lm = models.load(str(families.write(name, tmp_path / "model")))
    peft = get_peft_model(lm.model, LoraConfig(target_modules=lm.language_linears(), init_lora_weights=False))
    lm.hidden(lm.row_inputs(torch.arange(40) % 7 + 7)).square().sum().backward()
    added = {n: p.grad for n, p in peft.named_parameters() if "lora_" in n}
    assert len(added) > 10 and not [n for n, grad in added.items() if grad is None]


def test_greedy_answers_are_generates(lm):
    first, second = lm.encode(batch_of((56, 84), (70, 56)))
    features, texts = [first, second, first], ["which colour", "is it red?", "see a ball"]
    requests = asked(lm, features, texts, 6)
    scheduler = ways.WAYS[ways.choose(lm).name](lm, max_rows=4)
    found = {id(r): [a.token_ids for a in answers] for r, answers in scheduler.run(requests)}
    for request, text, feature in zip(requests, texts, features, strict=True):
        assert found[id(request)] == [theirs(lm, text, feature, 6)] * 2


@torch.no_grad()
def test_what_cannot_be_packed_is_refused_by_name(lm):
    """Where a video's tokens are numbered by what is behind them, a front that questions share is wrong."""
    (features,) = lm.encode(batch_of((56, 84), frames_each=8))
    head, tail = lm.split("a")
    front = torch.cat([head, features.ids])
    part, whole = (lm.embed(ids, features, masked=True) for ids in (front, torch.cat([front, tail])))
    counted = part.next_position + torch.arange(len(tail))
    shared = bool((whole.position_ids[:, len(front) :] == counted).all())
    assert shared == (lm.refusal == "") and lm.sees_ahead == (whole.mask is not None)
    if not shared or lm.sees_ahead:
        with pytest.raises(NotPacked, match="see those behind them|by what follows"):
            lm.embed(front, features)


def test_doctor_tells_of_a_family_without_its_weights(lm):
    found = doctor.examine(lm.path)["model"]
    assert found["model type"] == lm.model.config.model_type
    assert found["text stack"].startswith(lm.stack_name)


PRINTED = {
    "nemotron_h_omni": (r"sampled at ([\d.]+) seconds", [0.37, 1.41, 2.0, 61.25]),
    "cosmos3_edge": (r"<([\d.]+) seconds>", [0.4, 1.4, 2.0, 61.2]),
    "minimax_m3_vl": (r"<\]([\d.]+) seconds\[", [0.4, 2.0]),
    "kimi_k25": (r"00:00:(\d\d\.\d\d\d)", [0.37]),
    "glm46v": (r"<\|end_of_image\|>([\d.]+)", [0.4, 2.0]),
    "muse_glimmer": (r"Time: ([\d.]+)s", [0.4, 2.0]),
    "molmo2": (r"([\d.]+) <frame_start>", [0.4, 1.4, 2.0, 61.2]),
}


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_times_are_printed_as_the_frames_are_seen(name, tmp_path):
    lm = models.load(str(families.write(name, tmp_path / "model")))
    data = torch.zeros(4, 56, 56, 3, dtype=torch.uint8)
    said = lm.tokenizer.decode(lm.processed(lm.prompt("a"), data, (0.37, 1.41, 2.0, 61.25))["input_ids"][0])
    pattern, times = PRINTED[name]
    assert [float(t) for t in re.findall(pattern, said)] == times


@pytest.mark.parametrize(("part", "kind"), [("qwen2_5_omni", "Qwen2_5Omni"), ("qwen3_omni_moe", "Qwen3OmniMoe")])
def test_of_a_model_that_also_speaks_the_part_that_answers_in_words_is_taken(part, kind, tmp_path):
    folder = families.write(f"{part}_thinker", tmp_path / "model")
    want = models.load(str(folder))
    kept = load_file(folder / "model.safetensors")
    save_file({f"thinker.{k}": v for k, v in kept.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    getattr(transformers, f"{kind}Config")(thinker_config=config).save_pretrained(folder)
    assert models.model_type(str(folder)) == part and doctor.examine(str(folder))["model"]["model type"] == part
    found = models.load(str(folder)).model.state_dict()
    assert all(torch.equal(found[name], weights) for name, weights in want.model.state_dict().items())
    assert as_lm(SimpleNamespace(thinker=want.model), want.processor).model is want.model


def test_a_head_that_stays_in_fp32_takes_hidden_states_in_bf16(tmp_path):
    lm = models.load(str(families.write("hy_v4_vl", tmp_path / "model")), dtype="bfloat16")
    assert (lm.head.weight.dtype, lm.text_model.dtype) == (torch.float32, torch.bfloat16)
    (features,) = lm.encode(batch_of((56, 84)))
    ((_, answers),) = ways.WAYS["plain"](lm).run(asked(lm, [features], ["which colour"], 6))
    assert answers[0].token_ids == theirs(lm, "which colour", features, 6)


@pytest.mark.parametrize("step_s", [0.5, 2.0])
def test_seconds_that_a_processor_looks_for_elsewhere_are_those_of_the_frames(step_s, tmp_path):
    lm = models.load(str(families.write("qwen2_5_omni_thinker", tmp_path / "model")))
    (features,) = lm.encode(batch_of((56, 84), frames_each=6, step_s=step_s))
    given = lm.embed(torch.cat([lm.split("a")[0], features.ids]), features)
    times = given.position_ids[0][-len(features.ids) + 1 :].unique()[:3]
    assert (times - times[0]).tolist() == [0, 2 * step_s * 25, 4 * step_s * 25]


@pytest.mark.parametrize("name", sorted(families.REFUSED))
def test_a_family_whose_features_hang_on_the_question_is_refused_by_name(name, tmp_path):
    folder = families.write(name, tmp_path / "model")
    for call in (models.load, doctor.examine):
        with pytest.raises(ModelError, match="gives the question to a Q-Former that reads the video"):
            call(str(folder))
