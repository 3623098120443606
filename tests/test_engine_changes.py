"""Models that change, or fail, between two runs of a scheduler that has looked at them."""

import gc
import weakref

import pytest
import torch

from test_engine import drawn, prompts, request
from test_engine_recurrent import text_model
from vstar_fast.engine import Scheduler, Scorer, TextLM
from vstar_fast.engine.store import Arena
from vstar_fast.models.mixers import mixers_of


@pytest.mark.parametrize("kind", ["Llama", "Qwen3_5"])
def test_a_model_may_change_its_dtype_between_runs(kind):
    model = text_model(kind)
    lm = TextLM(model)
    scheduler, scorer = Scheduler(lm), Scorer(lm)
    asked = [request(prompts(20)[0], max_new_tokens=12)]
    drawn(scheduler, asked)
    scorer.score(asked, [[[7, 8]]])
    model.bfloat16()
    assert drawn(scheduler, asked) == drawn(Scheduler(TextLM(model)), asked)
    assert torch.equal(scorer.score(asked, [[[7, 8]]]), Scorer(TextLM(model)).score(asked, [[[7, 8]]]))


def test_states_of_another_dtype_take_other_room():
    model = text_model("Lfm2")
    before = mixers_of(model.get_decoder()).row_bytes
    assert mixers_of(model.bfloat16().get_decoder()).row_bytes == before // 2


def test_a_call_that_fails_holds_no_keys(monkeypatch):
    model = text_model("Llama")
    scheduler = Scheduler(TextLM(model))
    held = []
    take = Arena.__init__

    def noted(arena, *args):
        held.append(weakref.ref(arena))
        take(arena, *args)

    def fails(_):
        raise ZeroDivisionError

    monkeypatch.setattr(Arena, "__init__", noted)
    monkeypatch.setattr(model.get_decoder().layers[1].mlp, "forward", fails)
    with pytest.raises(ZeroDivisionError):
        drawn(scheduler, [request(prompts(20)[0])])
    gc.collect()
    assert held and not any(each() for each in held)
