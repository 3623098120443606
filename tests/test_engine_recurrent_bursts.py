"""Bursts of recorded steps where layers keep a state: answers of single steps, states at one address."""

import pytest

import test_engine_graphs
from test_engine import prompts, request
from test_engine_graphs import Recorder, answers, scheduler
from test_engine_recurrent import KINDS, states_alive, text_model
from vstar_fast.engine import TextLM, burst_states
from vstar_fast.models.mixers import mixers_of

fresh_groups = test_engine_graphs.fresh_groups


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "Qwen3Next"])
def lm(request):
    return TextLM(text_model(request.param))


@pytest.mark.parametrize("max_rows", [64, 5])
def test_answers_are_those_of_single_steps(lm, max_rows):
    """Rows that end within a burst and others that come, of several lengths; buffers grow."""
    kinds = [{"temperature": 1.0, "top_p": 0.9}, {}, {"temperature": 1.3, "top_k": 7}]
    asked = [request(ids, **kinds[n % 3], max_new_tokens=6 + 9 * n) for n, ids in enumerate(prompts(3, 64, 130, 20, 9))]
    want = answers(scheduler(lm, max_rows=max_rows), asked)
    recorder = Recorder()
    made = scheduler(lm, recorder, max_rows=max_rows)
    assert answers(made, asked) == want
    assert recorder.recordings and recorder.replays and made._graphs.states is None and not states_alive()


def test_recordings_share_buffers_and_rows_that_stay_are_loaded_once(lm, monkeypatch):
    recorder = Recorder()
    made = scheduler(lm, recorder)
    seen, written = [], []
    burst, write = made._graphs._burst, burst_states._write

    def noted(rows):
        burst(rows)
        (buffers,) = {id(row.state.states): row.state.states for row in rows}.values()
        first = next(iter(buffers.layers.values()))[0]
        seen.append((first.data_ptr(), [row.state.row for row in rows]))

    monkeypatch.setattr(made._graphs, "_burst", noted)
    monkeypatch.setattr(burst_states, "_write", lambda *both: (written.append(1), write(*both)))
    made._batch.eos = frozenset()
    (ids,) = prompts(9)
    found = answers(made, [request(ids, temperature=1.0, max_new_tokens=60)])
    assert [len(tokens) for tokens, *_ in found[0]] == [60] * 3
    assert len(seen) == 4 and len({address for address, _ in seen}) == 1 and all(at == [0, 1, 2] for _, at in seen)
    assert len(written) == len(lm_layers(lm)) * (1 + recorder.recordings)


def lm_layers(lm):
    return [mixer.layer for mixer in mixers_of(lm.text_model)]
