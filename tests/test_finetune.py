"""Fine-tuning: loss, accumulation, what is trained, what is saved."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from vstar_fast import frames, models, readers
from vstar_fast.config import DataConfig, FinetuneConfig, FramesConfig
from vstar_fast.errors import ModelError, NothingKept, RunError
from vstar_fast.finetune import accumulate, count_steps, finetune, lora_settings
from vstar_fast.finetune.batches import batches, packs
from vstar_fast.finetune.items import Item, Reader, cut
from vstar_fast.finetune.optimizer import Optimizer
from vstar_fast.models.video_lm import Features
from vstar_fast.records import Example
from vstar_fast.run.runtime import unload

CONFIG = FinetuneConfig(batch_size=4, micro_batch_size=4, lora_r=2, lora_alpha=4, epochs=1.0)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    model = tiny.write_model(root / "model")
    data = tiny.write_data(root / "data")
    videos, rejected, _ = readers.read(DataConfig(path=str(data)))
    assert not rejected
    return model, videos[:4]


@pytest.fixture
def setup(project):
    from peft import get_peft_model

    path, videos = project
    lm = models.load(str(path))
    batch = frames.to_batch(list(frames.read(videos, FramesConfig(count=4))), videos)
    features = dict(zip([x.id for x in videos], lm.encode(batch), strict=True))
    answers = ["I see red .", "Answer: blue", "I see a colour . Answer: green", "red"]
    examples = [Example(x.id, x.id, "which colour", a, "direct") for x, a in zip(videos, answers, strict=True)]

    def rows(part):
        return ["which colour" for _ in part], [features[e.video_id] for e in part]

    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, CONFIG))
    return lm, peft, examples, rows


def backward(lm, peft, examples, rows, **changes):
    """(loss, answer tokens) of one batch."""
    loss, counts = accumulate(lm, peft, Reader(lm, rows)(examples), dataclasses.replace(CONFIG, **changes))
    return loss, counts["answer_tokens"]


def gradients(peft):
    return {n: p.grad.clone() for n, p in peft.named_parameters() if p.grad is not None}


def test_loss_is_the_models_own_over_answer_tokens(setup):
    lm, peft, examples, rows = setup
    loss, tokens = backward(lm, peft, examples, rows)
    texts, features = rows(examples)
    inputs = lm.inputs(texts, features, [e.answer for e in examples])
    assert tokens == (inputs["labels"] != -100).sum()
    assert loss == pytest.approx(peft(**inputs).loss.item(), abs=1e-5)


def test_micro_batches_change_neither_loss_nor_gradient(setup):
    lm, peft, examples, rows = setup
    whole, _ = backward(lm, peft, examples, rows)
    expected = gradients(peft)
    peft.zero_grad()
    pieces, _ = backward(lm, peft, examples, rows, micro_batch_size=1)
    found = gradients(peft)
    assert pieces == pytest.approx(whole, abs=1e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_weights_count(setup):
    lm, peft, examples, rows = setup
    heavy = [dataclasses.replace(examples[0], weight=3.0), examples[1]]
    loss, _ = backward(lm, peft, heavy, rows)
    alone = [backward(lm, peft, [e], rows) for e in examples[:2]]
    (a, n), (b, m) = alone
    assert loss == pytest.approx((3 * a * n + b * m) / (3 * n + m), abs=1e-5)


def test_only_lora_and_projector_are_trained_and_the_loss_falls(setup, tmp_path):
    lm, peft, examples, rows = setup
    frozen = {n: p.clone() for n, p in peft.named_parameters() if not p.requires_grad}
    trained = [n for n, p in peft.named_parameters() if p.requires_grad]
    assert all("lora_" in n or "multi_modal_projector" in n for n in trained)
    assert any("lora_" in n for n in trained) and any("multi_modal_projector" in n for n in trained)
    config = dataclasses.replace(CONFIG, steps=30, lr=2e-2, projector_lr=2e-2)
    log = finetune(lm, peft, examples, rows, config, tmp_path / "adapter", seed=0)
    assert log["steps"] == 30 and log["loss"][-1] < 0.7 * log["loss"][0]
    for name, value in frozen.items():
        torch.testing.assert_close(dict(peft.named_parameters())[name], value, atol=0, rtol=0)


def test_saved_adapter_loads_with_plain_peft(setup, project, tmp_path):
    from peft import PeftModel

    lm, peft, examples, rows = setup
    finetune(lm, peft, examples, rows, dataclasses.replace(CONFIG, steps=3, lr=1e-2), tmp_path / "a", seed=0)
    texts, features = rows(examples)
    inputs = lm.inputs(texts, features)
    expected = peft(**inputs).logits
    again = models.load(str(project[0]))
    loaded = PeftModel.from_pretrained(again.model, str(tmp_path / "a")).eval()
    torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-6, rtol=0)


def test_nan_stops_with_the_setting_to_change(setup, tmp_path):
    lm, peft, examples, rows = setup
    with torch.no_grad():
        next(p for n, p in peft.named_parameters() if "lora_A" in n).fill_(math.nan)
    with pytest.raises(RunError, match=r"loss is nan at step 0; lower finetune\.lr"):
        finetune(lm, peft, examples, rows, dataclasses.replace(CONFIG, steps=2), tmp_path / "a", seed=0)


def test_batches_cover_every_example_once_an_epoch():
    examples = [Example(str(i), str(i), "", "", "direct") for i in range(10)]
    config = FinetuneConfig(batch_size=4, micro_batch_size=4, epochs=2.0)
    steps = count_steps(config, len(examples))
    assert steps == 5
    seen = [e.video_id for b in batches(examples, [e.video_id for e in examples], 4, steps, seed=1) for e in b]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(e.video_id for e in examples)
    assert seen[:10] != seen[10:]


def test_a_model_is_what_it_was_once_the_adapter_is_off(setup, tmp_path):
    lm, peft, examples, rows = setup
    plain = [(n.replace(".base_layer", "").replace(".original_module", ""), p) for n, p in lm.model.named_parameters()]
    before = {n: p.clone() for n, p in plain}
    texts, features = rows(examples)
    inputs = lm.inputs(texts, features)
    with torch.no_grad():
        expected = lm.model(**inputs).logits
    config = dataclasses.replace(CONFIG, steps=3, lr=1e-2, projector_lr=1e-2)
    finetune(lm, peft, examples, rows, config, tmp_path / "a", seed=0)
    unload(peft)
    after = dict(lm.model.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in after.items())
    with torch.no_grad():
        assert torch.equal(lm.model.eval()(**inputs).logits, expected)


@pytest.mark.parametrize("names", ["nope", "q_proj, nope", "j_proj", "nope,", "model", "input_layernorm"])
def test_target_modules_that_the_model_lacks_are_named(project, names):
    lm = models.load(str(project[0]))
    wrong = names.split(",")[-1].strip() or "nope"
    with pytest.raises(ModelError) as error:
        lora_settings(lm, dataclasses.replace(CONFIG, target_modules=names.rstrip(",")))
    assert f"finetune.target_modules names {wrong!r}, but no layer of" in str(error.value)
    assert "use auto, or names such as" in str(error.value) and "q_proj" in str(error.value)


def test_target_modules_that_the_model_has_are_taken(project):
    from peft import get_peft_model

    lm = models.load(str(project[0]))
    named = lora_settings(
        lm, dataclasses.replace(CONFIG, target_modules="q_proj, layers.0.mlp.down_proj", projector=False)
    )
    got = [n for n, _ in get_peft_model(lm.model, named).named_modules() if n.endswith("lora_A.default")]
    assert sorted(n.split(".")[-3] for n in got) == ["down_proj", "q_proj", "q_proj"]


def test_an_example_longer_than_the_budget_is_left_out_and_counted(setup, tmp_path):
    lm, peft, examples, rows = setup
    lengths = sorted(i.tokens for i in Reader(lm, rows)(examples))
    config = dataclasses.replace(CONFIG, steps=1, micro_batch_tokens=lengths[-2])
    log = finetune(lm, peft, examples, rows, config, tmp_path / "a", seed=0)
    assert log["examples"] == 3 and [row["reason"] for row in log["left_out"]] == ["too_long"]
    assert f"{lengths[-1]} tokens, but finetune.micro_batch_tokens" in log["left_out"][0]["detail"]
    with pytest.raises(NothingKept, match=r"none of 4 examples can be trained on; .*micro_batch_tokens = 3"):
        finetune(lm, peft, examples, rows, dataclasses.replace(config, micro_batch_tokens=3), tmp_path / "b", seed=0)


def test_an_answer_that_is_too_long_can_be_cut(setup, tmp_path):
    lm, peft, examples, rows = setup
    items = Reader(lm, rows)(examples)
    most = min(i.tokens for i in items)
    config = dataclasses.replace(CONFIG, steps=1, micro_batch_tokens=most, cut_long=True)
    log = finetune(lm, peft, examples, rows, config, tmp_path / "a", seed=0)
    assert log["examples"] == 4 and log["left_out"] == []
    assert log["row_tokens"] == 4 * most
    (shorter,) = (cut(i, i.tokens - 2) for i in items[2:3])
    assert shorter.answer.tolist() == items[2].answer[:-2].tolist()


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(30, 90),
)
def test_packs_hold_every_item_once_within_their_limits(rows, most_items, most_tokens):
    video = Features(torch.zeros(8, dtype=torch.long), {})
    items = [
        Item(
            Example(f"v{v}", f"q{n}", "", "", "direct"),
            "",
            video,
            torch.arange(5),
            torch.full((q + 1,), q),
            torch.arange(a),
            clip=v + 1,
        )
        for n, (v, q, a) in enumerate(rows)
    ]
    found = packs(items, most_items, most_tokens)
    assert sorted(i.example.question_id for p in found for i in p) == sorted(i.example.question_id for i in items)
    for p in found:
        assert len(p) <= most_items
        assert sum({key: n for i in p for key, n in i.parts.items()}.values()) <= most_tokens


def test_bf16_weights_take_steps_smaller_than_their_own_rounding(setup):
    lm, peft, _, _ = setup
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    holder = torch.nn.Module()
    holder.model = torch.nn.Module()
    holder.model.multi_modal_projector = torch.nn.Module()
    holder.model.multi_modal_projector.weight = weight
    config = dataclasses.replace(CONFIG, projector_lr=1e-3, warmup_ratio=0.0, schedule="constant")
    optimizer = Optimizer(lm, holder, config, 20)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.clip()
        optimizer.step()
    assert weight.dtype == torch.bfloat16 and weight.tolist() == pytest.approx([0.98] * 4, abs=5e-3)


@pytest.mark.parametrize("change", [{"tune": "full"}, {"lora": "dora"}, {"modules_to_save": "lm_head"}], ids=str)
def test_every_kind_of_adapter_loads_with_plain_peft_and_merges(project, tmp_path, change):
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForImageTextToText

    lm = models.load(str(project[0]))
    _, videos = project
    batch = frames.to_batch(list(frames.read(videos, FramesConfig(count=4))), videos)
    features = lm.encode(batch)
    examples = [Example(x.id, x.id, "which colour", "I see red .", "direct") for x in videos]
    by_id = dict(zip([x.id for x in videos], features, strict=True))
    config = dataclasses.replace(CONFIG, steps=2, lr=1e-2, **change)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    finetune(
        lm,
        peft,
        examples,
        lambda p: (["which colour"] * len(p), [by_id[e.video_id] for e in p]),
        config,
        tmp_path / "a",
        seed=0,
    )
    inputs = lm.inputs(["which colour"] * 2, features[:2])
    with torch.no_grad():
        expected = peft(**inputs).logits
        unload(peft)
        assert (lm.model(**inputs).logits - expected).abs().max() > 1e-3
        loaded = PeftModel.from_pretrained(lm.model, str(tmp_path / "a")).eval()
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-6, rtol=0)
        loaded.merge_and_unload().save_pretrained(str(tmp_path / "merged"))
        plain = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "merged")).eval()
        torch.testing.assert_close(plain(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_modules_to_save_that_the_model_lacks_are_named(project):
    lm = models.load(str(project[0]))
    with pytest.raises(ModelError, match=r"modules_to_save names 'lm_haed'.*did you mean 'lm_head'\?"):
        lora_settings(lm, dataclasses.replace(CONFIG, modules_to_save="lm_haed"))
    with pytest.raises(ModelError, match=r"target_modules names 'q_prj'.*did you mean 'q_proj'\?"):
        lora_settings(lm, dataclasses.replace(CONFIG, target_modules="q_prj"))


def test_layers_are_kept_again_once_checkpointing_ends(setup, tmp_path):
    lm, peft, examples, rows = setup
    config = dataclasses.replace(CONFIG, steps=1, gradient_checkpointing=True)
    finetune(lm, peft, examples, rows, config, tmp_path / "a", seed=0)
    assert not lm.text_model.is_gradient_checkpointing
    log = json.loads((tmp_path / "a" / "training.json").read_text())
    assert log["packed_tokens"] < log["row_tokens"] and len(log["grad_norm"]) == len(log["loss"]) == 1


def test_dpo_prefers_kept_answers_and_leaves_out_what_has_no_pair(setup, tmp_path):
    lm, peft, examples, rows = setup
    pairs = [dataclasses.replace(e, rejected="which colour .") for e in examples[:3]] + [examples[3]]
    config = dataclasses.replace(CONFIG, objective="dpo", steps=20, lr=2e-2, projector_lr=2e-2)
    log = finetune(lm, peft, pairs, rows, config, tmp_path / "a", seed=0)
    assert log["loss"][0] == pytest.approx(math.log(2), abs=1e-5) and log["loss"][-1] < 0.5 * log["loss"][0]
    assert [row["reason"] for row in log["left_out"]] == ["no_failed_answer"] and log["examples"] == 3


@pytest.mark.parametrize("blank", [" ", "\n\t", "\u3000"])
def test_dpo_leaves_out_pairs_whose_rejected_answer_has_no_words(setup, tmp_path, blank):
    lm, peft, examples, rows = setup
    pairs = [dataclasses.replace(e, rejected=blank if n == 1 else "which colour .") for n, e in enumerate(examples)]
    config = dataclasses.replace(CONFIG, objective="dpo", steps=1)
    log = finetune(lm, peft, pairs, rows, config, tmp_path / "a", seed=0)
    assert [(x["question_id"], x["reason"]) for x in log["left_out"]] == [(pairs[1].question_id, "no_answer")]
    assert log["examples"] == 3 and "rejected answer has no words" in log["left_out"][0]["detail"]
    plain = finetune(lm, peft, pairs, rows, dataclasses.replace(CONFIG, steps=1), tmp_path / "b", seed=0)
    assert plain["left_out"] == []  # objective sft does not look at it


def test_no_examples_none_of_any_weight_and_a_folder_as_text(setup, tmp_path):
    lm, peft, examples, rows = setup
    with pytest.raises(NothingKept, match="none of 0 examples"):
        finetune(lm, peft, [], lambda _: ([], []), CONFIG, tmp_path / "out", seed=0)
    weighed = [dataclasses.replace(e, weight=float(n)) for n, e in enumerate(examples, -1)]
    log = finetune(lm, peft, weighed, rows, CONFIG, str(tmp_path / "out"), seed=0)
    assert [x["reason"] for x in log["left_out"]] == ["no_weight", "no_weight"] and log["examples"] == 2
    assert json.loads((tmp_path / "out" / "training.json").read_text())["examples"] == 2


def test_layers_that_mix_the_branches_of_a_row_are_refused(setup):
    lm, peft, examples, rows = setup
    lm.text_model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ModelError, match=r"layers of linear_attention.*set finetune.pack = false"):
        backward(lm, peft, examples, rows)
    assert math.isfinite(backward(lm, peft, examples, rows, pack=False)[0])


def test_balance_lets_a_rare_class_be_learnt_as_well(setup, project, tmp_path):
    """Nine answers of one class and one of another: what the rare one's loss comes to."""
    from peft import get_peft_model

    from vstar_fast import dataset
    from vstar_fast.records import Label, Question

    lm, peft, examples, rows = setup
    unload(peft)
    label = {0: "red", 1: "blue"}
    asked = {f"q{i}": Question(f"q{i}", "", "", (Label("class", "c", label[i == 9]),), "") for i in range(10)}
    videos = [e.video_id for e in examples]
    made = [Example(videos[i == 9], f"q{i}", "which colour", f"Answer: {label[i == 9]}", "direct") for i in range(10)]
    assert [e.weight for e in dataset.balance(made, asked)] == pytest.approx([5 / 9] * 9 + [5.0])
    sizes = {"batch_size": 10, "micro_batch_size": 10, "steps": 25}
    config = dataclasses.replace(CONFIG, **sizes, lr=1e-2, modules_to_save="lm_head")
    rare = {}
    for name, data in (("as it is", made), ("balanced", dataset.balance(made, asked))):
        torch.manual_seed(0)
        peft = get_peft_model(lm.model, lora_settings(lm, config))
        finetune(lm, peft, data, rows, config, tmp_path / name.replace(" ", ""), seed=0)
        with torch.no_grad():
            rare[name] = backward_free(lm, [made[9]], rows)
        unload(peft)
    assert rare["balanced"] < 0.6 * rare["as it is"]


def backward_free(lm, examples, rows):
    """Negative log-likelihood of answers."""
    from vstar_fast.finetune.loss import row_nll

    return float(row_nll(lm, Reader(lm, rows)(examples)).sum())
