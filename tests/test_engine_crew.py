"""A crew: what one scheduler draws, from several at once; nothing of it stays behind, however a run ends."""

import contextlib
import gc
import threading
import weakref
from dataclasses import replace
from unittest import mock

import pytest
import torch
from vstar_fast.kernels.linear import PACKED

import families
from test_engine import drawn, prompts, request, text_model
from test_engine_families import asked
from test_families import batch_of
from vstar_fast import backends, models
from vstar_fast.engine import Crew, Scheduler, TextLM, crew
from vstar_fast.errors import ConfigError, ModelError
from vstar_fast.models.replica import replicas


@pytest.fixture(autouse=True)
def every_answer_is_worth_a_worker(monkeypatch):
    monkeypatch.setattr(crew, "WORTH", 1)


@pytest.fixture(scope="module")
def lm():
    return TextLM(text_model())


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def video_lm(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def requests(count=9, **settings):
    return [request(ids, seeds=(n, n + 1), **settings) for n, ids in enumerate(prompts(*range(3, 3 + count)))]


def workers_left():
    return [t for t in threading.enumerate() if t.name == "answers"]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_a_crew_draws_what_one_scheduler_draws(lm, workers, settings):
    made = requests(max_new_tokens=20, **settings)
    alone, together = Scheduler(lm), Crew(lm, max_rows=4, workers=workers)
    want = drawn(alone, made)
    for _ in range(2):
        assert drawn(together, made) == want
    counts = together.counts
    assert (counts.answers, counts.tokens) == (2 * alone.counts.answers, 2 * alone.counts.tokens)
    assert counts.prefilled == 2 * alone.counts.prefilled and counts.steps >= alone.counts.steps
    assert counts.seconds["decode"] > 0 and not workers_left()


def test_every_family_and_each_video_at_one_worker(video_lm):
    clips = video_lm.encode(batch_of((56, 84), (70, 56), (56, 56)))
    features = [clips[n % 3] for n in range(7)]
    made = asked(video_lm, features, [f"which colour {n}" for n in range(7)])
    alone, together = Scheduler(video_lm), Crew(video_lm, workers=2)
    assert drawn(together, made) == drawn(alone, made)
    assert together.counts.prefilled <= alone.counts.prefilled + len(made[0].head)  # a worker more reads the head once


def test_a_video_asked_about_very_often_is_shared_out(lm, monkeypatch):
    monkeypatch.setattr(crew, "LOOKAHEAD", 4)
    deal = crew._Deal([crew._Worker(Scheduler(lm)) for _ in range(2)], 1)
    video = object()
    for ids in prompts(*[3] * 12):
        one = request(ids)
        one.features = video
        assert deal._takes(one)
    assert [worker.dealt.qsize() for worker in deal._workers] == [8, 4]


def test_requests_are_drawn_in_the_callers_thread_and_only_as_they_find_room(lm, monkeypatch):
    monkeypatch.setattr(crew, "HELD", 2)
    taken = []

    threads = torch.get_num_threads()
    torch.set_num_threads(3)

    def source():
        for number, one in enumerate(requests(300, max_new_tokens=2)):
            assert threading.current_thread() is threading.main_thread()
            assert torch.get_num_threads() == (3 if number < 2 else 1)  # no team beside the workers'
            taken.append(one)
            yield one

    try:
        run = Crew(lm, workers=2).run(source())
        next(run)
        assert len(taken) < 300
        assert 1 + len(list(run)) == len(taken) == 300
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_an_error_of_a_worker_is_raised_and_ends_all(lm, monkeypatch):
    made, own = Crew(lm, workers=2), Scheduler._advance

    def breaks(self, waiting, done):
        if self is not made.first and len(self._batch):
            raise ArithmeticError("broken worker")
        own(self, waiting, done)

    monkeypatch.setattr(Scheduler, "_advance", breaks)
    with pytest.raises(ArithmeticError, match="broken worker"):
        list(made.run(requests(max_new_tokens=500)))
    assert not workers_left()
    monkeypatch.undo()
    assert len(list(made.run(requests(max_new_tokens=3)))) == 9


def test_an_error_of_the_source_ends_all(lm):
    def source():
        yield from requests(3)
        raise KeyError("no such video")

    made = Crew(lm, workers=2)
    with pytest.raises(KeyError, match="no such video"):
        list(made.run(source()))
    assert not workers_left()
    assert len(drawn(made, requests())) == 9


def test_a_run_may_be_left_and_is_the_only_one(lm):
    made = Crew(lm, workers=2)
    with contextlib.closing(made.run(requests(max_new_tokens=5000))) as run:
        next(run)
        with pytest.raises(ModelError, match="a run that is not at its end"):
            list(made.run(requests(1)))
    assert not workers_left()
    assert not any(PACKED in module.__dict__ for module in lm.model.modules())
    assert drawn(made, requests(max_new_tokens=4)) == drawn(Scheduler(lm), requests(max_new_tokens=4))


def test_no_request_is_no_answer(lm):
    assert list(Crew(lm, workers=3).run([])) == []


def test_a_few_answers_are_drawn_in_the_callers_thread(lm, monkeypatch):
    monkeypatch.setattr(crew, "WORTH", 7)
    monkeypatch.setattr(crew, "replicas", lambda *_: pytest.fail("a worker for less than it is worth"))
    assert drawn(Crew(lm, workers=4), requests(6)) == drawn(Scheduler(lm), requests(6))
    with pytest.raises(pytest.fail.Exception):
        list(Crew(lm, workers=4).run(requests(7)))


def test_one_video_is_one_workers_and_it_has_all_threads(lm, monkeypatch):
    monkeypatch.setattr(crew, "replicas", lambda *_: pytest.fail("a worker without a video"))
    (one,) = prompts(5)
    alone = request(one, seeds=range(40), max_new_tokens=3)
    assert drawn(Crew(lm, workers=2), [alone]) == drawn(Scheduler(lm), [alone])
    video = object()
    asked = [replace(request(ids), features=video) for ids in prompts(*[4] * 200)]
    seen, answers, videos = crew._front(iter(asked), 2)
    assert (len(seen), answers, videos) == (2 * crew.LOOKAHEAD, 6 * crew.LOOKAHEAD, 1)
    mixed = [*asked[:7], replace(asked[0], features=object()), *asked]
    assert len(crew._front(iter(mixed), 2)[0]) == 8


def test_how_many_workers(lm, monkeypatch):
    assert crew.settable()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert crew.workers_for(lm) == 6
    with torch.autocast("cpu"):
        assert crew.workers_for(lm) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    assert crew.workers_for(lm) == crew.MOST_WORKERS
    with monkeypatch.context() as patch:
        patch.setattr(lm.model, "is_quantized", True, raising=False)
        assert crew.workers_for(lm) == 1
    monkeypatch.setattr(crew, "settable", lambda: False)
    assert crew.workers_for(lm) == 1
    with pytest.raises(ConfigError, match="workers is 0"):
        Crew(lm, workers=0)


def test_replicas_have_the_weights_and_nothing_else_in_common(video_lm):
    own = {name: p.data_ptr() for name, p in video_lm.model.named_parameters()}
    with replicas(video_lm, 2) as made:
        for other in made:
            assert own == {name: p.data_ptr() for name, p in other.model.named_parameters()}
            assert not {id(m) for m in other.model.modules()} & {id(m) for m in video_lm.model.modules()}
            assert other.text_model.config is not video_lm.text_model.config
            assert other.tower is not video_lm.tower and other.tower.body is other.body
            assert other.processor is video_lm.processor
    assert not [*made[0].model.parameters(), *made[0].model.buffers()]
    assert own == {name: p.data_ptr() for name, p in video_lm.model.named_parameters()}


def test_nothing_of_a_run_is_held_by_cycles(video_lm):
    """Copies of weights are large: they must not wait for the garbage collector."""
    clips = video_lm.encode(batch_of((56, 84), (70, 56)))
    kept, own = [], crew.packed_linears

    @contextlib.contextmanager
    def seen(modules, **how):
        listed = list(modules)
        with own(listed, **how):
            every = [m for module in listed for m in module.modules()]
            kept.extend(weakref.ref(vars(m)[PACKED]) for m in every if PACKED in vars(m))
            yield

    with mock.patch.object(crew, "packed_linears", seen), without_collector():
        drawn(Crew(video_lm, workers=2), asked(video_lm, clips, ["red", "blue"], tokens=3))
        assert kept or backends.choose("linear", "cpu").name == "reference"
        assert not [r for r in kept if r() is not None]


@contextlib.contextmanager
def without_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_gpu_draws_more_at_once(lm, monkeypatch):
    assert (Crew(lm).first.max_rows, Crew(lm, max_rows=7).first.max_rows) == (64, 7)
    monkeypatch.setitem(crew.ROWS, "cpu", crew.ROWS["cuda"])
    assert Crew(lm).first.max_rows == 256
    with pytest.raises(ConfigError, match="max_rows is 0"):
        Crew(lm, max_rows=0)
