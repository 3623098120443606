"""match_number and match_interval on token ids: what the text they spell says, and where its tokens are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from value_tools import TEXTS, Spelt, figures, without_tokens
from vstar_fast.errors import DataError
from vstar_fast.ops import LabelSet, TokenBytes, match_interval, match_number, match_sequence

pytestmark = pytest.mark.usefixtures("poison")

SPANS = [[(0.0, 12.0), (1.0, 2.0)], [], [(3.0, 1.0), (math.nan, 2.0)]]


@given(st.lists(TEXTS, max_size=3), st.data())
@settings(max_examples=200)
def test_ids_are_the_text_they_spell_for_any_tokenisation(texts, data):
    rows = [text.encode() for text in texts] + data.draw(st.lists(st.binary(max_size=12), max_size=1))
    spelt = Spelt(data.draw, rows)
    tokens, gold = TokenBytes(spelt.pieces), [3.0] * len(rows)
    found, plain = (match_number(spelt.rows, gold, tokens=tokens, backend=b) for b in ("cpp", "reference"))
    assert figures(found) == figures(plain)
    assert without_tokens(found) == figures(match_number(rows, gold))
    own = [data.draw(st.sampled_from(SPANS)) for _ in rows]
    found, plain = (match_interval(spelt.rows, own, tokens=tokens, backend=b) for b in ("cpp", "reference"))
    assert figures(found) == figures(plain)
    assert without_tokens(found) == figures(match_interval(rows, own))


def test_positions_are_told_in_bytes_characters_and_tokens():
    text = "\u00e9\u5b57 Answer: \U0001f642 from 1:05 to twenty s"
    data = text.encode()
    pieces = [data[:3], None, data[3:24], data[24:26], b"", data[26:33], data[33:38], data[38:]]
    row = list(range(len(pieces)))
    match = match_interval([row], [(20.0, 65.0)], tokens=TokenBytes(pieces), pick="first")
    (chars,), (span,), (tokens,) = match.span_chars.tolist(), match.span.tolist(), match.span_tokens.tolist()
    assert text[slice(*chars)] == "1:05 to twenty s" == data[slice(*span)].decode()
    assert b"".join(pieces[i] or b"" for i in range(*tokens)).decode() == "1:05 to twenty s"
    assert tokens == [3, 8] and match.reasons() == ["wrong_order"]
    none = match_interval(["no time"], [(0.0, 1.0)], after=None, pick="first")
    assert [none.span.tolist(), none.span_chars.tolist(), none.span_tokens.tolist()] == [[[-1, -1]]] * 3


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_padded_ragged_and_lists_are_the_same_rows(backend):
    tokens, rows = TokenBytes([None, b"1", b"2", b" s", b"3 or"]), [[1, 2, 3], [], [4, 1], [0, 2, 0]]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.full((4, 5), 10**12)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    narrow = torch.where(padded < 9, padded, 0).int()
    ragged = torch.tensor([x for row in rows for x in row]), torch.tensor([0, *lengths]).cumsum(0)
    options = {"unit": "s", "after": None, "pick": "first", "tokens": tokens, "backend": backend}
    forms = [match_number(given, [12.0, 0.0, 3.0, 2.0], **options) for given in (rows, narrow, ragged)]
    forms.append(match_number(padded, [12.0, 0.0, 3.0, 2.0], lengths=lengths, **options))
    assert all(figures(form) == figures(forms[0]) for form in forms)
    assert forms[0].reasons() == ["ok", "no_value", "ambiguous", "ok"]
    assert forms[0].span_tokens.tolist() == [[0, 3], [-1, -1], [0, 1], [1, 2]]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_ids_outside_the_vocabulary_are_an_error_that_says_where(backend):
    tokens = TokenBytes([b"1"])
    for bad in (1, -1, 2**40):
        with pytest.raises(DataError, match="outside the vocabulary"):
            match_number([[0], [0, bad]], [1.0, 1.0], tokens=tokens, backend=backend)
    with pytest.raises(DataError, match="row 1 has an id at position 1"):
        match_number([[0], [0, 7]], [1.0, 1.0], tokens=tokens)
    assert match_number([[0]], [1.0], tokens=tokens).check().matched.all()


def test_threads_do_not_change_a_result():
    rows = [f"{'x' * 900} Answer: {i} s, not {i % 7} s" for i in range(2000)]
    gold = [float(i % 50) for i in range(2000)]
    one, four = (match_number(rows, gold, unit="s", threads=n) for n in (1, 4))
    assert figures(one) == figures(four) and one.matched.any()


def test_own_values_may_be_tensors():
    tokens, rows = TokenBytes([b"1", b" to ", b"3", b"4"]), [[0, 1, 2], [0, 1, 3], [2, 1, 3]]
    ids = torch.tensor(rows)
    spans = [[(1.0, 3.0), (9.0, 9.5)], [(5.0, 6.0)], []]
    padded = torch.full((3, 2, 2), torch.nan)
    for row, own in enumerate(spans):
        padded[row, : len(own)] = torch.tensor(own).reshape(-1, 2)
    for backend in ("cpp", "reference"):
        options = {"tokens": tokens, "backend": backend}
        assert figures(match_interval(ids, padded, **options)) == figures(match_interval(rows, spans, **options))
        given = (torch.tensor([4, 4, 3]), torch.tensor([0.0, 1.0, 1.0]).half())
        found = match_number(ids, given[0], abs_tolerance=given[1], pick="last", after=None, **options)
        assert found.matched.tolist() == [False, True, True]


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_and_graphs_replay_the_reading():
    tokens = TokenBytes([b"answer: ", b"3", b" to ", b"5.5", b" s", b"kick, ", b"snow", None])
    labels, rows = LabelSet(["kick", "snow"]), torch.randint(0, 8, (2, 300, 9))
    ids, lengths = rows[0].cuda(), torch.randint(0, 10, (300,)).cuda()
    gold, spans, items = (
        torch.full((300,), 3.0),
        torch.tensor([[[3.0, 6.0], [1.0, 5.5]]] * 300),
        torch.ones(300, 2).int(),
    )

    def read(x, sizes, move):
        options = {"tokens": tokens, "lengths": sizes}
        return (
            match_number(x, move(gold), unit="s", rel_tolerance=0.1, **options),
            match_interval(x, move(spans), **options),
            match_sequence(x, labels, move(items), **options),
        )

    there = {x: x.cuda() for x in (gold, spans, items)}
    read(ids, lengths, there.get)  # tables go to the GPU once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        read(ids, lengths, there.get)
        match_number(ids, [3.0] * 300, unit=["s", "min", ""] * 100, tokens=tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        matches = read(ids, lengths, there.get)
    for batch in rows:
        ids.copy_(batch)
        graph.replay()
        for found, expected in zip(matches, read(batch, lengths.cpu(), lambda x: x), strict=True):
            assert found.backend == "cuda" and figures(found) == figures(expected)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    texts = [
        f"Answer: {a}{b} {u} or so, not {b} to {a} min"
        for a in (1, "1,2", "two", "-")
        for b in (3, ":45", "\u00e9", "")
        for u in ("s", "x", "%")
    ]
    rows = [text.encode() for text in texts]
    data = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    tokens = TokenBytes([None, *(bytes([byte]) for byte in range(256))])
    text, ids = (data, offsets), (data.int() + 1, offsets)
    gold, spans = [3.0] * len(rows), [[(0.0, 60.0), (1.0, 3.0)]] * len(rows)
    for here, table in ((text, None), (ids, tokens)):
        there = tuple(x.cuda() for x in here)
        host, found = (match_number(x, gold, unit="s", abs_tolerance=1.0, tokens=table) for x in (here, there))
        assert found.backend == "cuda" and figures(found.check()) == figures(host)
        host, found = (match_interval(x, spans, tokens=table) for x in (here, there))
        assert found.backend == "cuda" and figures(found.check()) == figures(host)
    ids[0][offsets[5] + 1] = 999
    with pytest.raises(DataError, match="row 5 has an id at position 1"):
        match_number((ids[0].cuda(), offsets.cuda()), gold, tokens=tokens).check()
