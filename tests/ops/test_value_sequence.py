"""match_sequence: compiled against the plain-Python reference, and that against the verdicts of the matching stage."""

import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from value_tools import Spelt, figures, without_tokens
from vstar_fast.config import MatchConfig
from vstar_fast.errors import DataError
from vstar_fast.match import verify
from vstar_fast.ops import LabelSet, TokenBytes, match_sequence
from vstar_fast.records import Candidate, Label, Question

pytestmark = pytest.mark.usefixtures("poison")

NAMES = ("kick", "spin kick", "spin", "get up", "jump", "jump up", "\u00e9t\u00e9")
LABELS = LabelSet(NAMES)
OWN = ("spin kick", "kick", "jump")
SAID = [
    *NAMES,
    "kicks",
    "Spin_Kick",
    "GET-UP",
    "spin ",
    "up",
    "1. ",
    ", ",
    " then ",
    " ",
    "\n",
    "not a ",
    "x",
    "\u00e9",
]
TEXTS = st.lists(st.sampled_from(SAID), max_size=9).map("".join)
OWNS = st.lists(st.integers(0, len(NAMES) - 1), max_size=4)


@pytest.mark.parametrize(
    ("said", "status", "score", "items"),
    [
        ("spin kick, kick, jump", "ok", 1.0, "spin kick|kick|jump"),
        ("1. Spin-Kick\n2. KICK\n3. jump.", "ok", 1.0, "Spin-Kick|KICK|jump"),
        ("kick, spin kick, jump", "wrong_order", 2 / 3, "kick|spin kick|jump"),
        ("jump, kick, spin kick", "wrong_order", 1 / 3, "jump|kick|spin kick"),
        ("spin kick, spin, jump", "wrong_value", 2 / 3, "spin kick|spin|jump"),
        ("spin kick, kick, kick", "wrong_value", 2 / 3, "spin kick|kick|kick"),
        ("spin kick, kick", "wrong_length", 2 / 3, "spin kick|kick"),
        ("spin kick, kick, jump, jump", "wrong_length", 3 / 4, "spin kick|kick|jump"),
        ("spin kick, kick, jump up", "wrong_value", 2 / 3, "spin kick|kick|jump up"),
        ("kicks and backflips", "no_value", 0.0, ""),
    ],
)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_what_a_sequence_says(said, status, score, items, backend):
    text = f"kick. Answer: {said}"
    match = match_sequence([text], LABELS, [OWN], backend=backend)
    assert match.reasons() == [status] and match.matched.tolist() == [status == "ok"]
    assert match.score.item() == pytest.approx(score)
    told = [text[a:b] for a, b in match.item_spans[0].tolist() if a >= 0]
    assert "|".join(told) == items
    assert [NAMES[i] for i in match.item_labels[0].tolist() if i >= 0] == [LABELS.names[LABELS.id(x)] for x in told]
    if told and len(told) == match.count.item():
        assert text[slice(*match.span[0].tolist())].startswith(told[0]) and match.span[0, 1] == match.item_spans.max()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_rows_without_a_slot_and_denied_items(backend):
    texts = ["kick, jump", "Answer: kick, not a jump", "Answer: kick, jump. Answer: jump, kick"]
    match = match_sequence(texts, LABELS, [["kick", "jump"]] * 3, backend=backend)
    assert match.reasons() == ["no_slot", "ok", "wrong_order"]
    assert match.negated.tolist() == [False, True, False]
    whole = match_sequence(texts[:1], LABELS, [[0, 4]], after=None, backend=backend)
    assert whole.matched.all() and whole.searched_from.tolist() == [0]


@given(st.lists(st.tuples(TEXTS, OWNS), max_size=4), st.sampled_from([None, "Answer:", "x"]))
@settings(max_examples=300)
def test_compiled_equals_reference(rows, after):
    texts = [f"{text}Answer:{text}" if i % 2 else text for i, (text, _) in enumerate(rows)]
    own = [labels for _, labels in rows]
    data = [text.encode() + b"\xc3" * (len(text) % 2) for text in texts]
    found, plain = (match_sequence(data, LABELS, own, after=after, backend=b) for b in ("cpp", "reference"))
    assert figures(found) == figures(plain)


def verdict_of(text: str, own: list[str]):
    """What the strict profile says to the same answer."""
    label = Label("sequence", "routine", tuple(own), set="actions")
    question = Question("q", "v", "?", (label,), "t")
    candidate = Candidate("q", "v", 0, "direct", text, (), 0.0, "stop", 0, "t", {}, "t")
    return verify([candidate], [question], MatchConfig(profile="strict"), label_sets={"actions": NAMES})[0]


