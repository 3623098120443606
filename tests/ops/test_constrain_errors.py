"""constrain's operations on what they cannot do: no rows, tokens and logits that do not fit, bad arguments."""

import math

import pytest
import torch

from constrain_rows import grammars
from constrain_tools import allowed, small_vocab
from vstar_fast import ops
from vstar_fast.errors import BackendError, ConstrainError, ModelError

pytestmark = pytest.mark.usefixtures("poison")


def test_no_rows():
    state = ops.DecodeState(grammars()[0], 0, max_new_tokens=20)
    none = torch.zeros(0, dtype=torch.int64)
    assert state.mask_(torch.zeros(0, 330)).shape == (0, 330)
    assert state.fill_bitmask().shape == (0, 11)
    assert state.sample_(torch.zeros(0, 330), none)[0].shape == (0,)
    assert state.forced()[1].shape == (0,)
    state.advance_(none)
    state.reorder(none)
    assert state.done.shape == (0,)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_tokens_that_are_not_legal_are_named_and_lose_the_row(backend):
    for token in (5, -1, 10**12, 329):
        state = ops.DecodeState(grammars()[0], 3, backend=backend)
        good = next(t for t in allowed(state) if t != token)
        with pytest.raises(ConstrainError, match=f"row 1 took token {token}, which its grammar"):
            state.advance_(torch.tensor([good, token, good]))
        assert state.lost.tolist() == [False, True, False]
        assert allowed(state, 1) == list(state.grammars[1].vocab.eos_ids)
        state.advance_(torch.tensor([next(iter(allowed(state))), 7, allowed(state, 2)[0]]), strict=False)
        assert bool(state.lost[1]) and bool(state.done[1])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_logits_that_are_no_distribution(backend):
    state = ops.DecodeState(grammars()[0], 4, backend=backend)
    legal = allowed(state)
    logits = torch.zeros(4, 330)
    logits[1, legal[0]] = math.nan
    logits[2, legal] = -math.inf
    logits[3, legal[0]] = math.inf
    before = state.state.clone()
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="row 1, 2, 3 are NaN"):
            state.sample_(logits, torch.arange(4), temperature)
        assert torch.equal(state.state[1:], before[1:])
        state.reset()
    logits = torch.full((4, 330), math.nan)
    logits[:, legal] = -math.inf
    logits[:, legal[-1]] = -1e30
    assert state.sample_(logits, torch.arange(4))[0].tolist() == [legal[-1]] * 4


def test_rows_that_ended_stay_ended_and_a_spent_budget_allows_the_end_only():
    vocab = small_vocab("byte_level")
    state = ops.DecodeState(ops.compile(ops.choice(["a", "ab"]), vocab), 2, max_new_tokens=1)
    state.advance_(torch.tensor([t for t in allowed(state) if vocab.tokens[t] == b"a"] * 2))
    assert state.done.all() and state.complete.all() and allowed(state) == list(vocab.eos_ids)
    state.advance_(torch.tensor([0, vocab.eos_ids[0]]))
    assert state.done.all() and not state.lost.any()


def test_bad_arguments_are_named():
    state, grammar = ops.DecodeState(grammars()[0], 2), grammars()[0]
    other = ops.compile(ops.choice(["a"]), small_vocab("twins"))
    good, seeds = torch.zeros(2, 330), torch.zeros(2, dtype=torch.int64)
    bad = [
        (lambda: ops.DecodeState(grammar, 2, max_new_tokens=40.5), "whole number"),
        (lambda: state.mask_(good[0]), r"must be \[2, 330\]"),
        (lambda: state.mask_(good.double()), "float64"),
        (lambda: state.mask_(torch.zeros(3, 330)), r"\(3, 330\)"),
        (lambda: state.mask_(torch.zeros(2, 331)), "331 columns.*logits_size=331"),
        (lambda: state.mask_(torch.zeros(330, 2).t()), "column stride 2"),
        (lambda: state.mask_(torch.zeros(1, 330).expand(2, 330)), "rows of logits overlap"),
        (lambda: state.mask_(good.to("meta")), "logits are on meta, the decode state is on cpu"),
        (lambda: state.advance_(seeds.to("meta")), r"tokens must be a tensor of int64 .2. on cpu, not .* on meta"),
        (lambda: state.sample_(good, seeds.to("meta")), "not torch.int64 .* on meta"),
        (lambda: state.reorder(seeds.to("meta")), r"index must be .* on cpu, not .* on meta"),
        (lambda: state.advance_(torch.zeros(3, dtype=torch.int64)), r"int64 \[2\]"),
        (lambda: state.advance_(torch.zeros(2)), "float32"),
        (lambda: state.sample_(good, seeds.int()), "int32"),
        (lambda: state.sample_(good, seeds, -1.0), "temperature is -1.0"),
        (lambda: state.sample_(good, seeds, 1.0, 0.0), "top_p is 0.0"),
        (lambda: state.sample_(good, seeds, 1.0, 1.0, -2), "top_k is -2"),
        (lambda: state.fill_bitmask(torch.zeros(2, 10, dtype=torch.int32)), r"int32 \(2, 11\)"),
        (lambda: state.fill_bitmask(torch.zeros(11, 2, dtype=torch.int32).t()), "side by side"),
        (lambda: state.reorder(torch.tensor([0, 2])), "rows are 0 to 1"),
        (lambda: state.reorder(torch.tensor([0.0, 1.0])), "float32"),
        (lambda: state.forced(0), r"most=0"),
        (lambda: ops.DecodeState(grammar), "number of rows"),
        (lambda: ops.DecodeState([grammar], 2), "1 grammars are given for a batch of 2"),
        (lambda: ops.DecodeState([grammar, "a"]), "Grammar or None"),
        (lambda: ops.DecodeState([grammar, other]), "different vocabularies"),
        (lambda: ops.DecodeState([None, None]), "no row has a grammar"),
        (lambda: ops.DecodeState(grammar, 2, max_new_tokens=[9]), "1 values for 2 rows"),
        (lambda: ops.DecodeState(grammar, 2, max_new_tokens=[99, 1]), "max_new_tokens is 1 for row 1"),
    ]
    for call, message in bad:
        with pytest.raises(ConstrainError, match=message):
            call()
    with pytest.raises(BackendError, match="no backend 'triton'"):
        ops.DecodeState(grammar, 2, backend="triton")


def test_a_pattern_that_cannot_be_read():
    with pytest.raises(ConstrainError, match="cannot be read: .*; write {{ and }} for braces"):
        ops.template("Answer: {label", label=ops.choice(["red"]))
