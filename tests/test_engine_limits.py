"""The engine at its limits: memory that runs out and comes back, runs that are left, prompts of no or great length."""

import dataclasses
import gc
import math
import os
import weakref
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import families
from test_engine import drawn, prompts, request, text_model, theirs
from vstar_fast.engine import Crew, Engine, Request, Scheduler, Settings, TextLM
from vstar_fast.models import memory


@pytest.fixture(scope="module")
def lm():
    return TextLM(text_model())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = families.write("qwen2_5_vl", tmp_path_factory.mktemp("limits") / "model")
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def clip(frames=4, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (frames, 56, 56, 3), dtype=torch.uint8, generator=made)


# -- memory ------------------------------------------------------------------------------------------


def test_fewer_rows_become_more_again_and_each_failure_asks_for_more_patience():
    limit = memory.RowLimit(32)
    limit.halve(32)
    steps = [next(n for n in range(1, 10_000) if limit.went_well(limit.now))]
    assert limit.now == 32 and not limit.went_well(32)
    limit.halve(32)
    limit.halve(16)
    for _ in range(2):
        steps.append(next(n for n in range(1, 10_000) if limit.went_well(limit.now)))
    assert steps == [memory.PATIENCE, 4 * memory.PATIENCE, 4 * memory.PATIENCE] and limit.now == 32
    limit.halve(10)
    assert not any(limit.went_well(2) for _ in range(10_000)) and limit.now == 5


def test_what_a_user_says_of_the_allocator_counts(monkeypatch):
    told = []
    library = SimpleNamespace(mallopt=lambda *what: told.append(what), malloc_trim=lambda _: told.append("trim"))
    monkeypatch.setattr(memory, "_C_LIBRARY", library)
    monkeypatch.setattr(os, "environ", {"MALLOC_ARENA_MAX": "1"})
    memory.keep_freed()
    assert not told
    monkeypatch.setattr(os, "environ", {})
    memory.keep_freed()
    memory.release(torch.device("cpu"))
    assert told == [(-1, memory.KEPT_BYTES), (-3, memory.LARGEST_KEPT), "trim"]
    monkeypatch.setattr(memory, "_C_LIBRARY", SimpleNamespace())
    memory.keep_freed()
    memory.release(torch.device("cpu"))


def short_for_a_while(scheduler, monkeypatch, most):
    """Calls of the model fail with more than `most` rows until `free` holds something."""
    call, free = scheduler.stack.call, []

    def small(embeds, *args):
        if not free and len(scheduler._batch) > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return call(embeds, *args)

    monkeypatch.setattr(scheduler.stack, "call", small)
    return free


def test_rows_grow_back_after_a_shortage_and_no_answer_changes(lm, monkeypatch):
    monkeypatch.setattr(memory, "PATIENCE", 2)
    asked = [request(ids, temperature=1.0, max_new_tokens=20) for ids in prompts(*[6] * 40)]
    want = drawn(Scheduler(lm), asked)
    scheduler = Scheduler(lm, max_rows=12)
    free = short_for_a_while(scheduler, monkeypatch, 5)
    found = {}
    for r, answers in scheduler.run(asked):
        found[id(r)] = [a.token_ids for a in answers]
        free += [1] if len(found) == 6 else []
    assert [found[id(r)] for r in asked] == want
    assert scheduler.counts.halved >= 2 and scheduler.counts.regrown >= 1 and scheduler.max_rows == 12


def test_a_request_that_was_done_when_memory_ran_out_is_handed_over(lm, monkeypatch):
    asked = [request(ids, seeds=[1], max_new_tokens=n) for ids, n in zip(prompts(4, 5, 6), (1, 9, 9), strict=True)]
    want = drawn(Scheduler(lm), asked)
    scheduler = Scheduler(lm, max_rows=3)
    step, failed = scheduler._batch.step, []

    def once():
        if not failed:
            failed.append(1)
            raise MemoryError("none left")
        step()

    monkeypatch.setattr(scheduler._batch, "step", once)
    seen = Counter(id(r) for r, _ in scheduler.run(asked))
    assert seen == Counter(id(r) for r in asked)
    assert drawn(scheduler, asked) == want


def tensor_bytes():
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and thing.device.type == "cpu":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_memory_is_flat_over_a_thousand_videos(loaded):
    """Tensors alive and resident memory, seen at every 100th of 1,000 videos with two questions each."""
    engine = Engine(*loaded, max_rows=16)
    (feature,) = engine.encode([clip()])
    short, tensors, resident = Settings(max_new_tokens=3), [], []

    def asked():
        for _ in range(1000):
            video = dataclasses.replace(feature, kwargs={k: v.clone() for k, v in feature.kwargs.items()})
            yield from (engine.request(text, video, [1, 2], short) for text in ("a", "which colour"))

    for n, _ in enumerate(engine.scheduler.run(asked()), 1):
        if n % 200 == 0:
            tensors.append(tensor_bytes())
            resident.append(resident_bytes())
    assert len(tensors) == 10 and max(tensors) < 1.1 * tensors[0]
    assert max(resident[2:]) < resident[1] + (16 << 20)
    assert engine.scheduler.stack.store.nbytes == 0


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


# -- runs that are left --------------------------------------------------------------------------------


