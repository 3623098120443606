"""constrain: values read out of answers, and templates that are refused."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_tools import small_vocab, walk
from vstar_fast import ops
from vstar_fast.errors import ConstrainError

pytestmark = pytest.mark.usefixtures("poison")


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
