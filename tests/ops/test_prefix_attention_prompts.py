"""Prompts through flash-attention packages: right with each one's own signature, and only where it is right."""

import logging
import math
import re

import pytest
import torch
from vstar_fast.kernels.prefix_attention import Groups, flash_attn, prefix_attention
from vstar_fast.kernels.prefix_attention.reference import run as reference

from attention_tools import segment
from test_engine import prompts, request, text_model
from vstar_fast import backends
from vstar_fast.engine import Scheduler, TextLM, chunked_prefill
from vstar_fast.errors import BackendError

NAMES = tuple(flash_attn.FUNCTIONS)


def truth(q, k, v, softmax_scale, causal):
    """(output [B, T, H, D], log-sum-exp [B, H, T]) from the definition, in fp32."""
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.shape[1] == k.shape[1] or not causal  # packages differ in how they align them
    times = q.shape[2] // k.shape[2]
    k, v = (x.float().repeat_interleave(times, 2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q.float(), k) * softmax_scale
    if causal:
        scores = scores.masked_fill(~torch.ones(q.shape[1], q.shape[1]).tril().bool(), -math.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).to(q.dtype), scores.logsumexp(-1)


def four(change):
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False, return_lse=False):
        out, lse = change(*truth(q, k, v, softmax_scale, causal))
        return out, lse if return_lse else None

    return flash_attn_func


def three(change):
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
        return change(*truth(q, k, v, softmax_scale, causal))

    return flash_attn_func


def two(change):
    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, return_attn_probs=False):
        assert dropout_p == 0.0
        out, lse = change(*truth(q, k, v, softmax_scale, causal))
        return (out, lse, None) if return_attn_probs else out

    return flash_attn_func


SIGNATURES = dict(zip(NAMES, (four, three, two), strict=True))


def right(out, lse):
    return out, lse


@pytest.fixture
def installed(monkeypatch):
    """`installed(name=change)`: these packages are there, right but for a change; `used` tells which were imported."""

    def install(**given):
        named = {name.replace("_", "-"): change for name, change in given.items()}
        own, absent = backends.available, backends.Probe(False, "the Python module is not installed", "install it")
        there = {name: backends.Probe(True, name) if name in named else absent for name in NAMES}
        monkeypatch.setattr(backends, "available", lambda name: there.get(name) or own(name))
        order = backends.ORDER["prefill"]
        monkeypatch.setitem(backends.ORDER, "prefill", {**order, "cpu": (*NAMES, *order["cpu"])})
        install.used = []
        for name, change in named.items():

            def load(name=name, change=change):
                install.used.append(name)
                return SIGNATURES[name](change)

            monkeypatch.setitem(flash_attn.FUNCTIONS, name, load)
        forget()
        backends.reset_report()
        return install

    yield install
    forget()


def forget():
    for cached in (flash_attn._best, flash_attn._part, flash_attn.differs):
        cached.cache_clear()


def behind_a_video(dtype=torch.bfloat16, heads=4):
    """Three prompts of up to 150 tokens, two of them in one arena, behind heads and videos of several lengths."""
    made = torch.Generator().manual_seed(0)
    tokens = torch.arange(450).view(3, 150)
    tokens[0, 90:] = tokens[2, 149:] = -1
    video = Groups(tokens[:2], torch.tensor([2, 0]), torch.tensor([[70], [33]]))
    own = [Groups(tokens[:2], torch.tensor([1, 3]), causal=True), Groups(tokens[2:], causal=True)]
    levels = [
        [segment(video, 70, slots=3, width=16, dtype=dtype)],
        [segment(own[0], 150, slots=4, width=16, dtype=dtype, seed=1), segment(own[1], 150, width=16, dtype=dtype)],
    ]
    return torch.randn(450, heads, 16, generator=made).to(dtype), levels


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [2, 14])
def test_values_are_the_references_and_what_ran_is_reported(name, dtype, heads, installed):
    packages = installed(**{name.replace("-", "_"): right})
    query, levels = behind_a_video(dtype, heads)
    out, lse = prefix_attention(query, levels)
    want, want_lse = reference(query, levels, 16**-0.5)
    torch.testing.assert_close(out.float(), want.float(), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse, want_lse, atol=1e-2, rtol=1e-2)
    assert backends.report()["prefix_attention"] == {"flash": 1, name: 1}  # the videos by torch's, on a CPU
    assert packages.used == [name]


