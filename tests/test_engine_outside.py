"""The engine in others' hands: inputs of all kinds, engines and threads over one model, models it cannot run."""

import copy
import dataclasses
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import families
from test_engine import drawn, prompts, request, text_model
from vstar_fast import ops
from vstar_fast.engine import Engine, Request, Scheduler, Scorer, Settings, SharedPrefixCache, TextLM
from vstar_fast.errors import ConfigError, DataError, ModelError
from vstar_fast.models.hf_cache import CACHE

SAMPLED = Settings(temperature=1.0, max_new_tokens=8)
ASKED = ["which colour", "is it red", "see a"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = families.write("video_llava", tmp_path_factory.mktemp("outside") / "model")
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


@pytest.fixture
def engine(loaded):
    return Engine(*loaded)


def clips(n=3):
    made = torch.Generator().manual_seed(0)
    return [torch.randint(0, 255, (4, 40, 40, 3), dtype=torch.uint8, generator=made) for _ in range(n)]


def tokens(found):
    return [[a.token_ids for a in answers] for answers in found]


class OnDemand:
    """A data set that makes each video anew when it is asked for."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return clips()[i]


@pytest.mark.parametrize(
    "given",
    [torch.stack(clips()), OnDemand(), [v.numpy() for v in clips()], (v for v in clips())],
    ids=["tensor", "on demand", "arrays", "generator"],
)
def test_videos_come_in_any_container(engine, given):
    want = tokens(engine.generate(clips(), ASKED, n=2, settings=SAMPLED))
    assert tokens(engine.generate(given, ASKED, n=2, settings=SAMPLED)) == want


def test_an_answer_does_not_depend_on_its_place_in_the_list(engine):
    want = tokens(engine.generate([*clips(), None], [*ASKED, "a"], n=2, settings=SAMPLED))
    found = tokens(engine.generate([None, *clips()[::-1]], ["a", *ASKED[::-1]], n=3, settings=SAMPLED))
    assert [answers[:2] for answers in found[::-1]] == want
    features = engine.encode(clips()[:1])
    assert tokens(engine.generate(features, ASKED[:1], n=2, settings=SAMPLED)) == want[:1]
    same = engine.generate([clips()[0], clips()[1]], ["a", "a"], settings=SAMPLED)
    assert same[0][0].seed != same[1][0].seed


def test_a_question_without_a_video_has_the_prompt_of_text(engine):
    asked = engine.request("which colour", None, [1], SAMPLED)
    theirs = engine.lm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "which colour"}]}], add_generation_prompt=True
    )
    ids = engine.lm.tokenizer(theirs)["input_ids"]
    assert torch.cat([asked.head, asked.tail]).tolist() == ids


def test_settings_and_templates_of_each_question(engine):
    red = ops.compile(ops.choice(["red"]), engine.lm.vocab)
    each = [Settings(max_new_tokens=1), SAMPLED, Settings(max_new_tokens=20)]
    found = engine.generate(clips(), ASKED, settings=each, template=[None, None, red])
    assert len(found[0][0].token_ids) == 1 and engine.text(found[2][0]) == "red"


def test_settings_and_templates_of_each_answer(engine):
    grammars = [ops.compile(ops.choice([name]), engine.lm.vocab) for name in ("red", "green")]
    settings = [Settings(max_new_tokens=8), Settings(1.0, max_new_tokens=20), Settings(max_new_tokens=20)]
    templates = [[None, *grammars], None, grammars[::-1] + [ops.choice(["red"])]]
    found = engine.generate(clips(), ASKED, n=3, settings=[settings] * 3, template=templates)
    assert [engine.text(a) for a in found[0][1:]] == ["red", "green"] and len(found[0][0].token_ids) <= 8
    assert [engine.text(a) for a in found[2][1:]] == ["red", "red"]
    for i, each in enumerate(settings):
        alone = engine.generate(clips()[1:2], ASKED[1:2], n=3, settings=each)
        assert found[1][i].token_ids == alone[0][i].token_ids
    with pytest.raises(ConfigError, match="there are 2 settings for 3 answers; give one an answer"):
        engine.generate(clips(1), ASKED[:1], n=3, settings=[settings[:2]])


def test_equal_frames_are_encoded_once_within_the_budget(loaded):
    engine = Engine(*loaded)
    seen, encode = [], engine.lm.encode
    engine.lm.encode = lambda batch: seen.append(1) or encode(batch)
    first = engine.encode([*clips(), *clips()])
    assert len(seen) == 3 and all(a is b for a, b in zip(first[:3], first[3:], strict=True))
    assert all(a is b for a, b in zip(engine.encode(clips()), first[:3], strict=True)) and len(seen) == 3
    size = sum(v.nbytes for v in first[0].kwargs.values())
    small = Engine(*loaded, cache_bytes=2 * size)
    small.encode(clips())
    assert small._kept.nbytes == 2 * size
    assert Engine(*loaded, cache_bytes=0).encode(clips(1))[0].ids.equal(first[0].ids)


def test_a_batch_whose_answers_differ_in_length_stays_full(loaded):
    scheduler = Scheduler(TextLM(text_model(eos_token_id=None)), max_rows=16)
    scheduler.lm.eos_ids, scheduler._batch.eos = [], frozenset()
    lengths = [4, 40, 8, 12] * 30
    requests = [request(ids, seeds=[1], max_new_tokens=n) for ids, n in zip(prompts(*[6] * 120), lengths, strict=True)]
    assert sum(len(a) for x in drawn(scheduler, requests) for a in x) == sum(lengths)
    assert scheduler.counts.steps < 1.25 * (sum(lengths) - len(lengths)) / 16 + 40


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e: e.generate(clips(2), ASKED), "2 videos, 3 questions"),
        (lambda e: e.generate(clips(), ASKED, template=[None]), "1 templates"),
        (lambda e: e.generate(clips(), "abc"), "give a list of texts"),
        (lambda e: e.generate(clips(), ASKED, n=0), "n is 0"),
        (lambda e: Scheduler(e.lm, max_rows=0), "max_rows is 0"),
        (lambda e: Settings(top_p=0.0), "top_p is 0"),
        (lambda e: Settings(temperature=-1.0), "temperature is -1"),
    ],
)
def test_what_cannot_be_asked_is_named(engine, call, said):
    with pytest.raises(ConfigError, match=said):
        call(engine)


@pytest.mark.parametrize(
    ("video", "said"),
    [
        (clips()[0].float(), r"float32 \[4, 40, 40, 3\]"),
        (clips()[0].permute(0, 3, 1, 2), r"uint8 \[4, 3, 40, 40\]"),
        (clips()[0][:0], "at least one frame"),
        ("a.mp4", "not a str; read files with"),
    ],
)
def test_what_is_no_video_is_named(engine, video, said):
    with pytest.raises(DataError, match=said):
        engine.generate([video], ["a"])


def test_a_request_for_no_answers_is_done_at_once():
    (ids,) = prompts(9)
    scheduler = Scheduler(TextLM(text_model()))
    assert drawn(scheduler, [request(ids, seeds=[])]) == [[]]
    assert [len(a) for a in drawn(scheduler, [request(ids, seeds=[]), request(ids), request(ids, seeds=[])])] == [
        0,
        3,
        0,
    ]


def test_memory_that_runs_out_behind_the_last_token_loses_no_request(monkeypatch):
    scheduler = Scheduler(TextLM(text_model()), max_rows=4, plain_below=100)
    copied, failed = scheduler._batch._copy_prefix, []

    def once(group):
        if not failed:
            failed.append(group)
            raise MemoryError("none left")
        copied(group)

    monkeypatch.setattr(scheduler._batch, "_copy_prefix", once)
    asked = [request(ids, max_new_tokens=1) for ids in prompts(5, 6)]
    want = drawn(Scheduler(TextLM(text_model())), asked)
    assert drawn(scheduler, asked) == want and scheduler.counts.halved == 1


def test_a_thousand_videos_with_two_questions_each_stream_with_flat_memory(loaded):
    engine = Engine(*loaded, max_rows=8)
    (feature,) = engine.encode(clips(1))
    short = Settings(max_new_tokens=2)

    def asked():
        for _ in range(1000):
            video = dataclasses.replace(feature)
            yield from (engine.request(text, video, [1], short) for text in ("a", "b"))

    held, videos, answers = [], [], 0
    for _, found in engine.scheduler.run(asked()):
        answers += len(found)
        held.append(engine.scheduler.stack.store.nbytes)
        videos.append(len(engine.scheduler._prompts._videos))
    head, tail = engine.lm.split("a")
    assert answers == 2000 and max(held) == max(held[:100]) and max(videos) <= 64
    assert engine.counts.prefilled <= len(head) + 1000 * (len(feature.ids) + 2 * (len(tail) + 2))
    assert engine.scheduler.stack.store.nbytes == 0


# -- one model, several users ----------------------------------------------------------------------


def test_two_engines_over_one_model_share_its_tower(loaded):
    first = Engine(*loaded)
    features = first.encode(clips())
    want = tokens(first.generate(features, ASKED, settings=SAMPLED))
    second = Engine(*loaded)
    assert second.lm.tower is first.lm.tower
    assert tokens(first.generate(features, ASKED, settings=SAMPLED)) == want
    assert tokens(second.generate(clips(), ASKED, settings=SAMPLED)) == want


def test_a_copy_of_a_model_has_a_tower_of_its_own(loaded):
    first = Engine(*loaded)
    want = tokens(first.generate(clips(), ASKED, settings=SAMPLED))
    model = copy.deepcopy(loaded[0])
    second = Engine(model, loaded[1])
    assert second.lm.tower is not first.lm.tower and second.lm.tower.body is model.model
    assert tokens(second.generate(clips(), ASKED, settings=SAMPLED)) == want
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(-1)
    assert tokens(second.generate(clips(), ASKED, settings=SAMPLED)) != want
    assert tokens(first.generate(clips(), ASKED, settings=SAMPLED)) == want


def test_a_second_run_of_a_scheduler_is_refused_until_the_first_is_closed():
    scheduler = Scheduler(TextLM(text_model()))
    asked = [request(ids, max_new_tokens=n) for ids, n in zip(prompts(5, 6), (2, 30), strict=True)]
    want = drawn(scheduler, asked)
    run = scheduler.run(asked)
    next(run)
    with pytest.raises(ModelError, match=r"finish or close\(\) it"):
        drawn(scheduler, asked)
    assert [a.token_ids for a in next(run)[1]] == want[1]
    run.close()
    assert drawn(scheduler, asked) == want


def test_threads_over_one_model_take_turns(loaded):
    engines = [Engine(*loaded) for _ in range(3)]
    want = tokens(engines[0].generate(clips(), ASKED, n=2, settings=SAMPLED))
    ready = threading.Barrier(3)

    def work(engine):
        ready.wait()
        return [tokens(engine.generate(clips(), ASKED, n=2, settings=SAMPLED)) for _ in range(2)]

    before, interval = loaded[0].model.language_model.config._attn_implementation, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(work, engines))
    finally:
        sys.setswitchinterval(interval)
    assert found == [[want, want]] * 3
    assert loaded[0].model.language_model.config._attn_implementation == before


def test_a_model_that_peft_has_wrapped(tmp_path):
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = families.write("llava_onevision", tmp_path / "model")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, lora)
    found = tokens(Engine(wrapped, processor).generate(clips(1), ASKED[:1]))
    assert found == tokens(Engine(model, processor).generate(clips(1), ASKED[:1]))
    with wrapped.disable_adapter():
        assert found != tokens(Engine(wrapped, processor).generate(clips(1), ASKED[:1]))
    prefixed = get_peft_model(text_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ModelError, match="adds to prompts"):
        Engine(prefixed, None)


def test_nothing_is_dropped_out_while_answers_are_drawn():
    from peft import LoraConfig, get_peft_model

    model = text_model()
    get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5)
    )
    asked = [request(ids, max_new_tokens=20) for ids in prompts(9, 30)]
    assert not model.training and model.model.layers[0].self_attn.q_proj.lora_dropout["default"].training
    fresh = drawn(Scheduler(TextLM(model)), asked)
    want = drawn(Scheduler(TextLM(model.eval())), asked)
    assert fresh == want
    scores = Scorer(TextLM(model)).score(asked, [[[7, 8]], [[9]]])
    model.train()
    model.lm_head.eval()
    assert drawn(Scheduler(TextLM(model)), asked) == want
    assert torch.equal(Scorer(TextLM(model)).score(asked, [[[7, 8]], [[9]]]), scores)
    assert model.training and model.model.layers[0].training and not model.lm_head.training


# -- scores ----------------------------------------------------------------------------------------


def test_a_scorer_keeps_nothing_of_weights_that_have_changed():
    lm = TextLM(text_model())
    (ids,) = prompts(30)
    asked, labels = [Request(ids[:10], ids[10:], None, [1])], [[[7, 8]], [[9]]]
    scorer = Scorer(lm)
    scorer.score(asked, labels)
    assert scorer.stack.store.nbytes == 0
    with torch.no_grad():
        lm.model.model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    assert torch.equal(scorer.score(asked, labels), Scorer(lm).score(asked, labels))


def test_scores_of_nothing():
    scorer = Scorer(TextLM(text_model()))
    (ids,) = prompts(5)
    assert scorer.score([], [[[7]], [[8]]]).shape == (0, 2)
    with pytest.raises(ConfigError, match="label 1 has no surface"):
        scorer.score([request(ids)], [[[7]], []])
    with pytest.raises(ConfigError, match="there are no labels"):
        scorer.score([request(ids)], [])


# -- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "more"), [("Cohere", {"logit_scale": 0.3}), ("Granite", {"logits_scaling": 4.0})])
def test_logits_of_a_text_model_are_its_own(kind, more):
    model = text_model(kind, **more)
    (ids,) = prompts(20)
    ((_, (answer,)),) = Scheduler(TextLM(model)).run([request(ids, seeds=[1], max_new_tokens=1)])
    with torch.no_grad():
        want = model(ids[None]).logits[0, -1].log_softmax(-1).max()
    assert answer.logprob == pytest.approx(want.item(), abs=1e-4)


def test_a_text_model_takes_templates_and_no_videos():
    tokenizer = families.byte_bpe()
    model = text_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    engine = Engine(model, tokenizer)
    ((answer,),) = engine.generate([None], ["Which colour"], template=ops.choice(["red", "green"]))
    assert engine.text(answer) in ("red", "green")
    with pytest.raises(ModelError, match="give None in place of a video"):
        engine.generate(clips(1), ["a"])
    with pytest.raises(ModelError, match="give its tokenizer"):
        Engine(model, None).generate([None], ["a"])


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("Bloom", {"n_head": 6, "n_layer": 2}, "BloomModel has attention in code of its own"),
        ("FalconH1", {}, "FalconH1Model has layers of hybrid"),
        ("Jamba", {"attn_layer_offset": 1, "attn_layer_period": 2}, "JambaMambaMixer takes up a state one token"),
    ],
)
def test_a_model_whose_layers_are_not_known_is_refused_by_name(kind, more, said):
    with pytest.raises(ModelError, match=said):
        drawn(Scheduler(TextLM(text_model(kind, **more))), [request(prompts(4)[0])])


def test_a_sliding_window_behind_a_shared_prefix_is_refused_by_name():
    model = text_model("Mistral", sliding_window=8)
    cache = SharedPrefixCache()
    model.set_attn_implementation("vstar_prefix")
    ids = prompts(20)[0][None]
    with torch.no_grad():
        model(input_ids=ids[:, :-1], **{CACHE: cache})
        cache.fork(2)
        with pytest.raises(ModelError, match="asks for sliding_window"):
            model(input_ids=ids[:, -1:].repeat(2, 1), **{CACHE: cache})


def test_rows_padded_behind_a_shared_prompt_are_refused():
    model = text_model()
    cache = SharedPrefixCache()
    model.set_attn_implementation("vstar_prefix")
    mask = torch.ones(4, 11, dtype=torch.long)
    with torch.no_grad():
        model(input_ids=torch.stack(prompts(6, 6)), **{CACHE: cache})
        cache.fork(2)
        rows = {"input_ids": torch.stack(prompts(5, 5, 5, 5)), CACHE: cache}
        mask[0, 6:8] = 0
        with pytest.raises(ModelError, match="padded behind a shared prompt"):
            model(attention_mask=mask, **rows)
    with pytest.raises(ModelError, match="has no gradient"):
        model(**rows).logits.sum().backward()


def test_a_running_state_is_not_shared_inside_transformers():
    """It is refused by name: this cache shares keys and values."""
    from vstar_fast.bench import language_models

    model, cache = language_models.build("Qwen3.5-small"), SharedPrefixCache()  # makes the name known
    model.set_attn_implementation("vstar_prefix")
    with torch.no_grad(), pytest.raises(ModelError, match="layer 0 keeps a running state"):
        model(input_ids=torch.arange(1, 9)[None], **{CACHE: cache})


def test_a_default_device_of_another_kind_changes_nothing(loaded):
    engine, videos = Engine(*loaded), clips()
    want = tokens(engine.generate(videos, ASKED, n=2, settings=SAMPLED))
    torch.set_default_device("meta")
    try:
        found = tokens(Engine(*loaded).generate(videos, ASKED, n=2, settings=SAMPLED))
    finally:
        torch.set_default_device(None)
    assert found == want
