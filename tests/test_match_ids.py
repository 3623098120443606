"""Verdicts on token ids are those on the text the ids stand for."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vstar_fast.kernels.label_match import TokenBytes

from vstar_fast import match
from vstar_fast.config import MatchConfig, RationalizeConfig
from vstar_fast.errors import DataError
from vstar_fast.records import Candidate, Label, Question

NAMES = ("kick", "spin kick", "back_flip", "café")
SETS = {"actions": NAMES}
WORDS = [
    *NAMES,
    "Spin-Kick",
    "CAFÉ",
    "backflip",
    "not a",
    "isn't",
    "Answer:",
    "answer:",
    "I see",
    ".",
    ",",
    "or",
    "é",
    "\u2014",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


def candidate(text="", ids=(), mode="direct", finish="stop"):
    return Candidate("q", "v", 0, mode, text, tuple(ids), 0.0, finish, 0, "t", {}, "t")


def question(name, kind="class", aliases=()):
    return Question("q", "v", "Which?", (Label(kind, "action", name, set="actions", aliases=aliases),), "t")


def cut(text, places):
    """(table, ids) of a text cut into pieces after these bytes."""
    data = text.encode()
    edges = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    pieces = [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return TokenBytes([*pieces, None]), range(len(pieces))


def judge(found, asked, tokens=None):
    return match.verify(
        [found], [asked], MatchConfig(), label_sets=SETS, rationalize=RationalizeConfig(), tokens=tokens
    )[0]


def without_tokens(verdict):
    spans = tuple(s and dataclasses.replace(s, token=(-1, -1)) for s in verdict.spans)
    return dataclasses.replace(verdict, spans=spans)


@settings(max_examples=300, deadline=None)
@given(
    TEXTS,
    st.lists(st.integers(0, 200), max_size=12),
    st.sampled_from(NAMES),
    st.sampled_from(["class", "choice", "answer"]),
    st.sampled_from(["direct", "rationalized"]),
    st.sampled_from(["stop", "length"]),
)
def test_ids_and_text_get_the_same_verdict(text, places, name, kind, mode, finish):
    asked = question(name, kind, aliases=("backflip",) if name == "back_flip" else ())
    tokens, ids = cut(text, places)
    as_text = judge(candidate(text, mode=mode, finish=finish), asked)
    as_ids = judge(candidate(ids=ids, mode=mode, finish=finish), asked, tokens)
    assert without_tokens(as_ids) == as_text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I see. Answer: spin kick", "ok"),
        ("I see. Answer: a back flip", "wrong_value"),
        ("I see. Answer: nothing", "no_value"),
        ("spin kick", "no_answer"),
    ],
)
def test_clear_answers_are_never_spelt_out(text, reason, monkeypatch):
    tokens, ids = cut(text, range(0, 60, 4))
    monkeypatch.setattr(TokenBytes, "spell", lambda *_: pytest.fail("an answer was spelt out"))
    verdict = judge(candidate(ids=ids), question("spin kick"), tokens)
    assert verdict.reason == reason
    if reason in ("ok", "wrong_value"):
        (span,) = verdict.spans
        assert text[slice(*span.char)] in ("spin kick", "back flip")
        assert b"".join(tokens.pieces[slice(*span.token)]).find(text[slice(*span.char)].encode()) >= 0


def test_bytes_that_are_no_text_are_one_character_each():
    tokens = TokenBytes([b"Answer: \xe2\x82", b"! kick"])
    found = judge(candidate(ids=(0, 1)), question("kick"), tokens)
    spelt = match.ids.with_text(candidate(ids=(0, 1)), tokens)
    assert found.passed and spelt.text[slice(*found.spans[0].char)] == "kick"


def test_ids_without_their_tokens_are_an_error():
    with pytest.raises(DataError, match="pass the bytes of its tokens"):
        judge(candidate(ids=(1, 2)), question("kick"))
