"""The plain way: the packed engine's answers and label scores where both run, Hugging Face's own where only it does."""

import logging
import re

import pytest
import torch

import families
import odd_stacks
from test_engine import SIZES, drawn, prompts, request, text_model, theirs
from test_engine_families import theirs as generated
from test_families import batch_of
from vstar_fast import backends, models, ops
from vstar_fast.engine import Crew, Engine, Request, Scheduler, Scorer, Settings, TextLM, ways
from vstar_fast.engine.cache import refusal
from vstar_fast.engine.plain import PlainScheduler
from vstar_fast.engine.plain_caches import NoRows, copied, dims_of, gathered, nbytes, tensors_of
from vstar_fast.engine.plain_nodes import paths_of
from vstar_fast.engine.plain_prompts import PlainStack
from vstar_fast.engine.stack import Stack
from vstar_fast.errors import ConfigError, ModelError


def answers(scheduler, requests):
    found = dict(scheduler.run(requests))
    return [a for r in requests for a in found[r]]


def same(ours, others):
    assert [a.token_ids for a in ours] == [a.token_ids for a in others]
    assert [a.finish for a in ours] == [a.finish for a in others]
    assert [a.logprob for a in ours] == pytest.approx([a.logprob for a in others], abs=1e-4)


# -- stacks that only the plain way takes --------------------------------------------------------------


@pytest.mark.parametrize("kind", odd_stacks.ODD)
def test_greedy_answers_are_generates_and_labels_score_as_rows(kind):
    model = odd_stacks.text_model(kind, SIZES)
    lm = TextLM(model)
    asked = prompts(3, 9, 40, 9)
    found = drawn(PlainScheduler(lm, max_rows=4), [request(ids, max_new_tokens=12) for ids in asked])
    for ids, each in zip(asked, found, strict=True):
        assert each == [theirs(model, ids, 12)] * 3
    labels = [[[7, 8, 9], [7, 10]], [[11]], [[12, 13, 14, 15]]]
    scores = Scorer(lm, engine="plain").score([request(asked[2])], labels)[0]
    for label, score in zip(labels, scores, strict=True):
        assert score.item() == pytest.approx(separate(model, asked[2], label), abs=1e-5, rel=1e-5)


@torch.no_grad()
def separate(model, ids, surfaces):
    sums = []
    for surface in surfaces:
        row = torch.cat([ids, torch.tensor(surface)])
        logits = model(row[None], use_cache=False).logits[0, -len(surface) - 1 : -1].float().log_softmax(-1)
        sums.append(logits.gather(1, torch.tensor(surface)[:, None]).sum())
    return torch.stack(sums).logsumexp(0).item()


@pytest.mark.parametrize("kind", ["qwen3_5_text", "minimax"])
def test_a_sample_depends_on_its_own_seed_and_prompt_only(kind):
    lm = TextLM(odd_stacks.text_model(kind, SIZES))
    asked = [request(ids, temperature=1.0, max_new_tokens=10) for ids in prompts(4, 9, 4, 9, 20)]
    alone = [drawn(PlainScheduler(lm, max_rows=1), [r])[0] for r in asked]
    assert drawn(PlainScheduler(lm), asked) == drawn(PlainScheduler(lm, max_rows=5), asked) == alone
    assert len({tuple(a) for each in alone for a in each}) == 15


# -- stacks that both take -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm():
    return TextLM(text_model())


