"""Long prompts in pieces: the same answers, others drawn between the pieces, and nothing lost when a run ends there."""

import pytest
import torch

import families
from test_engine import prompts, request, text_model
from test_families import batch_of
from vstar_fast import models
from vstar_fast.engine import Request, Scheduler, Settings, TextLM, chunked_prefill
from vstar_fast.engine.batch import Batch
from vstar_fast.engine.chunked_prefill import Prompt
from vstar_fast.engine.stack import Stack

MOST = 40


@pytest.fixture(scope="module")
def lm():
    return TextLM(text_model())


@pytest.fixture
def events(monkeypatch):
    """Calls of the text stack in order: a prompt's tokens, or "step"."""
    found, prefill, step = [], Stack._prefill, Batch.step

    def noted(stack, call):
        found.append(sum(p.inputs_embeds.shape[1] for p in call))
        return prefill(stack, call)

    monkeypatch.setattr(Stack, "_prefill", noted)
    monkeypatch.setattr(Batch, "step", lambda batch: (found.append("step"), step(batch))[1])
    return found


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", MOST)


def asked():
    """Two short prompts, of which one is soon done, and a long one that takes its row."""
    tokens = {12: 30, 9: 3, 150: 20}
    given = zip(prompts(*tokens), tokens.values(), strict=True)
    return [request(ids, (1,), temperature=0.9, max_new_tokens=most) for ids, most in given]


def drawn(scheduler, requests):
    scheduler._batch.eos = frozenset()
    found = {id(r): [(a.token_ids, a.finish) for a in answers] for r, answers in scheduler.run(requests)}
    return [found[id(r)] for r in requests]


@pytest.fixture(scope="module")
def want(lm):
    return drawn(Scheduler(lm, max_rows=2), asked())


@pytest.mark.usefixtures("small")
def test_answers_in_flight_take_a_step_between_pieces(lm, want, events):
    scheduler = Scheduler(lm, max_rows=2)
    assert drawn(scheduler, asked()) == want
    assert events[:10] == [21, "step", "step", 40, "step", 40, "step", 40, "step", 30]
    assert scheduler.counts.prefilled == 12 + 9 + 150


@pytest.mark.usefixtures("small")
def test_with_nobody_in_flight_pieces_follow_one_another(lm, events):
    drawn(Scheduler(lm, max_rows=2), asked()[2:])
    assert events[:5] == [40, 40, 40, 30, "step"]


@pytest.mark.usefixtures("small")
def test_out_of_memory_between_pieces_loses_nothing(lm, want, monkeypatch):
    calls, prefill = [], Stack._prefill

    def fails(stack, call):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return prefill(stack, call)

    monkeypatch.setattr(Stack, "_prefill", fails)
    scheduler = Scheduler(lm, max_rows=2)
    assert drawn(scheduler, asked()) == want
    assert scheduler.counts.halved == 1 and scheduler.stack.store.nbytes == 0


@pytest.mark.usefixtures("small")
def test_a_run_that_is_left_between_pieces_leaves_nothing_behind(lm, want):
    scheduler = Scheduler(lm, max_rows=2)
    scheduler._batch.eos = frozenset()
    run = scheduler.run(asked())
    next(run)  # the answer of three tokens
    run.close()
    assert scheduler.stack.store.nbytes == 0
    assert drawn(scheduler, asked()) == want


def test_answers_that_end_before_the_last_piece_leave_the_rest_to_come(lm, monkeypatch, events):
    first, soon, long = asked()
    requests = [request(first.tail, (1,), max_new_tokens=5), soon, long]
    want = drawn(Scheduler(lm, max_rows=2), requests)
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", MOST)
    events.clear()
    assert drawn(Scheduler(lm, max_rows=2), requests) == want
    assert events[:8] == [21, "step", "step", 40, "step", 40, "step", 40]


def test_a_video_stays_while_a_question_about_it_arrives(tmp_path, monkeypatch):
    """The only answer behind it ends between the pieces of the next question."""
    lm = models.load(str(families.write("qwen2_5_vl", tmp_path / "model")))
    (video,) = lm.encode(batch_of((56, 84)))

    def ask(text, features, tokens):
        return Request(*lm.split(text), features, (1,), Settings(max_new_tokens=tokens))

    requests = [
        ask("which colour", video, 4), ask("red?", None, 2), ask("blue?", None, 40), ask("a ball? " * 12, video, 6)
    ]  # fmt: skip

    def answers():
        return drawn(Scheduler(lm, max_rows=3), requests)

    want = answers()
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", 7)
    held, prefill = [], Stack._prefill

    def noted(stack, call):
        held.append([node.length for p in call for node in p.seen])
        return prefill(stack, call)

    monkeypatch.setattr(Stack, "_prefill", noted)
    assert answers() == want
    assert len({lengths[0] for lengths in held[-3:]}) == 1 and held[-1][0] > len(video.ids)


def prompt(tokens, **extras):
    """A prompt whose inputs count its tokens."""
    counted = torch.arange(tokens)
    return Prompt("own", 3, ["head"], counted.view(1, -1, 1), counted.expand(3, tokens), extras)


def test_what_a_piece_is_given():
    mask = torch.tensor([[True, False, True, True, False]])
    deep = [torch.tensor([0, 2, 3]), torch.tensor([10, 12, 13])]
    first, second, third = chunked_prefill.pieces(prompt(5, mask=mask, deep=deep, flag=True), 2)
    assert (first.start, second.start, third.start) == (3, 5, 7)
    assert (first.seen, second.seen, third.seen) == (["head"], ["own"], ["own"])
    assert [p.inputs_embeds.flatten().tolist() for p in (first, second, third)] == [[0, 1], [2, 3], [4]]
    assert second.position_ids.tolist() == [[2, 3]] * 3
    assert [[t.tolist() for t in p.extras["deep"]] for p in (first, second, third)] == [
        [[0], [10]],
        [[2, 3], [12, 13]],
        [[], []],
    ]
    assert third.extras["mask"].tolist() == [[False]] and third.extras["flag"] is True


def test_a_prompt_whose_extras_cannot_be_told_apart_stays_whole():
    mask = torch.tensor([[True, False, True, True, False]])
    for extras in (
        {"other": torch.zeros(4, 7)},
        {"deep": [torch.zeros(3, 2)]},
        {"mask": mask, "deep": [torch.zeros(2, 2)]},
        {"mask": mask, "again": mask, "deep": [torch.zeros(3, 2)]},
    ):
        assert len(chunked_prefill.pieces(prompt(5, **extras), 2)) == 1
    assert len(chunked_prefill.pieces(prompt(5), 5)) == 1 and len(chunked_prefill.pieces(prompt(5), 4)) == 2
