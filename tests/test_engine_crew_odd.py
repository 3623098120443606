"""A crew over models that are not as `from_pretrained` gives them, beside others, and left in the middle."""

import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from vstar_fast.kernels.linear import PACKED, packed_linears

from test_engine import drawn, text_model
from test_engine_crew import requests, workers_left
from vstar_fast import backends
from vstar_fast.engine import Crew, Scheduler, TextLM, crew
from vstar_fast.engine.request import Settings
from vstar_fast.engine.scheduler import Scheduler as Own

TESTS = Path(__file__).parent
ONEDNN = backends.choose("linear", "cpu").name == "onednn"


@pytest.fixture(autouse=True)
def every_answer_is_worth_a_worker(monkeypatch):
    monkeypatch.setattr(crew, "WORTH", 1)


@pytest.fixture
def lm():
    return TextLM(text_model())


class Seen:
    """A hook of the user's, with something in it that has no copy."""

    def __init__(self):
        self.calls, self.lock = 0, threading.Lock()

    def __call__(self, *_):
        with self.lock:
            self.calls += 1

    def method(self, *_):
        self()


@pytest.mark.parametrize("kind", ["object", "method"])
def test_hooks_of_the_users_are_called_for_every_step_of_every_worker(lm, kind):
    seen = Seen()
    lm.text_model.layers[0].register_forward_hook(seen if kind == "object" else seen.method)
    together = Crew(lm, workers=2)
    drawn(together, requests(max_new_tokens=10))
    assert together.workers == 2 and seen.calls >= together.counts.steps > 0


def has_a_lock(model):
    model.lock = threading.Lock()


def has_a_tensor_with_a_history(model):
    model.kept = [2 * torch.ones(2, requires_grad=True)]


def has_forwards_put_in_place(model):
    for layer in model.model.layers:
        own = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, own=own, **kwargs: own(*args, **kwargs)


@pytest.mark.parametrize("change", [has_a_lock, has_a_tensor_with_a_history, has_forwards_put_in_place])
def test_a_model_without_a_copy_is_one_workers_and_that_is_said(lm, change, caplog):
    want = drawn(Scheduler(lm), requests(max_new_tokens=10))
    change(lm.model)
    together = Crew(lm, workers=2, memory_bytes=1 << 30)
    assert drawn(together, requests(max_new_tokens=10)) == want
    assert together.workers == 1 and together.first.memory_bytes == 1 << 30
    assert "drawn by one worker, not 2" in caplog.text


def test_no_further_thread_is_one_worker(lm, monkeypatch, caplog):
    start, asked = threading.Thread.start, []

    def second_fails(thread):
        asked.append(thread)
        if len(asked) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    want = drawn(Scheduler(lm), requests(max_new_tokens=10))
    monkeypatch.setattr(threading.Thread, "start", second_fails)
    assert drawn(Crew(lm, workers=2), requests(max_new_tokens=10)) == want
    assert "the system gives no further thread" in caplog.text and not workers_left()


def test_an_autocast_around_the_run_holds_for_all_of_it(lm):
    made = Crew(lm, workers=2)
    with torch.autocast("cpu", torch.bfloat16):
        want = drawn(Scheduler(lm), requests(max_new_tokens=10))
        assert drawn(made, requests(max_new_tokens=10)) == want
        assert made.counts.seconds.keys() == made.first.counts.seconds.keys() and not made._others.steps


def test_two_crews_over_one_model_at_once():
    lm = TextLM(text_model(num_hidden_layers=4, hidden_size=96, intermediate_size=1024))
    want, wrong = drawn(Scheduler(lm), requests(max_new_tokens=10)), []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def again():
        for _ in range(12):
            try:
                if drawn(Crew(lm, workers=2), requests(max_new_tokens=10)) != want:
                    wrong.append("other answers")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=again) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and not any(PACKED in module.__dict__ for module in lm.model.modules())


@pytest.mark.skipif(not ONEDNN, reason="nothing is packed here")
def test_a_copy_that_finds_no_memory_leaves_none_behind(lm, monkeypatch):
    from vstar_fast.kernels.linear import onednn

    own, made = onednn.pack, []

    def fails(weight):
        made.append(weight)
        if len(made) == 3:
            raise MemoryError
        return own(weight)

    monkeypatch.setattr(onednn, "pack", fails)
    with pytest.raises(MemoryError), packed_linears([lm.model]):
        pass
    assert not any(PACKED in module.__dict__ for module in lm.model.modules())


def test_the_callers_threads_are_its_own_between_answers(lm):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in Crew(lm, workers=2).run(requests(max_new_tokens=5)):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_worker_that_lets_go_of_the_run_does_not_wait_for_itself(lm, monkeypatch):
    """As Python's collector does, where the run lies in a cycle."""
    made, own, thrown = Crew(lm, workers=2), Own._advance, []
    monkeypatch.setattr(sys, "unraisablehook", thrown.append)
    monkeypatch.setattr(lm, "eos_ids", [])
    asked = requests(max_new_tokens=10_000)  # but the first one: all others are at work when it is done
    held = [made.run([replace(asked[0], settings=Settings(max_new_tokens=2)), *asked[1:]])]
    next(held[0])

    def lets_go(self, waiting, done):
        own(self, waiting, done)
        if held and threading.current_thread().name == "answers":
            held.clear()

    monkeypatch.setattr(Own, "_advance", lets_go)
    for thread in workers_left():
        thread.join(60)
    assert not workers_left() and not thrown and not held
    monkeypatch.undo()
    for _ in range(100):  # one that comes while another thread collects does nothing
        gc.collect()
        if not made._busy.locked():
            break
        time.sleep(0.1)
    assert drawn(made, requests(max_new_tokens=4)) == drawn(Scheduler(lm), requests(max_new_tokens=4))


LEFT = """
import sys
from test_engine_crew import requests, text_model
from vstar_fast.engine import Crew, TextLM, crew
crew.WORTH = 1
run = Crew(TextLM(text_model()), workers=2).run(requests(40, max_new_tokens=500))
next(run)
print("one", flush=True)
"""


def test_a_program_may_end_with_a_run_that_is_not():
    done = subprocess.run([sys.executable, "-c", LEFT], cwd=TESTS, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "one\n"), done.stderr
