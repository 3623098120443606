"""Packed-prefix training against row-by-row Hugging Face training, for every family: loss, gradients, weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from vstar_fast.kernels.tree_attention.tree import Node, Tree

import families
from test_families import batch_of
from vstar_fast import models
from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import ModelError
from vstar_fast.finetune import accumulate, checkpointed, lora_settings
from vstar_fast.finetune.items import Reader
from vstar_fast.finetune.loss import attention, packed_rows
from vstar_fast.finetune.optimizer import Optimizer
from vstar_fast.finetune.packed import pack
from vstar_fast.models.prompts import Talk
from vstar_fast.records import Example
from vstar_fast.run.runtime import unload

CONFIG = FinetuneConfig(batch_size=16, lora_r=2, lora_alpha=4, lr=1e-3, projector_lr=1e-3)
ROWS = [
    (0, "which colour", "red"),
    (0, "which colour", "it is green. Answer: a"),
    (0, "is it red?", "I see a red ball"),
    (1, "which colour", "why not"),
    (1, "is it red?", ""),
    (2, "which colour", "red"),
]


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def loaded(request, tmp_path_factory):
    lm = models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))
    batch = batch_of((56, 84), (84, 56), (56, 56), frames_each=4)
    return lm, lm.pixels(batch), lm.encode(batch)


def examples():
    return [Example(f"v{v}", f"q{n}", q, a, "direct", 1.0 + 0.5 * (n % 3)) for n, (v, q, a) in enumerate(ROWS)]


def reader(lm, features):
    return Reader(lm, lambda part: ([e.question for e in part], [features[int(e.video_id[1:])] for e in part]))


def adapted(lm, config):
    from peft import get_peft_model

    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():  # B starts at zero: then A has no gradient, and nothing is tested
        for name, p in peft.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=made))
    return peft.train()


def gradients(peft):
    return {n: p.grad.clone() for n, p in peft.named_parameters() if p.grad is not None}


def row_by_row(lm, peft, pixels, config):
    """Loss and gradients of the model's own forward on padded rows with their pixels, as a plain trainer has them."""
    parts = examples()
    videos = [pixels[int(e.video_id[1:])] for e in parts]
    total, loss = 0.0, 0.0
    for e, video in zip(parts, videos, strict=True):
        inputs = lm.inputs([e.question], [video], [e.answer])
        labels = inputs.pop("labels")
        logits = peft(**inputs).logits
        wanted = labels[:, 1:] != -100
        nll = torch.nn.functional.cross_entropy(logits[:, :-1][wanted], labels[:, 1:][wanted], reduction="none")
        per_token = config.loss_per == "token"
        loss = loss + e.weight * (nll.sum() if per_token else nll.mean())
        total += e.weight * (len(nll) if per_token else 1)
    (loss / total).backward()
    return (loss / total).item()


def weights(peft):
    return {n: p.detach().clone() for n, p in peft.named_parameters() if p.requires_grad}


def step(lm, peft, config, backward):
    """(loss, gradients, weights after one optimizer step) from the same start."""
    before = weights(peft)
    loss = backward()
    grads = gradients(peft)
    optimizer = Optimizer(lm, peft, config, 1)
    optimizer.clip()
    optimizer.step()
    after = weights(peft)
    with torch.no_grad():
        for n, p in peft.named_parameters():
            if n in before:
                p.copy_(before[n])
    return loss, grads, after


