"""constrain: masks equal brute force (and xgrammar), every answer can be given, none ever gets stuck."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_tools import KINDS, LABELS, Members, allowed, follow, small_vocab, smollm2, spell, try_choice, walk
from vstar_fast import ops
from vstar_fast.errors import ConstrainError

pytestmark = pytest.mark.usefixtures("poison")

FORMS = st.sampled_from(["s", "mm:ss", "m:ss", "hh:mm:ss"])
MODES = st.sampled_from(["any", "forced", "canonical"])
SLOTS = st.one_of(
    LABELS.map(try_choice),
    st.builds(lambda a, b: ops.number(min(a, b), max(a, b)), st.integers(-300, 300), st.integers(-300, 300)),
    st.builds(lambda a: ops.number(-1, a, decimals=(0, 1)), st.integers(0, 12)),
    st.builds(lambda h, f: ops.time(h, form=f), st.integers(0, 150), FORMS),
    st.builds(lambda h, w: ops.interval(h, least_s=min(w, h), separator=" to "), st.integers(0, 14), st.integers(0, 5)),
    st.builds(lambda h: ops.interval(h / 10, decimals=1, form="m:ss"), st.integers(0, 30)),
    st.builds(lambda n: ops.sequence(try_choice(n[:2]), most=2, separator=", "), LABELS),
    st.builds(lambda n: ops.optional(try_choice(n[:3])), LABELS),
    st.builds(lambda n: ops.repeat(try_choice(n[:2]), 1, 3), LABELS),
    st.builds(lambda n: ops.json({"a b": try_choice(n[:3]), "n": ops.number(0, 9)}), LABELS),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    head=st.text(alphabet="ab :", max_size=3),
    slot=SLOTS,
    tail=st.sampled_from(["", ".", " s", "a"]),
    seed=st.integers(0, 9),
)
def test_masks_equal_brute_force(kind, head, slot, tail, seed):
    vocab, rng = small_vocab(kind), random.Random(seed)
    made = ops.template("{head}{slot}{tail}", head=head, slot=slot, tail=tail)
    members = Members(made.members(100_000))
    grammar = ops.compile(made, vocab)

    def check(prefix: bytes, legal: list[int]) -> None:
        assert legal == members.legal(vocab, prefix)

    for _ in range(3):
        answer = walk(ops.DecodeState(grammar, 1), vocab, rng, check)
        assert answer in members.whole
        grammar.value(answer.decode())


@pytest.mark.parametrize("mode", ["any", "forced", "canonical"])
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@settings(max_examples=20)
@given(names=LABELS, seed=st.integers(0, 9))
def test_every_member_is_reached_in_every_mode_and_nothing_else_ends(kind, mode, names, seed):
    vocab, rng = small_vocab(kind), random.Random(seed)
    made = ops.template("Answer: {x}", x=try_choice(names))
    grammar = ops.compile(made, vocab, mode)
    members = made.members(1000)
    canonical = vocab.encode([member.encode() for member in members])
    for member, ids in zip(members, canonical, strict=True):
        follow(grammar, ids)
        assert grammar.value(ids) == {"x": member.removeprefix("Answer: ")}
        if mode == "any":
            follow(grammar, spell(vocab, member.encode(), rng))
    whole = {member.encode() for member in members}
    assert walk(ops.DecodeState(grammar, 1), vocab, rng, lambda *_: None) in whole
    if mode == "canonical":
        assert count_paths(grammar) == len(members)


def count_paths(grammar) -> int:
    """Token sequences that a grammar accepts (without loops)."""
    from vstar_fast.kernels.constrain.reference import Tables

    tables, known = Tables(grammar.block), {}

    def count(state: int) -> int:
        if state not in known:
            nexts = tables.edges(state).values()
            known[state] = any(n < 0 for n in nexts) + sum(count(n) for n in nexts if n >= 0)
        return known[state]

    return count(grammar.start)


@settings(max_examples=25)
@given(
    names=LABELS, extra=st.integers(0, 6), seed=st.integers(0, 99), mode=st.sampled_from(["any", "forced", "canonical"])
)
def test_a_budget_never_cuts_an_answer(names, extra, seed, mode):
    vocab, rng = small_vocab("byte_level"), random.Random(seed)
    made = ops.template("A: {x}", x=ops.sequence(try_choice(names), most=2))
    grammar = ops.compile(made, vocab, mode)
    members = Members(made.members(100_000))
    budget = grammar.shortest + extra
    state, prefix = ops.DecodeState(grammar, 1, max_new_tokens=budget), b""
    for _ in range(budget):
        token = rng.choice(allowed(state))
        state.advance_(torch.tensor([token]))
        prefix += vocab.decode([token])
        if state.done[0]:
            break
    assert prefix in members.whole and bool(state.complete[0])
    with pytest.raises(ConstrainError, match=f"max_new_tokens is {grammar.shortest - 1} .* {grammar.shortest} tokens"):
        ops.DecodeState(grammar, 1, max_new_tokens=grammar.shortest - 1)


@pytest.mark.parametrize("names", [["snow", "snowboard"], ["snowboard", "snow"], ["a", "ab", "abc", "b"]])
@pytest.mark.parametrize("mode", ["any", "forced", "canonical"])
def test_labels_that_begin_other_labels_are_all_reached(names, mode):
    """outlines-core 0.2.14 never accepts "snowboard" behind "snow"."""
    vocab = small_vocab("byte_level")
    grammar = ops.compile(ops.template("Answer: {x}", x=ops.choice(names)), vocab, mode)
    for name, ids in zip(names, vocab.encode([f"Answer: {name}".encode() for name in names]), strict=True):
        follow(grammar, ids)
        assert grammar.value(ids) == {"x": name}


def test_more_than_ten_thousand_labels():
    """llguidance 1.9.1 gives wrong masks from 2,000 alternatives on."""
    vocab = small_vocab("byte_level")
    names = [f"label {i * 7919 % 1_000_003} of {i}" for i in range(12_000)]
    made = ops.template("Answer: {x}", x=ops.choice(names))
    grammar = ops.compile(made, vocab)
    members, rng = Members(made.members(20_000)), random.Random(0)

    def check(prefix: bytes, legal: list[int]) -> None:
        assert legal == members.legal(vocab, prefix)

    for _ in range(10):
        assert walk(ops.DecodeState(grammar, 1), vocab, rng, check) in members.whole
    for name in rng.sample(names, 50):
        follow(grammar, spell(vocab, f"Answer: {name}".encode(), rng))


def test_a_loop_over_many_labels_ends():
    """A loop's states come all at once; over 1,024 of them the table of the minimiser never had room."""
    vocab, rng = small_vocab("byte_level"), random.Random(0)
    names = ["".join(rng.choices("abcdefghij", k=12)) for _ in range(300)]
    grammar = ops.compile(ops.repeat(ops.choice(names), 1), vocab)
    assert grammar.sizes.states > 1024
    follow(grammar, spell(vocab, "".join(names[5:8]).encode(), rng))


