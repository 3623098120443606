"""What hangs on a length: kernels for one token, rotary embeddings that change with the length of a row."""

import pytest
import torch

import test_engine_recurrent
from test_engine import drawn, prompts, request, text_model, theirs
from test_engine_chunked_prefill import prompt
from vstar_fast.engine import Request, Scheduler, Scorer, Settings, TextLM, chunked_prefill, ways
from vstar_fast.errors import ModelError

SHORT = {"rope_theta": 1e4, "factor": 4.0}
LONG = SHORT | {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 64}


def lm_of(kind, **rope):
    return TextLM(text_model(rope_parameters={"rope_type": kind, **rope}, max_position_embeddings=64))


def test_longrope_goes_the_plain_way():
    lm = lm_of("longrope", **LONG)
    choice = ways.choose(lm)
    assert choice.name == "plain" and "by the length of a row" in choice.reason
    asked = prompts(20, 90)
    found = drawn(ways.WAYS["plain"](lm), [request(ids, max_new_tokens=12) for ids in asked])
    assert [each[0] for each in found] == [theirs(lm.model, ids, 12) for ids in asked]


def test_dynamic_rope_is_packed_up_to_the_length_where_it_changes():
    lm = lm_of("dynamic", **SHORT)
    short, long = prompts(20, 60)
    want = theirs(lm.model, short, 12)
    assert drawn(Scheduler(lm), [request(short, max_new_tokens=12)])[0][0] == want
    asked = [request(ids, max_new_tokens=12) for ids in (short, long)]
    with pytest.raises(ModelError, match=r"may take 72 tokens; beyond 64 .*use generate\.engine = plain"):
        list(Scheduler(lm).run(asked))
    with pytest.raises(ModelError, match="beyond 64"):
        Scorer(lm).score([asked[1]], [[[5] * 9]])
    found = drawn(ways.WAYS["plain"](lm), asked)
    assert [each[0] for each in found] == [want, theirs(lm.model, long, 12)]


@torch.no_grad()
@pytest.mark.parametrize("tail", [2, 3, 4])
def test_a_short_tail_is_read_as_the_model_reads_it(tail):
    """Nemotron-H's kernel for one token does not clamp its time steps, that for several does."""
    lm = TextLM(test_engine_recurrent.text_model("NemotronH", time_step_min=0.05))
    (ids,) = prompts(20 + tail)
    asked = Request(ids[:20], ids[20:], None, [1], Settings(max_new_tokens=1))
    ((_, (answer,)),) = Scheduler(lm).run([asked])
    want = lm.model(ids[None]).logits[0, -1].log_softmax(-1).max()
    assert answer.logprob == pytest.approx(want.item(), abs=1e-5)


def test_the_last_piece_of_a_prompt_is_no_single_token():
    sizes = [p.inputs_embeds.shape[1] for p in chunked_prefill.pieces(prompt(9), 4)]
    assert sizes == [4, 3, 2]
