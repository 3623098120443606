"""constrain over odd vocabularies: equal bytes, several ends, padding, parts of characters, bytes that are missing."""

import random

import pytest
import torch

from constrain_tools import EOS, Members, allowed, small_vocab, walk
from vstar_fast import ops
from vstar_fast.errors import ConstrainError

pytestmark = pytest.mark.usefixtures("poison")


def test_tokens_with_equal_bytes_ends_and_padding():
    vocab = small_vocab("twins")
    state = ops.DecodeState(ops.compile(ops.choice(["snow"]), vocab), 1)
    assert {256, 258} <= set(allowed(state)) and max(allowed(state)) < len(vocab.tokens)
    state.advance_(torch.tensor([259]))
    assert allowed(state) == [262, 263]
    state.advance_(torch.tensor([263]))
    assert allowed(state) == [262, 263] and bool(state.done[0])


def test_tokens_may_end_inside_a_character():
    vocab = small_vocab("twins")
    state = ops.DecodeState(ops.compile(ops.choice(["\u00e9", "e\u0300"]), vocab), 1)
    assert {0xC3, ord("e"), 260, 261} == set(allowed(state))
    state.advance_(torch.tensor([261]))
    assert allowed(state) == [0x80]


def test_specials_never_stand_for_their_names():
    vocab = small_vocab("byte_level")
    assert vocab.tokens[0] == vocab.tokens[1] == vocab.tokens[2] == b""
    state = ops.DecodeState(ops.compile(ops.text(), vocab), 1)
    legal = allowed(state)
    assert not {0, 2} & set(legal) and set(vocab.eos_ids) <= set(legal)
    names = ops.compile(ops.choice(["<video>", EOS]), vocab)
    assert walk(ops.DecodeState(names, 1), vocab, random.Random(0), lambda *_: None) in (b"<video>", EOS.encode())


def test_vocabularies_without_some_bytes():
    vocab = small_vocab("words")
    grammar = ops.compile(ops.template("Answer: {x}", x=ops.choice(["walk", "snowboard", "ab"])), vocab)
    members = Members(["Answer: walk", "Answer: snowboard", "Answer: ab"])
    rng = random.Random(0)
    for _ in range(20):
        prefixes: list[bytes] = []
        answer = walk(ops.DecodeState(grammar, 1), vocab, rng, lambda p, _, seen=prefixes: seen.append(p))
        assert answer in members.whole
    with pytest.raises(ConstrainError, match="spells the label 'walking'"):
        ops.compile(ops.template("Answer: {x}", x=ops.choice(["walk", "walking"])), vocab)
    with pytest.raises(ConstrainError, match="no token sequence spells an answer"):
        ops.compile(ops.template("Reply {x}", x=ops.number(0, 3)), vocab)
