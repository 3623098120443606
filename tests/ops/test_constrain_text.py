"""constrain: free text up to a trigger, by characters, and within a budget."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_tools import KINDS, LABELS, Members, allowed, small_vocab, try_choice, walk
from vstar_fast import ops

pytestmark = pytest.mark.usefixtures("poison")


def text_legal(vocab, trigger: bytes, members: Members, prefix: bytes) -> list[int]:
    """Brute force for "free text up to the trigger, then a member"."""

    def begins(text: bytes) -> bool:
        at = text.find(trigger)
        if at >= 0:
            return utf8(text[:at], whole=True) and text[at + len(trigger) :] in members.begun
        return utf8(text, whole=False)

    at = prefix.find(trigger)
    ended = at >= 0 and prefix[at + len(trigger) :] in members.whole
    tokens = [i for i, token in enumerate(vocab.tokens) if token and begins(prefix + token)]
    return sorted(tokens + (list(vocab.eos_ids) if ended else []))


def utf8(text: bytes, *, whole: bool) -> bool:
    """Whether bytes are UTF-8, or (not whole) the beginning of some."""
    import codecs

    try:
        codecs.getincrementaldecoder("utf-8")().decode(text, final=whole)
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(trigger=st.text(alphabet="ab\u00e9 ", min_size=1, max_size=4), names=LABELS, seed=st.integers(0, 99))
def test_free_text_up_to_a_trigger(kind, trigger, names, seed):
    """Triggers inside tokens, overlapping themselves, and straddling the slot behind them."""
    vocab, rng = small_vocab(kind), random.Random(seed)
    made = ops.template("{why}" + trigger + "{x}", why=ops.text(), x=try_choice(names))
    grammar = ops.compile(made, vocab)
    members = Members(try_choice(names).members(100))
    state, prefix = ops.DecodeState(grammar, 1), b""
    for _ in range(30):
        legal = allowed(state)
        assert legal == text_legal(vocab, trigger.encode(), members, prefix)
        likely = [t for t in legal if set(vocab.tokens[t]) <= set((trigger + names[0]).encode())]
        token = rng.choice(likely or legal)
        if token in vocab.eos_ids:
            assert grammar.value(prefix.decode())["why"] == prefix.decode().split(trigger)[0]
            break
        prefix += vocab.tokens[token]
        state.advance_(torch.tensor([token]))


@settings(max_examples=15)
@given(
    most=st.integers(0, 5), least=st.integers(0, 3), until=st.sampled_from([None, "b", "\u00e9b", ("ab", "b\u00e9")])
)
def test_text_of_a_number_of_characters(most, least, until):
    vocab, rng = small_vocab("twins"), random.Random(most)
    made = ops.text(until, least_chars=min(least, most), most_chars=most)
    grammar = ops.compile(made, vocab)
    for _ in range(4):
        text = walk(ops.DecodeState(grammar, 1), vocab, rng, lambda *_: None, most=40).decode()
        assert min(least, most) <= len(grammar.value(text)) <= most


def test_free_text_is_flat_and_ends_within_its_budget():
    vocab = small_vocab("byte_level")
    made = ops.template("{why}\nAnswer: {x}", why=ops.text(), x=ops.choice(["kick", "spin kick"]))
    grammar = ops.compile(made, vocab)
    assert grammar.sizes.dense_states >= 1
    state, rng, ids = ops.DecodeState(grammar, 1, max_new_tokens=2000), random.Random(1), []
    while not state.done[0]:
        wanted = [t for t in allowed(state) if t not in vocab.eos_ids]
        free = [t for t in wanted if vocab.tokens[t].isalpha() and len(ids) < 3000]
        ids.append(rng.choice(free or wanted or allowed(state)))
        state.advance_(torch.tensor(ids[-1:]))
    assert len(ids) >= 1990 and grammar.value(ids)["x"] in ("kick", "spin kick")