def test_many_loops_do_not_fill_the_memory():
    """The minimiser's table grows with the states, not with the loops."""
    vocab = small_vocab("byte_level")
    names = [f"p{i}" for i in range(40)]
    made = ops.template("".join(f"{{{name}}};" for name in names), **{name: ops.repeat("ab", 1) for name in names})
    follow(ops.compile(made, vocab), spell(vocab, b"ab;" * 39 + b"abab;", random.Random(0)))


def test_one_label_of_one_byte_and_a_hundred_thousand():
    vocab = small_vocab("byte_level")
    assert ops.compile(ops.choice(["a"]), vocab).sizes.states == 2
    names = [f"{i:05d}" for i in range(100_000)]
    grammar = ops.compile(ops.choice(names), vocab)
    assert grammar.sizes.states < 20
    follow(grammar, spell(vocab, b"98765", random.Random(0)))


def test_canonical_behind_free_text():
    vocab = small_vocab("byte_level")
    made = ops.template("{why}\nAnswer:{x}", why=ops.text(), x=ops.choice([" walk the dog", " back flip"]))
    grammar = ops.compile(made, vocab, "canonical")
    state = ops.DecodeState(grammar, 1)
    for token in spell(vocab, b"the reasoning\nAnswer:", random.Random(0)):
        state.advance_(torch.tensor([token]))
    canonical = vocab.encode([b" walk the dog", b" back flip"])
    assert allowed(state) == sorted({ids[0] for ids in canonical})


def test_forced_mode_takes_the_tokenizers_tokens_where_there_is_one_way():
    _, vocab = smollm2()
    names = ["back flip", "side flip", "spinning back kick"]
    grammar = ops.compile(ops.template("Answer: {x}", x=ops.choice(names)), vocab, "forced")
    (ids,) = vocab.encode([b"Answer: spinning back kick"])
    state, taken = ops.DecodeState(grammar, 1), []
    while not state.done[0]:
        tokens, lengths = state.forced()
        taken += tokens[0, : int(lengths[0])].tolist()
        if state.done[0] or taken[: len(ids)] == ids:
            break
        legal = allowed(state)
        assert len(legal) > 1
        taken.append(ids[len(taken)])
        state.advance_(torch.tensor(taken[-1:]))
    assert taken == ids


SMOL_TEMPLATES = {
    "choice": (ops.choice, 'root ::= "Answer: " label\nlabel ::= {labels}'),
    "text": (None, 'root ::= line "\\n" "Answer: " label\nline ::= [^\\n]*\nlabel ::= {labels}'),
}


@pytest.mark.parametrize("shape", ["choice", "text"])
def test_masks_equal_xgrammar(shape):
    xgr = pytest.importorskip("xgrammar")
    _, vocab = smollm2()
    names = ["snow", "snowboard", "back flip", "backflip on snow", "na\u00efve kick", "1 2 3", "kick", "kicking a ball"]
    labels = " | ".join(f'"{name}"' for name in names)
    slots = {"x": ops.choice(names)}
    pattern = "Answer: {x}"
    if shape == "text":
        pattern, slots = "{why}Answer: {x}", slots | {"why": ops.text("\n")}
    info = xgr.TokenizerInfo(
        list(vocab.tokens),
        vocab_type=xgr.VocabType.RAW,
        vocab_size=vocab.logits_size,
        stop_token_ids=list(vocab.eos_ids),
    )
    compiled = xgr.GrammarCompiler(info, max_threads=1).compile_grammar(SMOL_TEMPLATES[shape][1].format(labels=labels))
    grammar = ops.compile(ops.template(pattern, **slots), vocab)
    rng = random.Random(0)
    for _ in range(12):
        matcher = xgr.GrammarMatcher(compiled)
        state = ops.DecodeState(grammar, 1)
        for step in range(40):
            theirs = xgr.allocate_token_bitmask(1, vocab.logits_size)
            matcher.fill_next_token_bitmask(theirs)
            legal = allowed(state)
            assert legal == bits_of(theirs[0])
            short = [t for t in legal if b"\n" in vocab.tokens[t]] if shape == "text" and step > 4 else []
            token = rng.choice(short or legal)
            assert matcher.accept_token(token)
            state.advance_(torch.tensor([token]))
            if matcher.is_terminated():
                assert bool(state.done[0])
                break


def bits_of(words: torch.Tensor) -> list[int]:
    return [32 * w + b for w, word in enumerate(words.tolist()) for b in range(32) if word >> b & 1]