def test_settings_grammars_and_early_stops_are_the_packed_engines(lm):
    vocab = ops.TokenVocab([bytes([i]) if i else b"" for i in range(97)], eos_ids=[5])
    free = ops.compile(ops.template("{w}Z", w=ops.text(until=".")), vocab)
    closed = ops.compile(ops.choice(["AB", "ABCD", "EF"]), vocab)
    gold = ops.compile(ops.choice(["ABCD"]), vocab)
    asked = []
    for n, ids in enumerate(prompts(4, 30, 4, 4)):
        each = [Settings(1.0, 0.9, 0, 24), Settings(1.0, 1.0, 5, 16), Settings(0.0, max_new_tokens=20)]
        grammar = [closed, free if n % 2 else None, closed]
        asked.append(Request(ids[:0], ids, None, [n, n + 1, n + 2], each, grammar, gold if n < 2 else None))
    packed, plain = Scheduler(lm), PlainScheduler(lm)
    same(answers(plain, asked), answers(packed, asked))
    assert plain.counts.stopped_early == packed.counts.stopped_early > 0
    assert plain.counts.tokens_saved == packed.counts.tokens_saved and plain.counts.forced == packed.counts.forced > 0
    assert plain.counts.answers == 12 and plain.counts.tokens == packed.counts.tokens


@pytest.mark.parametrize("length", [1, 2, 64, 700])
def test_label_scores_are_the_packed_engines(lm, length):
    (ids,) = prompts(length)
    made = torch.Generator().manual_seed(length)
    labels = [[torch.randint(6, 9 if n % 2 else 97, (1 + n % 7,), generator=made).tolist()] for n in range(90)]
    plain = Scorer(lm, engine="plain").score([request(ids)], labels)
    torch.testing.assert_close(plain, Scorer(lm).score([request(ids)], labels), atol=1e-4, rtol=1e-5)


def test_a_cache_whose_rows_cannot_be_copied_takes_a_prompt_for_each_answer(lm, monkeypatch):
    monkeypatch.setattr(PlainStack, "_learnt", no_rows)
    asked = [request(ids, temperature=1.0, max_new_tokens=6) for ids in prompts(4, 9, 4)]
    plain = PlainScheduler(lm)
    assert drawn(plain, asked) == drawn(Scheduler(lm), asked)
    labels = [[[7, 8, 9], [7, 10]], [[11]], [[12, 13, 14, 15]]]
    found = [Scorer(lm, engine=name).score(asked, labels) for name in ("plain", "packed")]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-5)


def no_rows(*_):
    raise NoRows("none")


def test_paths_of_a_trie_end_in_its_leaves():
    assert paths_of([0, 1, 1, 0, 4]) == [[0, 1], [0, 2], [3, 4]]
    assert paths_of([]) == []