def same(ours, theirs, gradients=None):
    """Equal to 1e-5, or to 1e-5 of a tensor's largest entry: these models' gradients go up to 100.

    Of weights after a step, those whose gradient is smaller than its own tolerance are left out: Adam's first step
    goes by the gradient's sign, and rounding decides that.
    """
    assert ours.keys() == theirs.keys() and ours
    for name, value in theirs.items():
        found, most = ours[name], _tolerance(value)
        if gradients is not None:
            sure = gradients[name].abs() > _tolerance(gradients[name])
            found, value = found[sure], value[sure]
        torch.testing.assert_close(found, value, atol=most, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def _tolerance(tensor):
    return 1e-5 * max(1.0, tensor.abs().max().item())


@pytest.mark.parametrize("loss_per", ["token", "example"])
def test_packed_is_row_by_row(loaded, loss_per):
    lm, pixels, features = loaded
    config = dataclasses.replace(CONFIG, loss_per=loss_per)
    peft = adapted(lm, config)
    theirs = step(lm, peft, config, lambda: row_by_row(lm, peft, pixels, config))
    items = reader(lm, features)(examples())
    ours = step(lm, peft, config, lambda: accumulate(lm, peft, items, config)[0])
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert any("lora_A" in n and g.abs().max() > 1e-4 for n, g in ours[1].items())
    projector = lm.projector_names()[0].split(".")[-1]
    assert any(f".{projector}." in n and g.abs().max() > 1e-5 for n, g in ours[1].items())
    same(ours[1], theirs[1])
    same(ours[2], theirs[2], theirs[1])
    unload(peft)


def test_rows_of_this_stage_are_the_models_own(loaded):
    lm, pixels, features = loaded
    config = dataclasses.replace(CONFIG, pack=False)
    peft = adapted(lm, config)
    theirs = step(lm, peft, config, lambda: row_by_row(lm, peft, pixels, config))
    ours = step(lm, peft, config, lambda: accumulate(lm, peft, reader(lm, features)(examples()), config)[0])
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    same(ours[1], theirs[1])
    unload(peft)


def reference(lm, pixels, config):
    peft = adapted(lm, config)
    found = step(lm, peft, config, lambda: row_by_row(lm, peft, pixels, config))
    return peft, found


@pytest.mark.parametrize(
    "change",
    [
        {"tune": "full"},
        {"lora": "dora"},
        {"lora": "rslora"},
        {"gradient_checkpointing": True},
        {"micro_batch_size": 1},
        {"micro_batch_tokens": 140},
    ],
    ids=lambda c: next(iter(c)) + "-" + str(next(iter(c.values()))),
)
def test_packed_is_row_by_row_with_every_way_of_training(loaded, change):
    lm, pixels, features = loaded
    if lm.path.split("/")[-2].rstrip("0123456789") not in ("qwen3_vl", "vstar_demo", "llava_onevision"):
        pytest.skip("three kinds of positions and extras are enough here")
    config = dataclasses.replace(CONFIG, **change)
    peft, theirs = reference(lm, pixels, config)
    items = reader(lm, features)(examples())
    with checkpointed(lm, config):
        ours = step(lm, peft, config, lambda: accumulate(lm, peft, items, config)[0])
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    same(ours[1], theirs[1])
    same(ours[2], theirs[2], theirs[1])
    if config.tune == "full":
        assert any("self_attn.q_proj" in n for n in ours[1]) and any("norm" in n for n in ours[1])
    unload(peft)


def test_text_without_a_video_is_packed_with_the_rest(loaded):
    lm, _, features = loaded
    peft = adapted(lm, CONFIG)
    plain = [
        Example("", f"t{n}", q, a, "instruction") for n, (q, a) in enumerate([("is it red?", "a ball"), ("b", "c")])
    ]
    both = [*examples()[:3], *plain]
    given = [features[0]] * 3 + [None, None]
    items = Reader(lm, lambda part: ([e.question for e in part], given))(both)
    loss, _ = accumulate(lm, peft, items, CONFIG)
    packed = gradients(peft)
    peft.zero_grad()
    rows, _ = accumulate(lm, peft, items, dataclasses.replace(CONFIG, pack=False))
    assert loss == pytest.approx(rows, abs=1e-5)
    same(packed, gradients(peft))
    unload(peft)


TALK = [("which colour", "red"), ("is it red?", "it is green. Answer: a"), ("why not", "I see a red ball")]


def conversation(video):
    name = "" if video is None else f"v{video}"
    rows = enumerate(TALK)
    return [Example(name, f"t{n}", q, a, "instruction", history=tuple(TALK[:n])) for n, (q, a) in rows]


def whole_rows(lm, peft, pixels, talks):
    """The mean over all answers' tokens of conversations, each one row of the model's own forward."""
    losses = []
    for video in talks:
        ids, wanted = [], []
        for n, (question, answer) in enumerate(TALK):
            asked = Talk(tuple(TALK[:n]), question)
            head, tail = lm.split(asked) if video is not None else (lm.text_ids(asked), torch.empty(0).long())
            own = [head, pixels[video].ids, tail] if video is not None else [head]
            ids, said = torch.cat(own), lm.answer_ids(answer)
            wanted.append((len(ids), said))
        row = torch.cat([ids, said])
        if video is None:
            logits = peft(input_ids=row[None]).logits[0]
        else:
            inputs = lm.inputs([Talk(tuple(TALK[:-1]), TALK[-1][0])], [pixels[video]], [TALK[-1][1]])
            assert inputs.pop("labels").shape[1] == len(row) and torch.equal(inputs["input_ids"][0], row)
            logits = peft(**inputs).logits[0]
        for start, said in wanted:  # earlier answers end as the template ends them: the end token's id, and then more
            assert torch.equal(row[start : start + len(said)], said)
            at = logits[start - 1 : start + len(said) - 1]
            losses.append(torch.nn.functional.cross_entropy(at, said, reduction="none"))
    loss = torch.cat(losses).mean()
    loss.backward()
    return loss.item()


def test_every_answer_of_a_conversation_is_trained_as_in_one_row(loaded):
    lm, pixels, features = loaded
    if lm.path.split("/")[-2].rstrip("0123456789") not in ("qwen3_vl", "vstar_demo", "qwen2_vl", "llava_onevision"):
        pytest.skip("its template puts something else than the end token behind an earlier answer, or it is enough")
    peft = adapted(lm, CONFIG)
    theirs = step(lm, peft, CONFIG, lambda: whole_rows(lm, peft, pixels, [0, 1, None]))
    rows = [e for video in (0, 1, None) for e in conversation(video)]
    given = [None if e.video_id == "" else features[int(e.video_id[1:])] for e in rows]
    items = Reader(lm, lambda part: ([e.question for e in part], given))(rows)
    assert [len(i.cuts) for i in items] == [0, 1, 2] * 3
    ours = step(lm, peft, CONFIG, lambda: accumulate(lm, peft, items, CONFIG)[0])
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    same(ours[1], theirs[1])
    by_row, _ = accumulate(lm, peft, items, dataclasses.replace(CONFIG, pack=False))
    assert by_row == pytest.approx(theirs[0], abs=1e-5)
    unload(peft)


def test_two_clips_of_one_name_are_not_taken_for_the_same(loaded):
    lm, _, features = loaded
    peft = adapted(lm, CONFIG)
    rows = [Example("v", f"q{n}", "which colour", a, "direct") for n, a in enumerate(("red", "a ball", "green"))]
    again = dataclasses.replace(features[0], kwargs={k: v.clone() for k, v in features[0].kwargs.items()})
    items = Reader(lm, lambda part: ([e.question for e in part], [features[0], features[1], again]))(rows)
    assert [i.clip for i in items] == [1, 2, 1]
    loss, _ = accumulate(lm, peft, items, CONFIG)
    packed = gradients(peft)
    peft.zero_grad()
    rows_loss, _ = accumulate(lm, peft, items, dataclasses.replace(CONFIG, pack=False))
    assert loss == pytest.approx(rows_loss, abs=1e-5)
    same(packed, gradients(peft))
    unload(peft)


def test_what_items_share_stands_once(loaded):
    lm, _, features = loaded
    items = reader(lm, features)(examples())
    with torch.no_grad():
        packed = pack(lm, items)
    counted = sum({key: n for i in items for key, n in i.parts.items()}.values())
    assert packed.tree.tokens == packed.inputs_embeds.shape[1] == counted < 0.7 * sum(i.tokens for i in items)
    assert len(packed.targets) == sum(len(i.answer) for i in items)
    assert packed.tree.longest == max(i.tokens for i in items) - 1


def test_a_model_whose_layers_ask_for_more_is_refused(loaded):
    lm, _, features = loaded
    items = reader(lm, features)(examples()[:1])
    with packed_rows(lm), torch.no_grad():
        given = pack(lm, items)
        call = {"inputs_embeds": given.inputs_embeds, "position_ids": given.position_ids, **given.extras}
        with pytest.raises(ModelError, match=r"set finetune\.pack = false"):
            lm.text_model(**call, use_cache=False)


def test_what_a_layer_asks_for_that_rows_packed_together_do_not_have_is_named():
    tree = Tree([Node(0, 6, 6, 0)])
    rows = [torch.randn(1, 2, 6, 8) for _ in range(3)]
    module = torch.nn.Identity()
    with pytest.raises(ModelError, match="Identity has softcap, attention dropout: not with packed rows"):
        attention(module, *rows, None, dropout=0.1, vstar_tree=tree, softcap=30.0)


def row_logprob(model, lm, pixels, example, answer):
    inputs = lm.inputs([example.question], [pixels[int(example.video_id[1:])]], [answer])
    labels = inputs.pop("labels")[:, 1:]
    logits = model(**inputs).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100].sum()


