"""The engine over every family: Hugging Face's own greedy answers, several questions about one video."""

import pytest
import torch

import families
from test_families import batch_of
from vstar_fast import models
from vstar_fast.engine import Request, Scheduler, Scorer, Settings, chunked_prefill
from vstar_fast.engine.stack import Stack


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def lm(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def asked(lm, features, texts, tokens=24):
    made = []
    for feature, text in zip(features, texts, strict=True):
        head, tail = lm.split(text)
        made.append(Request(head, tail, feature, [1, 2], Settings(max_new_tokens=tokens)))
    return made


def theirs(lm, text, feature, tokens=24):
    inputs = lm.inputs([text], [feature])
    out = lm.model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=lm.eos_ids, pad_token_id=lm.pad_id
    )
    lm.forget_positions()
    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    ends = [i for i, t in enumerate(new) if t in lm.eos_ids]
    return new[: ends[0] + 1] if ends else new


def test_greedy_answers_are_generates(lm):
    first, second = lm.encode(batch_of((56, 84), (70, 56)))
    features = [first, second, first, first, second]
    texts = ["which colour", "is it red?", "", "see a ball", "which colour"]
    requests = asked(lm, features, texts)
    scheduler = Scheduler(lm, max_rows=6)
    found = {id(r): [a.token_ids for a in answers] for r, answers in scheduler.run(requests)}
    for r, text, feature in zip(requests, texts, features, strict=True):
        assert found[id(r)] == [theirs(lm, text, feature)] * 2
    once = sum(len(r.head) + len(r.tail) for r in requests) + sum(len(f.ids) for f in (first, second))
    assert scheduler.counts.prefilled <= once  # each video's tokens went through the model once


@pytest.mark.parametrize("most", [1, 7])
def test_prompts_in_pieces_give_the_same_answers(lm, most, monkeypatch):
    """A video of its own, one of several questions, their tails, text alone: also M-RoPE and deep stack."""
    first, second = lm.encode(batch_of((56, 84), (70, 56)))
    features, texts = [first, second, first, None], ["which colour", "is it red?", "see a ball", "which colour"]
    requests = asked(lm, features, texts, 8)

    def drawn():
        scheduler = Scheduler(lm, max_rows=4)
        found = {id(r): answers for r, answers in scheduler.run(requests)}
        return [a for r in requests for a in found[id(r)]], scheduler.counts.prefilled

    whole, tokens = drawn()
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", most)
    sizes, prefill = [], Stack._prefill
    monkeypatch.setattr(
        Stack,
        "_prefill",
        lambda stack, call: (sizes.append([p.inputs_embeds.shape[1] for p in call]), prefill(stack, call))[1],
    )
    cut, again = drawn()
    assert [a.token_ids for a in cut] == [a.token_ids for a in whole] and again == tokens
    assert [a.logprob for a in cut] == pytest.approx([a.logprob for a in whole], abs=1e-4)
    assert max(map(sum, sizes)) <= most and sum(map(sum, sizes)) == tokens


def test_log_probabilities_are_generates(lm):
    (feature,) = lm.encode(batch_of((56, 84)))
    (request,) = asked(lm, [feature], ["which colour"])
    ((_, (answer, _)),) = Scheduler(lm).run([request])
    inputs = lm.inputs(["which colour"], [feature])
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": lm.eos_ids, "pad_token_id": lm.pad_id}
    out = lm.model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    lm.forget_positions()
    each = torch.cat(out.logits).log_softmax(-1)[range(len(answer.token_ids)), answer.token_ids]
    assert answer.logprob == pytest.approx(each.sum().item(), abs=1e-5 * len(each), rel=1e-5)


@torch.no_grad()
def test_label_scores_are_those_of_separate_rows(lm):
    (feature,) = lm.encode(batch_of((56, 84)))
    (request,) = asked(lm, [feature], ["which colour"])
    made = torch.Generator().manual_seed(1)
    size = lm.model.get_output_embeddings().weight.shape[0]
    free = [i for i in range(size) if i not in feature.ids.tolist()]
    labels = [[[free[i] for i in torch.randint(len(free), (n,), generator=made)]] for n in (1, 3, 2, 4)]
    labels += [[labels[1][0][:2] + labels[2][0]], [labels[0][0], labels[3][0][:1]]]
    found = Scorer(lm).score([request], labels)[0]
    for label, score in zip(labels, found, strict=True):
        assert score.item() == pytest.approx(separate(lm, request, label), abs=1e-5, rel=1e-5)


def separate(lm, request, surfaces):
    """The summed log-probability of a label's surfaces, a forward pass each."""
    sums = []
    for surface in surfaces:
        ids = torch.cat([request.head, request.features.ids, request.tail, torch.tensor(surface)])
        given = lm.embed(ids, request.features)
        call = {"inputs_embeds": given.inputs_embeds, "position_ids": given.stack_positions, "use_cache": False}
        hidden = lm.text_model(**call, **given.extras).last_hidden_state[0]
        logits = lm.logits(hidden[-len(surface) - 1 : -1]).float().log_softmax(-1)
        sums.append(logits.gather(1, torch.tensor(surface)[:, None]).sum())
    return torch.stack(sums).logsumexp(0).item()
