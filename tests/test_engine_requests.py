"""What a request may not hold is named when it is made, or before anything of it is run."""

import math

import numpy as np
import pytest
import torch

import tiny
from test_engine import text_model
from vstar_fast import models
from vstar_fast.engine import Request, Scheduler, Settings, TextLM
from vstar_fast.errors import ConfigError, DataError

IDS = torch.tensor([3, 4])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": math.nan}, "temperature is nan; use 0 for greedy"),
        ({"temperature": math.inf}, "temperature is inf; use 0 for greedy"),
        ({"temperature": "1"}, "temperature is '1'; give a number"),
        ({"top_p": math.nan}, "top_p is nan; it must be"),
        ({"top_k": math.nan}, "top_k is nan; give a whole number"),
        ({"top_k": 0.5}, "top_k is 0.5; give a whole number"),
        ({"max_new_tokens": math.nan}, "max_new_tokens is nan; give a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens is None; give a whole number"),
        ({"top_k": True}, "top_k is True; give a whole number"),
    ],
)
def test_settings_that_no_draw_takes_are_named(values, said):
    with pytest.raises(ConfigError, match=said):
        Settings(**values)


@pytest.mark.parametrize(
    ("seeds", "odd"),
    [
        ([1, 1 << 63], "9223372036854775808"),
        ([-(1 << 63) - 1], "-9223372036854775809"),
        (range((1 << 63) - 1, (1 << 63) + 3), "9223372036854775810"),
        ([0.5], "0.5"),
        ([None], "None"),
    ],
)
def test_seeds_that_do_not_fit_are_named(seeds, odd):
    with pytest.raises(ConfigError, match=rf"seed {odd} is no int64; use a whole number from -2\*\*63 to 2\*\*63 - 1"):
        Request(IDS[:0], IDS, None, seeds)


@pytest.mark.parametrize("seeds", [5, None, iter([1, 2])])
def test_seeds_that_are_no_list_are_named(seeds):
    with pytest.raises(ConfigError, match="seeds are .*; give a list with one for each answer"):
        Request(IDS[:0], IDS, None, seeds)


@pytest.mark.parametrize("settings", [None, {"temperature": 1.0}, [Settings(), 0.5]])
def test_settings_that_are_none_are_named(settings):
    with pytest.raises(ConfigError, match="settings are .*; give Settings"):
        Request(IDS[:0], IDS, None, [1, 2], settings)


def test_a_question_of_no_token_is_named():
    for head in (IDS, IDS[:0]):
        with pytest.raises(DataError, match="tail has no token and there is no video"):
            Request(head, IDS[:0], None, [1])


def test_numbers_of_any_kind_are_taken():
    Settings(np.float32(0.5), np.float64(0.9), np.int64(3), np.int32(4))
    for seeds in ([np.int64(5), -(1 << 63), (1 << 63) - 1], range(0), range(5), ()):
        assert Request(IDS, IDS, None, seeds).seeds is seeds


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.tensor([3, -100, -1]), "has id -100 at place 1; token ids count from 0, so leave out the padding"),
        (torch.tensor([[3, 4]]), r"is int64 \[1, 2\]; the ids of a prompt are a torch tensor, int64 \[n\]"),
        (torch.tensor([3.0]), r"is float32 \[1\]; the ids"),
        (torch.tensor([3], dtype=torch.int32), r"is int32 \[1\]; the ids"),
        ([3, 4], "is list; the ids"),
        (np.array([3, 4]), r"is ndarray \[2\]; the ids of a prompt are a torch tensor"),
    ],
)
def test_ids_that_no_prompt_has_are_named(ids, said):
    for name, parts in (("head", (ids, IDS)), ("tail", (IDS, ids))):
        with pytest.raises(DataError, match=f"{name} {said}"):
            Request(*parts, None, [1])


def test_ids_beyond_the_vocabulary_are_named_and_the_scheduler_goes_on(tmp_path):
    lm = models.load(str(tiny.write_model(tmp_path / "model")), device="cpu")
    scheduler, size = Scheduler(lm), len(lm.model.get_input_embeddings().weight)
    said = f"token {size} is not in the vocabulary of {lm.path}, which has {size}; are these the ids of another"
    with pytest.raises(DataError, match=said):
        list(scheduler.run([Request(IDS[:0], torch.tensor([3, size]), None, [1])]))
    with pytest.raises(DataError, match=said):
        lm.embed_tokens(torch.tensor([[size]]))
    ((_, answers),) = scheduler.run([Request(IDS[:0], IDS, None, [1])])
    assert answers[0].token_ids


def test_ids_beyond_a_text_models_vocabulary_are_named():
    lm = TextLM(text_model())
    for asked in (Request(IDS, torch.tensor([3, 97]), None, [1]), Request(torch.tensor([97]), IDS, None, [1])):
        with pytest.raises(DataError, match="token 97 is not in the vocabulary of LlamaForCausalLM, which has 97"):
            list(Scheduler(lm).run([asked]))
    assert len(list(Scheduler(lm).run([Request(IDS, IDS, None, [1])]))) == 1
