"""constrain: masks equal brute force (and xgrammar), every answer can be given, none ever gets stuck."""

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_tools import Members, allowed, small_vocab, smollm2, spell, walk
from vstar_fast import ops
from vstar_fast.errors import ConstrainError

pytestmark = pytest.mark.usefixtures("poison")

KINDS = ["byte_level", "sentencepiece", "twins"]
LETTERS = st.text(alphabet="ab wks\u00e9\u8a9e\U0001f642", min_size=1, max_size=6)
FORMS = st.sampled_from(["s", "mm:ss", "m:ss", "hh:mm:ss"])
UNTIL = st.sampled_from([None, "b", "\u00e9b", ("ab", "b\u00e9")])
MODES = st.sampled_from(["any", "forced", "canonical"])
TAILS = st.sampled_from(["", ".", " s", "a"])
LABELS = st.lists(LETTERS, min_size=1, max_size=8)


def try_choice(names: list[str]):
    """A choice of these labels, without those that fold to the same."""
    seen: dict[str, str] = {}
    for name in names:
        seen.setdefault(re.sub("[ _-]+", " ", name.casefold()), name)
    return ops.choice(list(seen.values()))


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


def follow(grammar, ids: list[int]) -> None:
    """Every token of `ids` is legal in turn, and the end behind them."""
    state = ops.DecodeState(grammar, 1)
    for token in [*ids, grammar.vocab.eos_ids[0]]:
        assert token in allowed(state)
        state.advance_(torch.tensor([token]))
    assert bool(state.complete[0]) and bool(state.done[0])


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


def test_one_label_of_one_byte_and_a_hundred_thousand():
    vocab = small_vocab("byte_level")
    assert ops.compile(ops.choice(["a"]), vocab).sizes.states == 2
    names = [f"{i:05d}" for i in range(100_000)]
    grammar = ops.compile(ops.choice(names), vocab)
    assert grammar.sizes.states < 20
    follow(grammar, spell(vocab, b"98765", random.Random(0)))


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
    names = ops.compile(ops.choice(["<video>", EOS_NAME]), vocab)
    assert walk(ops.DecodeState(names, 1), vocab, random.Random(0), lambda *_: None) in (b"<video>", EOS_NAME.encode())


EOS_NAME = "</s>"


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


def test_values_of_answers():
    made = ops.template(
        "{why}\nAnswer: {label} at {when} for {n}{unit}; {spans}",
        why=ops.text(),
        label=ops.choice(["back flip"], aliases={"back flip": ["backflip"]}),
        when=ops.time(90, form="mm:ss"),
        n=ops.number(-1, 1, decimals=(0, 2)),
        unit=ops.optional(" s"),
        spans=ops.sequence(ops.interval(20, decimals=1), separator=" and "),
    )
    grammar = ops.compile(made, small_vocab("byte_level"))
    assert grammar.value("so {it} is\nAnswer: backflip at 01:15 for -0.25; 1.0 - 2.5 and 3.0 - 3.0") == {
        "why": "so {it} is", "label": "back flip", "when": 75, "n": -0.25, "unit": None,
        "spans": ((1.0, 2.5), (3.0, 3.0)),
    }  # fmt: skip
    with pytest.raises(ConstrainError, match="no complete answer"):
        grammar.value("so\nAnswer: backflip at 01:31 for 0; 1.0 - 2.5")


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_json_answers_parse(seed):
    import json

    vocab = small_vocab("twins")
    fields = {"label": ops.choice(['a "b"', "c\\"]), "n": ops.number(0, 3), "why": ops.text(most_chars=4)}
    fields |= {"at": ops.interval(9, separator="-"), "ok": ops.json({"t": ops.time(70, form="mm:ss")})}
    grammar = ops.compile(ops.json(fields), vocab)
    answer = walk(ops.DecodeState(grammar, 1), vocab, random.Random(seed), lambda *_: None).decode()
    value, plain = grammar.value(answer), json.loads(answer)
    assert set(value) == set(plain) and value["label"] == plain["label"] and value["why"] == plain["why"]


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


def test_bad_templates_are_named():
    vocab = small_vocab("byte_level")
    label = ops.choice(["a"])
    bad = [
        (lambda: ops.choice([]), "label set is empty"),
        (lambda: ops.choice("abc"), "not one string"),
        (lambda: ops.choice(["a", ""]), "label is empty"),
        (lambda: ops.choice(["a", 3]), "label 3 is a int"),
        (lambda: ops.choice(["Back_flip", "kick", "back  FLIP"]), "'Back_flip' and 'back  FLIP' are the same"),
        (lambda: ops.choice(["kick", "kick"]), "'kick' and 'kick' are the same"),
        (lambda: ops.choice(["a", "b"], aliases={"a": ["b"]}), "'b' is an alias of 'a', but stands for 'b'"),
        (lambda: ops.choice(["a"], aliases={"c": ["b"]}), "'c', which is no label"),
        (lambda: ops.choice(["\ud800"]), "not valid Unicode"),
        (lambda: ops.template("{x}"), "has {x}, but the slots are: none"),
        (lambda: ops.template("{x}{x}", x=label), "{x} twice"),
        (lambda: ops.template("a", x=label), "has no {x}"),
        (lambda: ops.template("{x}{y}", x=ops.text(), y=label), "followed by a slot"),
        (lambda: ops.number(5, 4), r"no number lies in \[5.0, 4.0\]"),
        (lambda: ops.number(float("nan"), 4), "low is nan"),
        (lambda: ops.number(0, 10**20, digits=17, decimals=3), "17 digits"),
        (lambda: ops.number(digits=0), "digits is 0"),
        (lambda: ops.number(decimals=12), "decimals is 12"),
        (lambda: ops.time(-1), "no time lies in"),
        (lambda: ops.time(5, form="ss"), "unknown time format 'ss'"),
        (lambda: ops.interval(3, least_s=4), "no interval of 4 s fits"),
        (lambda: ops.interval(3, separator=""), "separator is ''"),
        (lambda: ops.interval(10**6), "more than 50000"),
        (lambda: ops.sequence([]), "sequence is empty"),
        (lambda: ops.sequence(label, least=3, most=2), "least is 3"),
        (lambda: ops.text(most_chars=-1), "most_chars -1"),
        (lambda: ops.text(["a", ""]), "empty trigger"),
        (lambda: ops.json({}), "no fields"),
        (lambda: ops.compile("a", vocab), "takes a template"),
        (lambda: ops.compile(label, vocab, "some"), "unknown tokenization 'some'"),
        (lambda: ops.compile(ops.text(), vocab, "canonical"), "at most 200000 answers"),
        (lambda: ops.TokenVocab([None, b""], 0), "no token with bytes"),
        (lambda: ops.TokenVocab([b"a"], []), "no end-of-sequence"),
        (lambda: ops.TokenVocab([b"a"], 7), "id 7 is outside"),
        (lambda: ops.TokenVocab([b"a", b"b"], 1, logits_size=1), "logits_size is 1"),
        (lambda: ops.compile(label, ops.TokenVocab([b"a", b"b"], 1), "forced"), "cannot encode"),
    ]
    for call, message in bad:
        with pytest.raises(ConstrainError, match=message) as caught:
            call()
        assert isinstance(caught.value, ValueError)
