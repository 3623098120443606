"""Recorded steps of stacks with windows, sinks, latent attention and shared keys: answers of single steps."""

import pytest

from test_engine import prompts, request, text_model
from test_engine_graphs import Recorder, answers, fresh_groups, reading_forbidden, scheduler
from test_engine_layers import HYBRID, STACKS, questions
from vstar_fast.engine import TextLM, burst, cache

__all__ = ["fresh_groups"]


@pytest.fixture(scope="module", params=STACKS)
def lm(request):
    kind, more = STACKS[request.param]
    return TextLM(text_model(kind, **more))


@pytest.mark.parametrize(("max_rows", "plain_below"), [(5, 0), (64, 200)])
def test_answers_are_those_of_single_steps(lm, max_rows, plain_below):
    """Windows that rows outgrow within a burst, that begin in clips, in questions, in pages and over their edges."""
    asked = [request(ids, max_new_tokens=70) for ids in prompts(3, 63, 130)] + questions(max_new_tokens=40)
    want = answers(scheduler(lm, max_rows=max_rows, plain_below=plain_below), asked)
    recorder = Recorder()
    assert answers(scheduler(lm, recorder, max_rows=max_rows, plain_below=plain_below), asked) == want
    assert recorder.replays > 4 * recorder.recordings


def test_masks_are_made_only_for_rows_that_outgrow_a_window():
    lm = TextLM(text_model("Exaone4", sliding_window=70, layer_types=HYBRID))
    made = scheduler(lm, Recorder())
    kept, clear = [], made._graphs.clear
    made._graphs.clear = lambda: (kept.extend(step for step, _, _ in made._graphs.recorded.values()), clear())
    answers(made, [request(ids, max_new_tokens=20) for ids in prompts(10, 50)])
    assert kept and not any(step.shape.windows for step in kept)
    answers(made, [request(ids, max_new_tokens=20) for ids in prompts(10, 53)])
    assert any(step.shape.windows == (70,) for step in kept)


def test_a_step_with_windows_reads_nothing(monkeypatch):
    lm = TextLM(text_model("Exaone4", sliding_window=70, layer_types=HYBRID))
    held = []

    class Forbids(Recorder):
        def record(self, step):
            def replay():
                with reading_forbidden(monkeypatch):
                    step()
                held.append(step.shape.windows)

            return replay

    monkeypatch.setattr(burst, "sample", lambda logits, *_: (logits.argmax(-1), logits.amax(-1).float()))
    monkeypatch.setattr(cache, "prefix_attention", lambda query, levels, scale: (query * scale, query[..., 0]))
    answers(scheduler(lm, Forbids(), plain_below=0), [request(ids, max_new_tokens=40) for ids in prompts(20, 60)])
    assert held.count((70,)) > 10