def row_dpo(lm, peft, pixels, pairs, beta):
    """The loss as its paper and TRL's `sigmoid` write it, on plain rows: (value, with gradients in place)."""
    total = torch.zeros(())
    for e in pairs:
        chosen, rejected = (row_logprob(peft, lm, pixels, e, a) for a in (e.answer, e.rejected))
        with torch.no_grad(), peft.disable_adapter():
            ref_chosen, ref_rejected = (row_logprob(peft, lm, pixels, e, a) for a in (e.answer, e.rejected))
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        total = total - e.weight * torch.nn.functional.logsigmoid(beta * margin)
    loss = total / sum(e.weight for e in pairs)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("changes", [{}, {"pack": False}, {"micro_batch_size": 1}], ids=str)
def test_dpo_is_the_formula_on_rows(loaded, changes):
    lm, pixels, features = loaded
    config = dataclasses.replace(CONFIG, objective="dpo", dpo_beta=0.3, **changes)
    failed = ["it is red", "a", "green", "b c", "why not", "I see"]
    pairs = [dataclasses.replace(e, rejected=r) for e, r in zip(examples(), failed, strict=True)]
    peft = adapted(lm, config)
    theirs = step(lm, peft, config, lambda: row_dpo(lm, peft, pixels, pairs, 0.3))
    ours = step(lm, peft, config, lambda: accumulate(lm, peft, reader(lm, features)(pairs), config)[0])
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5) and abs(theirs[0] - 0.6931) > 1e-3
    same(ours[1], theirs[1])
    unload(peft)