@given(TEXTS, TEXTS, OWNS)
@settings(max_examples=300)
def test_a_verdict_is_that_of_the_matching_stage(reasoning, said, own):
    assume(own)
    text = f"{reasoning} Answer: {said}" if len(said) % 5 else said
    match = match_sequence([text], LABELS, [own])
    verdict = verdict_of(text, [NAMES[i] for i in own])
    reason = "negated" if match.negated.item() else match.reasons()[0]
    assert {"no_slot": "no_answer"}.get(reason, reason) == verdict.reason
    assert verdict.passed == (match.matched.item() and not match.negated.item())
    if reason not in ("no_slot", "no_value"):
        assert [tuple(match.span_chars[0].tolist())] == [span.char for span in verdict.spans]
        assert [tuple(match.span[0].tolist())] == [span.byte for span in verdict.spans]
    if reason not in ("no_slot", "no_value", "negated"):
        assert match.score.tolist() == list(verdict.scores)
        told = tuple(NAMES[i] for i in match.item_labels[0].tolist() if i >= 0)
        assert told == verdict.extracted[0][: len(own)]


@given(st.lists(st.tuples(TEXTS, OWNS), max_size=3), st.data())
@settings(max_examples=150)
def test_ids_are_the_text_they_spell_for_any_tokenisation(rows, data):
    texts, own = [text.encode() for text, _ in rows], [labels for _, labels in rows]
    spelt = Spelt(data.draw, texts)
    options = {"tokens": TokenBytes(spelt.pieces), "after": None}
    found, plain = (match_sequence(spelt.rows, LABELS, own, backend=b, **options) for b in ("cpp", "reference"))
    assert figures(found) == figures(plain)
    assert without_tokens(found) == figures(match_sequence(texts, LABELS, own, after=None))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_own_sequences_may_be_a_tensor(backend):
    own = [[0, 1], [], [2], [1, 0, 2]]
    padded = torch.tensor([[0, 1, -1], [-1, -1, -1], [-1, 2, -1], [1, 0, 2]])
    rows = [f"Answer: {', '.join(NAMES[x] for x in row)}" for row in own]
    for gold in (padded, padded.int()):
        expected, found = (match_sequence(rows, LABELS, x, backend=backend) for x in (own, gold))
        assert figures(found) == figures(expected)
    assert found.reasons() == ["ok", "no_value", "ok", "ok"]


def test_bad_arguments_are_named():
    bad = [
        (lambda: match_sequence(["a"], LABELS, []), "sequences for 0 rows"),
        (lambda: match_sequence(["a"], LABELS, [[7]]), "label id 7; ids are integers from 0 to 6"),
        (lambda: match_sequence(["a"], LABELS, [[-1]]), "label id -1"),
        (lambda: match_sequence(["a"], LABELS, [[1.5]]), "label id 1.5"),
        (lambda: match_sequence(["a"], LABELS, torch.tensor([[7]])), "label ids 7 to 7; ids are -1 to 6"),
        (lambda: match_sequence(["a"], LABELS, torch.tensor([7])), r"\[B, M\] int32 or int64"),
        (lambda: match_sequence(["a"], LABELS, [["fly"]]), "'fly' is none of the 7 labels"),
        (lambda: match_sequence([[9]], LABELS, [[0]], tokens=TokenBytes([b"a"])), "row 0 has an id at position 0"),
        (lambda: match_sequence([3], LABELS, [[0]]), "neither a string nor bytes"),
    ]
    for call, message in bad:
        with pytest.raises(DataError, match=message):
            call()
    assert match_sequence([], LABELS, []).items.shape == (0, 0, 7)
    for backend in ("cpp", "reference"):
        assert match_sequence(["Answer: kick"], LABELS, [[]], backend=backend).reasons() == ["wrong_length"]


@pytest.mark.gpu
@pytest.mark.parametrize("after", [None, "Answer:"])
def test_cuda_equals_cpu(after):
    rng = random.Random(5)
    rows = ["".join(rng.choices([*SAID, "Answer:"], k=rng.randint(0, 15))).encode() for _ in range(2000)]
    own = [rng.choices(range(len(NAMES)), k=rng.randint(0, 4)) for _ in rows]
    data = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    tokens = TokenBytes([None, *(bytes([byte]) for byte in range(256))])
    for here, table in (((data, offsets), None), ((data.int() + 1, offsets), tokens)):
        there = tuple(x.cuda() for x in here)
        host, found = (match_sequence(x, LABELS, own, after=after, tokens=table) for x in (here, there))
        assert found.backend == "cuda" and figures(found.check()) == figures(host)