@pytest.fixture(scope="module", params=["vstar_demo", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm"])
def shown(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def test_videos_of_several_questions_are_read_once_and_answered_as_by_the_packed_engine(shown):
    first, second, third = shown.encode(batch_of((56, 84), (70, 56), (56, 56)))
    pairs = [(first, "which colour"), (second, "is it red?"), (first, ""), (first, "which colour"), (third, "a")]
    asked = [Request(*shown.split(text), video, [1, 2], Settings(1.0, 0.9, 0, 10)) for video, text in pairs]
    asked.append(Request(*shown.split("a"), None, [3], Settings(max_new_tokens=4)))
    packed, plain = Scheduler(shown), PlainScheduler(shown)
    same(answers(plain, asked), answers(packed, asked))
    head = len(asked[0].head)
    assert plain.counts.prefilled <= packed.counts.prefilled + len(asked) * head
    assert plain.stack._continues and not plain._prompts._videos
    labels = [[[7, 8]], [[9], [7, 10, 11]]]
    each = [Scorer(shown, engine=name).score(asked[:4], labels) for name in ("plain", "packed")]
    torch.testing.assert_close(*each, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma4_unified", "molmo2", "minimax_m3_vl", "minicpmv4_7"])
def test_families_of_masks_and_caches_and_positions_of_their_own(name, tmp_path):
    """Tokens of a video that see each other, sparse attention by an index, positions that hang on the whole row."""
    lm = models.load(str(families.write(name, tmp_path / "model")))
    first, second = lm.encode(batch_of((56, 84), (70, 56)))
    pairs = [(first, "which colour"), (second, "is it red?"), (first, ""), (first, "a b")]
    asked = [Request(*lm.split(text), video, [1, 2], Settings(max_new_tokens=6)) for video, text in pairs]
    chosen, plain = ways.WAYS[ways.choose(lm).name](lm), PlainScheduler(lm)
    found = dict(plain.run(asked))
    for r, (video, text) in zip(asked, pairs, strict=True):
        assert [a.token_ids for a in found[r]] == [generated(lm, text, video, 6)] * 2
    assert plain.stack._continues is (name != "minicpmv4_7")
    same(answers(chosen, asked), [a for r in asked for a in found[r]])


# -- memory, threads, runs that are left ---------------------------------------------------------------


def test_rows_are_halved_when_memory_runs_out_and_no_answer_changes(lm, monkeypatch):
    asked = [request(ids, temperature=1.0, max_new_tokens=8) for ids in prompts(*[6] * 10)]
    want = drawn(Scheduler(lm), asked)
    scheduler = PlainScheduler(lm, max_rows=12)
    behind = scheduler.stack.behind

    def small(cache, ids, first, rows):
        if len(ids) > 5:
            raise MemoryError("none left")
        return behind(cache, ids, first, rows)

    monkeypatch.setattr(scheduler.stack, "behind", small)
    assert drawn(scheduler, asked) == want and scheduler.counts.halved > 0


def test_memory_bounds_the_rows_that_are_drawn_at_once(lm, monkeypatch):
    asked = [request(ids, range(6), temperature=1.0, max_new_tokens=6) for ids in prompts(*[30] * 5)]
    scheduler = PlainScheduler(lm, memory_bytes=4 * 36 * 256)
    list(scheduler.run(asked[:1]))  # what a token takes is known from then on
    seen, step = [], scheduler._batch.step
    monkeypatch.setattr(scheduler._batch, "step", lambda: (seen.append(len(scheduler._batch)), step())[1])
    assert drawn(scheduler, asked) == drawn(Scheduler(lm), asked)
    assert scheduler.stack.row_bytes(36) == 36 * 256 and max(seen) == 4 and len(seen) > 5


def test_rows_of_states_that_do_not_grow_are_not_taken_for_larger_ones():
    lm = TextLM(odd_stacks.text_model("minimax", SIZES))
    stack = PlainScheduler(lm).stack
    assert stack.row_bytes(9) == 0
    short, middle, long = (stack.read(ids, None)[0] for ids in prompts(4, 30, 50))
    assert stack.row_bytes(4) == nbytes(short.cache) and stack.row_bytes(50) == nbytes(long.cache)
    assert stack.row_bytes(30) == nbytes(middle.cache) < 30 / 4 * nbytes(short.cache)


def test_a_run_is_left_and_another_begins(lm):
    asked = [request(ids, max_new_tokens=n) for ids, n in zip(prompts(5, 6, 5), (2, 30, 4), strict=True)]
    scheduler = PlainScheduler(lm)
    run = scheduler.run(asked)
    next(run)
    with pytest.raises(ModelError, match="has a run that is not at its end"):
        next(scheduler.run(asked))
    run.close()
    assert not scheduler._batch.units and not len(scheduler._batch)
    assert drawn(scheduler, asked) == drawn(Scheduler(lm), asked)


def test_workers_draw_what_one_does(lm):
    asked = [request(ids, range(8), temperature=1.0, max_new_tokens=6) for ids in prompts(*range(5, 15))]
    crew = Crew(lm, workers=2, engine="plain")
    found = {id(r): [a.token_ids for a in each] for r, each in crew.run(asked)}
    assert [found[id(r)] for r in asked] == drawn(Scheduler(lm), asked)
    assert crew.counts.answers == 80 and isinstance(crew.first, PlainScheduler)


# -- which way -----------------------------------------------------------------------------------------


def test_a_refused_stack_goes_the_plain_way_and_it_is_said_once(caplog):
    lm = TextLM(odd_stacks.text_model("minimax", SIZES))
    backends.reset_report()
    ways._said.clear()
    with caplog.at_level(logging.WARNING):
        engine = Engine(lm.model, None)
        Scorer(engine.lm)
    said = [r.message for r in caplog.records if "plain way" in r.message]
    assert said == [f"answers and label scores go the plain way, slower: {refusal(lm.text_model)}"]
    assert engine.crew.way == backends.Choice("plain", refusal(lm.text_model))
    asked = request(prompts(5)[0], max_new_tokens=3)
    list(engine.crew.run([asked]))
    assert backends.report()["generation"] == {"plain": 1} and backends.report()["decode"]["plain"] > 0
    assert backends.reasons()["generation"].startswith("plain: MiniMaxModel has layers of linear_attention")
    with pytest.raises(ModelError, match=r"linear_attention.*use generate\.engine = auto or plain"):
        Engine(lm.model, None, engine="packed")


def test_the_way_can_be_asked_for(lm):
    assert ways.choose(lm) == ("packed", "all its layers can be")
    assert ways.choose(lm, "plain") == ("plain", "asked for by name")
    with pytest.raises(ConfigError, match="engine is 'fast'; use one of auto, packed, plain"):
        ways.choose(lm, "fast")


def test_a_model_whose_inputs_cannot_be_packed_goes_the_plain_way(shown, monkeypatch):
    text = "gives its text stack an attention mask of its own"

    def refused(*_):
        raise ModelError(text)

    monkeypatch.setattr(shown, "embed", refused)
    monkeypatch.setattr(ways, "_seen", {})
    assert ways.choose(shown) == ("plain", text)


def test_an_unknown_family_is_packed_only_where_that_gives_its_own_label_scores(shown, monkeypatch):
    monkeypatch.setattr(ways, "FAMILIES", {})
    monkeypatch.setattr(ways, "_seen", {})
    assert ways.choose(shown).name == "packed"
    call = Stack.call
    monkeypatch.setattr(Stack, "call", lambda stack, embeds, *args: call(stack, 1.5 * embeds, *args))
    ways._seen.clear()
    assert re.search("scores labels otherwise when it is packed", ways.choose(shown).reason)


# -- rows of caches ------------------------------------------------------------------------------------


class Layer:
    def __init__(self, *tensors, length=3):
        self.held = {"a": list(tensors)}
        self.length = length

    def reorder_cache(self, index):
        self.held["a"][0] = self.held["a"][0].index_select(1, index)


class OwnCache:
    def __init__(self, *layers):
        self.layers = list(layers)

    def reorder_cache(self, index):
        for layer in self.layers:
            layer.reorder_cache(index)


def test_rows_of_any_cache_are_taken_by_what_reordering_moves():
    states = torch.arange(6.0).reshape(2, 1, 3)
    cache = OwnCache(Layer(states, torch.tensor(7)))
    dims = dims_of(cache, 1)
    assert sorted(dims.values(), key=str) == [1, None]
    made = gathered([(cache, [0, 0]), (cache, [0])], dims)
    assert made.layers[0].held["a"][0].shape == (2, 3, 3) and made.layers[0].length == 3
    assert nbytes(made) == 2 * 3 * 3 * 4 + 8
    other = copied(cache)
    other.layers[0].held["a"][0].zero_()
    assert states.sum() == 15 and len(tensors_of(other)) == 2


@pytest.mark.parametrize(
    ("cache", "why"),
    [
        (OwnCache(Layer(torch.zeros(2, 1), torch.zeros(1, 4))), "a.1 does not follow its rows"),
        (object(), "cannot be reordered"),
    ],
)
def test_caches_whose_rows_are_not_known_are_refused(cache, why):
    with pytest.raises(NoRows, match=why):
        dims_of(cache, 1)


def test_caches_that_differ_are_not_put_together():
    one, other = (OwnCache(Layer(torch.zeros(2, 1), length=n)) for n in (3, 4))
    with pytest.raises(NoRows, match="length differs"):
        gathered([(one, [0]), (other, [0])], dims_of(one, 1))
    longer = OwnCache(Layer(torch.zeros(3, 1)))
    with pytest.raises(NoRows, match="several sizes"):
        gathered([(one, [0]), (longer, [0])], dims_of(one, 1))
