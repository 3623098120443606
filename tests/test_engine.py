"""The engine: Hugging Face's own greedy answers, the same samples in any batch, and what happens when things end."""

import logging
import math

import pytest
import torch
from vstar_fast.kernels.sample import sample
from vstar_fast.kernels.sample.streams import seeds_at

import tiny
from vstar_fast import ops
from vstar_fast.engine import Request, Scheduler, Settings, TextLM
from vstar_fast.errors import ModelError

EOS = 5
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "initializer_range": 0.3,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "bos_token_id": 1,
}


def text_model(kind="Llama", **more):
    import transformers

    torch.manual_seed(0)
    name = f"{kind}TextConfig" if hasattr(transformers, f"{kind}TextConfig") else f"{kind}Config"
    config = getattr(transformers, name)(**SIZES | more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def lm():
    return TextLM(text_model())


def prompts(*lengths, seed=0):
    made = torch.Generator().manual_seed(seed)
    return [torch.randint(6, 97, (n,), generator=made) for n in lengths]


def request(ids, seeds=(1, 2, 3), grammar=None, gold=None, **settings):
    return Request(ids[:0], ids, None, seeds, Settings(**settings), grammar, gold)


def drawn(scheduler, requests):
    found = {id(r): [a.token_ids for a in answers] for r, answers in scheduler.run(requests)}
    return [found[id(r)] for r in requests]


def theirs(model, ids, tokens):
    out = model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=tokens, do_sample=False)
    new = out[0, len(ids) :].tolist()
    return new[: new.index(EOS) + 1] if EOS in new else new


@pytest.mark.parametrize(("kind", "plain_below"), [("Llama", None), ("Llama", 130), ("Qwen2", 0), ("Qwen3", None)])
def test_greedy_answers_are_generates_for_prompts_of_any_length(kind, plain_below):
    model = text_model(kind)
    asked = prompts(1, 3, 63, 64, 65, 130, 600, 10_000)
    scheduler = Scheduler(TextLM(model), max_rows=7, plain_below=plain_below)
    found = drawn(scheduler, [request(ids, max_new_tokens=70) for ids in asked])
    for ids, answers in zip(asked, found, strict=True):
        assert answers == [theirs(model, ids, 70)] * 3
    assert scheduler.stack.store.nbytes == 0


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_a_sample_depends_on_its_own_seed_and_prompt_only(lm, rows):
    asked = prompts(4, 90, 4, 33, 70)
    sampled = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 40}
    alone = [drawn(Scheduler(lm, max_rows=1), [request(ids, **sampled)])[0] for ids in asked]
    assert len({tuple(a) for answers in alone for a in answers}) == 15
    together = drawn(Scheduler(lm, max_rows=rows), [request(ids, **sampled) for ids in reversed(asked)])
    assert together[::-1] == alone


def test_rows_of_one_batch_have_their_own_settings(lm):
    (ids,) = prompts(20)
    kinds = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"max_new_tokens": 2}]
    mixed = drawn(Scheduler(lm), [request(ids, **kind) for kind in kinds])
    assert mixed == [drawn(Scheduler(lm), [request(ids, **kind)])[0] for kind in kinds]
    assert [len(a) for a in mixed[3]] == [2, 2, 2]


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 12)])
def test_samples_have_the_distribution_of_hugging_faces_processors(lm, top_p, top_k):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    (ids,) = prompts(9)
    n = 4000
    settings = {"temperature": 1.5, "top_p": top_p, "top_k": top_k, "max_new_tokens": 1}
    (answers,) = drawn(Scheduler(lm, max_rows=n), [request(ids, seeds=range(n), **settings)])
    with torch.no_grad():
        scores = TemperatureLogitsWarper(1.5)(ids[None], lm.model(ids[None]).logits[:, -1])
    scores = TopKLogitsWarper(top_k)(ids[None], scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(ids[None], scores) if top_p < 1 else scores
    expected = n * scores.softmax(-1)[0]
    seen = torch.bincount(torch.tensor(answers).flatten(), minlength=97).float()
    assert not seen[expected == 0].any()
    often = expected >= 5
    rest = expected[~often].sum()
    chi2 = ((seen - expected)[often] ** 2 / expected[often]).sum()
    chi2 += (seen[~often].sum() - rest) ** 2 / rest if rest >= 5 else 0
    freedom = int(often.sum()) - 1 + int(rest >= 5)
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_a_stream_can_be_entered_at_any_step():
    seeds = torch.tensor([0, 1, -7, 2**62, 123456789])
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 1, 17, 400, 3])
    ids, _ = sample(logits, seeds_at(seeds, steps), 0, 1.0)
    for i, step in enumerate(steps.tolist()):
        assert ids[i] == sample(logits[i : i + 1], seeds[i : i + 1], step, 1.0)[0]


def test_one_answer_that_ends_at_once(lm):
    (ids,) = prompts(12)
    model = text_model()
    with torch.no_grad():
        first = int(model(ids[None]).logits[0, -1].argmax())
    ended = TextLM(model)
    ended.eos_ids = [first]
    ((_, (answer,)),) = Scheduler(ended).run([request(ids, seeds=[4])])
    assert answer.token_ids == [first] and answer.words == [] and answer.finish == "stop"


