"""Generation: equal to Hugging Face's own loop, the same samples in any batch, rows that leave."""

from types import SimpleNamespace

import pytest
import torch

import tiny
from vstar_fast import frames, generate, models, ops, readers
from vstar_fast.config import DataConfig, FramesConfig
from vstar_fast.errors import ConfigError
from vstar_fast.generate import Sampling
from vstar_fast.records import CandidateBatch, Label, Question


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    lm = models.load(str(tiny.write_model(root / "model")))
    videos, _, _ = readers.read(DataConfig(path=str(tiny.write_data(root / "data"))))
    batch = frames.to_batch(list(frames.read(videos, FramesConfig(count=4))), videos)
    questions = [
        Question(v.id, v.id, text_of(i), (Label("class", "colour", "red"),), "t") for i, v in enumerate(videos)
    ]
    return lm, questions, lm.encode(batch)


def text_of(i):
    return "which colour" if i % 2 else "which colour a red . blue"


def draw(project, sampling, picks=None, grammars=(), **settings):
    lm, questions, features = project
    picks = range(len(questions)) if picks is None else picks
    asked, kept = [questions[i] for i in picks], [features[i] for i in picks]
    return generate.generate(lm, asked, kept, sampling, lambda q: q.text, seed_of, grammars, **settings)


def seed_of(question, n):
    return hash((question.id, n)) >> 1


def answers(batch):
    ids, lengths = batch.token_ids.tolist(), batch.lengths.tolist()
    return {
        (q.id, n): ids[i][: lengths[i]] for i, (q, n) in enumerate(zip(batch.questions, batch.samples, strict=True))
    }


def test_greedy_answers_are_those_of_hf_generate(project):
    lm, questions, features = project
    found = answers(draw(project, Sampling(1, 0.0, 1.0, 0, 16)))
    for question, feature in zip(questions, features, strict=True):
        inputs = lm.inputs([question.text], [feature])
        out = lm.model.generate(
            **inputs, max_new_tokens=16, do_sample=False, eos_token_id=lm.eos_ids, pad_token_id=lm.pad_id
        )
        theirs = out[0, inputs["input_ids"].shape[1] :].tolist()
        ends = [i for i, t in enumerate(theirs) if t in lm.eos_ids]
        assert found[question.id, 0] == (theirs[: ends[0]] if ends else theirs)


def test_a_sample_is_the_same_alone_and_in_any_batch(project):
    sampling = Sampling(4, 1.0, 1.0, 0, 16)
    together = answers(draw(project, sampling))
    for picks in ([0], [5, 3], [2, 1, 4]):
        for key, ids in answers(draw(project, sampling, picks)).items():
            assert together[key] == ids
    assert len({tuple(x) for x in together.values()}) > len(together) // 2


@torch.no_grad()
def test_logprob_is_the_models_own_sum_over_the_answer_and_its_end(project):
    lm, questions, features = project
    batch = draw(project, Sampling(2, 1.0, 1.0, 0, 16))
    checked = 0
    for i, question in enumerate(batch.questions):
        feature = features[questions.index(question)]
        inputs = lm.inputs([question.text], [feature])
        n = int(batch.lengths[i]) + int(batch.finished[i])
        answer = batch.token_ids[i, :n][None].clone()
        if (answer == lm.model.config.video_token_id).any():
            continue  # a random model may say <video>, which a prompt may not
        checked += 1
        ids = torch.cat([inputs["input_ids"], answer], 1)
        logits = lm.model(input_ids=ids, video_features=inputs["video_features"]).logits[0, -n - 1 : -1]
        scored = logits.float().log_softmax(-1).gather(1, answer[0][:, None]).sum()
        assert batch.logprobs[i].item() == pytest.approx(scored.item(), abs=1e-3)
    assert checked >= 4


def test_ended_rows_leave_and_others_take_their_place(project):
    sampling = Sampling(4, 1.0, 1.0, 0, 24)
    sizes = []
    text_model = project[0].text_model
    hook = text_model.register_forward_pre_hook(
        lambda _, __, kw: sizes.append(kw["inputs_embeds"].shape[1]), with_kwargs=True
    )
    few = answers(draw(project, sampling, max_rows=8))
    hook.remove()
    assert max(sizes[1:]) < 8 + 2 * 20 and min(sizes) < 8
    assert answers(draw(project, sampling)) == few