def test_a_run_that_is_left_keeps_no_lane_no_row_and_no_video(loaded):
    engine = Engine(*loaded, max_rows=9, cache_bytes=0)
    features = engine.encode([clip(seed=n) for n in range(6)])
    alive = [weakref.ref(tensor) for f in features for tensor in f.kwargs.values()]
    each = [Settings(1.0, max_new_tokens=n) for n in range(2, 8)]
    asked = [engine.request("which colour", *pair) for pair in zip(features, [range(3)] * 6, each, strict=True)]
    want = drawn(Scheduler(engine.lm), asked)
    run = engine.scheduler.run(iter(asked))
    next(run)
    batch = engine.scheduler._batch
    assert len(batch) and batch.lanes
    run.close()
    assert not (len(batch) or batch.lanes or batch.golds or engine.scheduler._prompts._videos)
    assert engine.scheduler.stack.store.nbytes == 0 and not engine.scheduler._inbound
    assert drawn(engine.scheduler, asked) == want
    del asked, features, run
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_a_run_whose_requests_raise_frees_everything(lm):
    scheduler = Scheduler(lm, max_rows=2)

    def asked():
        yield from [request(ids, max_new_tokens=9) for ids in prompts(*[5] * 70)]
        raise KeyError("the data set is at fault")

    with pytest.raises(KeyError, match="the data set"):
        list(scheduler.run(asked()))
    assert scheduler.stack.store.nbytes == 0 and not len(scheduler._batch)
    (ids,) = prompts(9)
    assert drawn(scheduler, [request(ids)])[0][0] == theirs(lm.model, ids, 64)


def test_a_run_that_nobody_holds_is_closed(lm):
    scheduler = Scheduler(lm)
    next(scheduler.run([request(ids, max_new_tokens=n) for ids, n in zip(prompts(5, 6), (2, 30), strict=True)]))
    gc.collect()
    assert scheduler.stack.store.nbytes == 0
    assert len(drawn(scheduler, [request(prompts(5)[0])])) == 1


# -- shapes --------------------------------------------------------------------------------------------


def test_prefixes_of_1_to_10000_tokens_with_a_video_of_several_questions_in_one_batch(loaded):
    engine = Engine(*loaded, max_rows=64)
    (long,) = engine.encode([clip(64)])
    text = [Request(ids[:0], ids, None, [1], Settings(max_new_tokens=8)) for ids in prompts(1, 2, 10_000, 64, 700)]
    text = [dataclasses.replace(r, tail=r.tail % 90 + 3) for r in text]
    shown = [engine.request(words, long, [1, 2], Settings(max_new_tokens=8)) for words in ("a", "is it red?", "")]
    asked = [text[0], shown[0], text[2], shown[1], text[1], text[3], shown[2], text[4]]
    assert drawn(engine.scheduler, asked) == [drawn(Scheduler(engine.lm, max_rows=1), [r])[0] for r in asked]


def test_one_answer_to_an_empty_question_that_ends_at_once(loaded):
    engine = Engine(*loaded)
    ((answer,),) = engine.generate([clip()], [""], n=1, settings=Settings(max_new_tokens=1))
    ended = Engine(*loaded)
    ended.lm.eos_ids = [answer.token_ids[0]]
    ended.crew = Crew(ended.lm)
    ((stopped, other),) = ended.generate([clip()], [""], n=2)
    assert stopped.token_ids == other.token_ids == answer.token_ids
    assert stopped.finish == "stop" and stopped.words == [] and ended.text(stopped) == ""
    assert ended.counts.steps == 0 and ended.counts.answers == 2


# -- distribution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 20)])
def test_samples_behind_a_video_have_the_distribution_of_hugging_faces_processors(loaded, top_p, top_k):
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    engine, n = Engine(*loaded, max_rows=1000), 4000
    (feature,) = engine.encode([clip()])
    settings = Settings(1.3, top_p, top_k, max_new_tokens=2)
    asked = engine.request("which colour", feature, range(n), settings)
    ((_, answers),) = engine.scheduler.run([asked])
    inputs = engine.lm.inputs(["which colour"], [feature])
    chain = LogitsProcessorList([TemperatureLogitsWarper(1.3)])
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    chain += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    first = distribution(engine.lm, inputs, chain)
    check_distribution(Counter(a.token_ids[0] for a in answers), first, n)
    likeliest = int(first.argmax())
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[likeliest]])], 1)
    for name in set(inputs) & {"attention_mask", "mm_token_type_ids"}:
        grown = torch.zeros(1, 1, dtype=inputs[name].dtype) + (name == "attention_mask")
        inputs[name] = torch.cat([inputs[name], grown], 1)
    second = [a.token_ids[1] for a in answers if a.token_ids[0] == likeliest and len(a.token_ids) > 1]
    check_distribution(Counter(second), distribution(engine.lm, inputs, chain), len(second))


@torch.no_grad()
def distribution(lm, inputs, chain):
    scores = lm.model(**inputs).logits[:, -1].float()
    lm.forget_positions()
    return chain(inputs["input_ids"], scores).softmax(-1)[0]


def check_distribution(seen, expected, n):
    """Chi-square with rare tokens pooled, below its mean + 4 standard deviations; nothing that was ruled out."""
    assert n > 100 and not any(expected[token] == 0 for token in seen)
    counts = torch.tensor([seen[i] for i in range(len(expected))], dtype=torch.double)
    wanted = expected.double() * n
    often = wanted >= 5
    counts, wanted = (torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, wanted))
    kept = wanted > 0.5
    chi2 = ((counts - wanted)[kept] ** 2 / wanted[kept]).sum()
    freedom = int(kept.sum()) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * max(freedom, 1))