def test_a_run_that_is_left_frees_everything_and_the_next_is_right(lm):
    scheduler = Scheduler(lm, max_rows=4)
    asked = [request(ids, max_new_tokens=30) for ids in prompts(5, 80, 6, 9)]
    running = scheduler.run(asked)
    next(running)
    assert scheduler.stack.store.nbytes > 0
    running.close()
    assert scheduler.stack.store.nbytes == 0
    assert drawn(scheduler, asked) == drawn(Scheduler(lm), asked)


def test_a_thousand_videos_stream_with_flat_memory(lm):
    scheduler = Scheduler(lm, max_rows=16)
    peak, count = [], 0
    for _ in scheduler.run(
        request(ids, seeds=[1, 2], max_new_tokens=4) for n in range(1000) for ids in prompts(9, seed=n)
    ):
        count += 1
        peak.append(scheduler.stack.store.nbytes)
    assert count == 1000 and max(peak) == max(peak[:50])
    assert scheduler.counts.answers == 2000


def test_out_of_memory_halves_the_rows_loses_nothing_and_says_so(lm, monkeypatch, caplog):
    asked = [request(ids, temperature=1.0, max_new_tokens=20) for ids in prompts(5, 80, 6, 9, 30, 12)]
    want = drawn(Scheduler(lm), asked)
    scheduler = Scheduler(lm, max_rows=16)
    call = scheduler.stack.call

    def small(embeds, *args):
        if 4 < embeds.shape[1] < 20 and len(scheduler._batch) > 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return call(embeds, *args)

    monkeypatch.setattr(scheduler.stack, "call", small)
    with caplog.at_level(logging.WARNING):
        assert drawn(scheduler, asked) == want
    assert scheduler.counts.halved == 2 and scheduler.max_rows <= 4
    assert "nothing is lost" in caplog.text


def test_one_answer_that_does_not_fit_is_an_error(lm, monkeypatch):
    scheduler = Scheduler(lm)
    monkeypatch.setattr(scheduler.stack, "call", lambda *_: (_ for _ in ()).throw(MemoryError("none left")))
    with pytest.raises(ModelError, match="memory ran out with a single answer in flight"):
        drawn(scheduler, [request(prompts(4)[0])])


def test_a_small_budget_takes_requests_one_after_the_other(lm):
    asked = [request(ids, max_new_tokens=20) for ids in prompts(5, 80, 6)]
    scheduler = Scheduler(lm, memory_bytes=1)
    sizes = []
    found = {
        id(r): [a.token_ids for a in x] for r, x in scheduler.run(asked) if not sizes.append(len(scheduler._batch))
    }
    assert [found[id(r)] for r in asked] == drawn(Scheduler(lm), asked) and set(sizes) == {0}


# -- grammars ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    from vstar_fast import models

    return models.load(str(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")))


def colour(lm, *names, tokenization="any"):
    parts = [ops.text(until="Answer:"), ops.optional(" "), ops.choice(list(names)), ops.optional(".")]
    return ops.compile(ops.sequence(parts, separator=""), lm.vocab, tokenization)


def asked_of(lm, n=6, **more):
    head, tail = lm.split("which colour")
    return [
        Request(head, tail, None, [10 * i + j for j in range(8)], Settings(1.0, 1.0, 0, 16), **more) for i in range(n)
    ]


def test_an_answer_that_went_wrong_stops_and_the_others_are_the_same(spoken):
    names = [f"{name} {word}" for name in tiny.COLOURS for word in ("see", "a")]
    any_colour, red = colour(spoken, *names), colour(spoken, *names[:2])
    whole, cut = Scheduler(spoken), Scheduler(spoken)
    full = {a.seed: a for _, x in whole.run(asked_of(spoken, grammar=any_colour)) for a in x}
    found = [a for _, x in cut.run(asked_of(spoken, grammar=any_colour, gold=red)) for a in x]
    for answer in found:
        same = full[answer.seed]
        if tiny.token_id(spoken.tokenizer, "red") in same.words[same.words.index(7) :]:
            assert answer == same
        else:
            assert answer.finish == "stopped_early"
            assert answer.token_ids == same.token_ids[: len(answer.token_ids)]
    early = sum(a.finish == "stopped_early" for a in found)
    assert 0 < early == cut.counts.stopped_early < len(found) and whole.counts.stopped_early == 0
    lost = whole.counts.tokens - cut.counts.tokens
    assert 0 <= cut.counts.tokens_saved <= lost


def test_forced_tokens_take_no_step_and_change_nothing(spoken):
    parts = [ops.text(until="Answer:"), " I see a red . I see a ", ops.choice(["blue", "red"])]
    node = ops.sequence(parts, separator="")
    grammar = ops.compile(node, spoken.vocab, "forced")

    def asked():
        head, tail = spoken.split("which colour")
        return [Request(head, tail, None, range(6), Settings(1.0, 1.0, 0, 40), grammar)]

    skipped, stepped = Scheduler(spoken), Scheduler(spoken, skip_forced=False)
    found = [a for _, x in skipped.run(asked()) for a in x]
    plain = [a for _, x in stepped.run(asked()) for a in x]
    assert [(a.seed, a.token_ids, a.finish) for a in found] == [(a.seed, a.token_ids, a.finish) for a in plain]
    assert [a.logprob for a in found] == pytest.approx([a.logprob for a in plain], abs=1e-4)
    assert skipped.counts.forced > 0 == stepped.counts.forced and skipped.counts.steps < stepped.counts.steps