def test_each_is_asked_by_name_too(installed):
    installed(flash_attn_3=right)
    query, levels = behind_a_video()
    by_name = prefix_attention(query, levels, backend="flash-attn-3")
    for ours, theirs in zip(by_name, prefix_attention(query, levels), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(BackendError, match="flash-attn-4.*is not installed. Remedy: install it"):
        prefix_attention(query, levels, backend="flash-attn-4")


def broken(_out, _lse):
    raise RuntimeError("no kernel image is available")


WRONG = {
    "its values are not the reference's at head width 16": lambda out, lse: (out * 1.1, lse),
    "its log-sum-exps are not the reference's at head width 16": lambda out, lse: (out, lse / math.log(2)),
    r"it fails at head width 16 \(RuntimeError: no kernel image": broken,
    r"it fails at head width 16 \(AttributeError": lambda out, _lse: (out, None),
}


@pytest.mark.parametrize("why", WRONG)
def test_one_that_is_wrong_here_is_named_and_not_used(why, installed, caplog):
    installed(flash_attn_4=WRONG[why], flash_attn_2=right)
    query, levels = behind_a_video()
    with caplog.at_level(logging.WARNING):
        prefix_attention(query, levels)
        prefix_attention(query, levels)
    assert backends.report()["prefix_attention"] == {"flash": 2, "flash-attn-2": 2}
    (record,) = caplog.records
    assert record.getMessage().startswith("flash-attn-4 is not used for prompts: ")
    assert re.search(why, record.getMessage())


def test_where_all_are_wrong_the_usual_one_runs(installed):
    installed(flash_attn_4=broken, flash_attn_3=broken)
    prefix_attention(*behind_a_video())
    assert backends.report()["prefix_attention"] == {"flash": 1}


@pytest.mark.parametrize("case", ["few tokens", "fp32", "decode", "a mask"])
def test_what_is_no_prompt_never_loads_a_package(case, installed):
    packages = installed(flash_attn_4=right)
    tokens, dtype = torch.arange(200)[None], torch.bfloat16
    if case == "few tokens":
        tokens = tokens[:, : flash_attn.LEAST - 1]
    elif case == "fp32":
        dtype = torch.float32
    groups = Groups(tokens, causal=case in ("few tokens", "fp32"))
    if case == "a mask":
        groups = Groups(tokens, visible=torch.ones(200, 200).tril().bool()[None])
    keys = segment(groups, tokens.shape[1], width=16, dtype=dtype)
    prefix_attention(torch.randn(tokens.shape[1], 4, 16).to(dtype), [[keys]])
    assert packages.used == [] and not set(NAMES) & set(backends.report()["prefix_attention"])


def test_the_engine_prefills_with_it_and_decodes_without(installed):
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}
    lm = TextLM(text_model(**sizes).bfloat16())
    asked = [request(ids, max_new_tokens=4) for ids in prompts(200, 290)]

    def hidden():
        made = Scheduler(lm)
        with torch.inference_mode():
            return torch.stack([prefix.hidden for prefix in made._prompts.put(asked)]).float()

    want = hidden()
    installed(flash_attn_3=right)
    found = hidden()
    assert backends.report()["prefix_attention"] == {"flash-attn-3": 2}  # layers
    torch.testing.assert_close(found, want, atol=0.1, rtol=0.1)
    backends.reset_report()
    assert len(list(Scheduler(lm).run(asked))) == 2
    assert backends.report()["prefix_attention"] == {"flash-attn-3": 2, "flash": 6}  # three steps of two layers


def test_pieces_of_a_long_prompt_go_there_whole(installed, monkeypatch):
    """What a piece sees of those before it is a level without a mask, seen by many rows."""
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}
    lm = TextLM(text_model(**sizes).bfloat16())
    asked = [request(ids, max_new_tokens=4) for ids in prompts(400)]

    def hidden():
        with torch.inference_mode():
            return Scheduler(lm)._prompts.put(asked)[0].hidden.float()

    want = hidden()
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", 200)
    installed(flash_attn_4=right)
    torch.testing.assert_close(hidden(), want, atol=0.1, rtol=0.1)
    assert backends.report()["prefix_attention"] == {"flash-attn-4": 4}  # two layers of two pieces, nothing else


def test_the_doctor_names_what_prompts_run(installed):
    installed(flash_attn_2=right)
    row = next(row for row in backends.doctor() if row.name == "prefill")
    assert (row.kind, row.backend) == ("stage", "flash-attn-2")