def test_an_answer_of_special_tokens_alone_has_text():
    """Without a table of bytes ids are not stored without words: the judge could not spell them."""
    words = tiny.tokenizer()
    lm = SimpleNamespace(token_bytes=None, tokenizer=words)
    ids = torch.tensor([[tiny.token_id(words, "<|im_start|>")], [tiny.token_id(words, "red")]])
    question = Question("q", "v", "Which?", (Label("class", "colour", "red"),), "t")
    one = torch.ones(2)
    batch = CandidateBatch(ids, one.long(), one, one.bool(), [question] * 2, [0, 1], [0, 1], ~one.bool())
    texts = [c.text.strip() for c in generate.to_candidates(batch, lm, Sampling(2, 1.0, 1.0, 0, 2), "k", "direct")]
    assert texts == ["<|im_start|>", "red"]


def test_a_cut_answer_says_so(project):
    lm = project[0]
    batch = draw(project, Sampling(1, 1.0, 1.0, 0, 2))
    rows = list(generate.to_candidates(batch, lm, Sampling(1, 1.0, 1.0, 0, 2), "t", "direct"))
    for row, finished in zip(rows, batch.finished.tolist(), strict=True):
        assert row.finish == ("stop" if finished else "length")
        assert len(row.token_ids) == 2 or finished
    assert {r.finish for r in rows} >= {"length"}


def grammar(project, *words):
    space = ops.optional(" ")
    parts = [
        ops.text(until="Answer:"),
        space,
        ops.choice(words),
        ops.optional(ops.sequence([space, "."], separator="")),
    ]
    node = ops.sequence(parts, separator="")
    return ops.compile(node, project[0].vocab)


def said(project, batch):
    """Words of each answer."""
    words = project[0].tokenizer
    return [
        [token.removeprefix(tiny.SPACE) for token in words.convert_ids_to_tokens(ids[:n])]
        for ids, n in zip(batch.token_ids.tolist(), batch.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("tokens", [3, 5, 16])
def test_constrained_answers_are_whole_within_the_budget(project, tokens):
    sampling = Sampling(6, 1.0, 1.0, 0, tokens)
    only = grammar(project, "green", "blue")
    batch = draw(project, sampling, grammars=[only] * len(project[1]))
    assert batch.finished.all()
    for words in said(project, batch):
        place = words.index("Answer:")
        assert words[place + 1] in ("green", "blue") and words[place + 2 :] in ([], ["."])


def test_rows_with_and_without_a_grammar_share_a_batch(project):
    sampling = Sampling(4, 1.0, 1.0, 0, 16)
    free = answers(draw(project, sampling))
    only = [grammar(project, "red") if i % 2 else None for i in range(len(project[1]))]
    mixed = draw(project, sampling, grammars=only)
    found = answers(mixed)
    for i, question in enumerate(project[1]):
        for n in range(4):
            if only[i] is None:
                assert found[question.id, n] == free[question.id, n]
    red = [w for w, q in zip(said(project, mixed), mixed.questions, strict=True) if only[project[1].index(q)]]
    assert all(w[w.index("Answer:") + 1] == "red" for w in red)


def test_a_constrained_sample_is_the_same_alone_and_in_any_batch(project):
    sampling = Sampling(4, 1.0, 1.0, 0, 16)
    only = [grammar(project, "red", "blue") if i % 2 else grammar(project, "green") for i in range(len(project[1]))]
    together = answers(draw(project, sampling, grammars=only))
    for picks in ([0], [5, 3]):
        for key, ids in answers(draw(project, sampling, picks, [only[i] for i in picks])).items():
            assert together[key] == ids
    assert answers(draw(project, sampling, grammars=only, max_rows=3)) == together


def test_a_grammar_that_allows_what_was_said_changes_nothing(project):
    greedy = Sampling(1, 0.0, 1.0, 0, 16)
    free = draw(project, greedy)
    for i, words in enumerate(said(project, free)):
        if bool(free.finished[i]) and "Answer:" in words and words[-1] in tiny.COLOURS:
            own = answers(draw(project, greedy, [i], [grammar(project, *tiny.COLOURS)]))
            assert list(own.values()) == [answers(free)[free.questions[i].id, 0]]


def test_a_budget_below_the_shortest_answer_is_an_error(project):
    with pytest.raises(ConfigError, match="max_new_tokens is 2, but the shortest answer of a label takes 3"):
        draw(project, Sampling(1, 0.0, 1.0, 0, 2), [0], [grammar(project, "red")])
