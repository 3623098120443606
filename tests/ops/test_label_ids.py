"""label_match on token ids: what it finds in the joined bytes, for any tokenisation, and where in tokens."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vstar_fast import _C
from vstar_fast.errors import DataError
from vstar_fast.ops import LabelMatch, LabelSet, TokenBytes, char_span, label_match

pytestmark = pytest.mark.usefixtures("poison")

LABELS = LabelSet(
    ["snow", "snowboard", "back flip", "kick", "spin kick", "été", "C++", "(x)", "字 a", "extraordinarily long"],
    aliases={"back flip": ["backflip"]},
)
WORDS = [*LABELS.names, "Answer:", "not a ", "isn't ", "never", "snowboarding", "KICK", "\u212aick", "ſnow", "é", "😀"]
TOKEN_COLUMNS = slice(6, 10)


def figures(match: LabelMatch) -> list[object]:
    return [match.table.tolist(), None if match.which_bits is None else match.which_bits.tolist()]


def without_tokens(match: LabelMatch) -> list[object]:
    table = match.table.clone()
    table[:, TOKEN_COLUMNS] = -1
    return [table.tolist(), match.which_bits.tolist()]


class Split:
    """Texts cut anywhere, even inside characters, with specials between; equal pieces may have several ids."""

    def __init__(self, draw, rows: list[bytes]) -> None:
        self.pieces: list[bytes | None] = [None, b"", b"kick"]
        self.rows: list[list[int]] = []
        for text in rows:
            cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
            row = []
            for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True):
                row.append(len(self.pieces))
                self.pieces.append(text[low:high])
                row += draw(st.lists(st.sampled_from([0, 1]), max_size=2))
            self.rows.append(row)


texts = st.lists(st.sampled_from([*WORDS, " ", "_", "-", ". "]) | st.text("aKk é\u0301.-", max_size=3), max_size=10)


@given(st.data())
@settings(max_examples=200)
def test_ids_are_the_text_they_spell_for_any_tokenisation(data):
    rows = ["".join(parts).encode() for parts in data.draw(st.lists(texts, max_size=4))]
    rows += data.draw(st.lists(st.binary(max_size=20), max_size=1))
    split = Split(data.draw, rows)
    own = [data.draw(st.integers(-1, len(LABELS) - 1)) for _ in rows]
    after = data.draw(st.sampled_from([None, "answer:", "k"]))
    options = {"after": after, "which": True, "negation": True}
    tokens = TokenBytes(split.pieces)
    found = label_match(split.rows, LABELS, own, tokens=tokens, **options)
    plain = label_match(split.rows, LABELS, own, tokens=tokens, backend="reference", **options)
    assert figures(found) == figures(plain)
    assert without_tokens(found) == without_tokens(label_match(rows, LABELS, own, **options))
    assert without_tokens(found) == without_tokens(label_match(rows, LABELS, own, backend="reference", **options))


CPU = torch.device("cpu")


@pytest.mark.parametrize("hinted", [False, True])
def test_ids_give_the_same_with_and_without_hints(hinted, monkeypatch):
    """Labels that begin in a token, across tokens, behind specials, and behind the bytes of a cut character."""
    choose = LabelSet.hints if hinted else lambda *_: None
    monkeypatch.setattr(LabelSet, "hints_for", lambda self, rows, tokens, after: choose(self, tokens, after, CPU))
    rng = random.Random(8)
    pieces: list[bytes | None] = [None, b"", b" kick", b"kick", b" sp", b"in", b" spin", b" kick spin", b"s now", b"sn"]
    pieces += [
        b"ow",
        b"board",
        b"\xc3",
        b"\xa9",
        b"\xc3\xa9t",
        b"t\xc3\xa9",
        b" C",
        b"++",
        b"(",
        b"x",
        b") ",
        b"(x)",
        b"_",
    ]
    pieces += [
        b"-",
        b" ",
        b"Answer",
        b": ",
        b"answer: kick",
        b"An",
        b"swer:",
        b"a",
        b"k",
        b" not",
        b"n't",
        b" " * 40,
        b"e",
    ]
    pieces += ["字 a".encode(), "字".encode()[:1], "字".encode()[1:], b"extraordinarily", b" long", "\u0301".encode()]
    tokens = TokenBytes(pieces)
    ids = torch.tensor([rng.choices(range(len(pieces)), k=150) for _ in range(120)], dtype=torch.int32)
    lengths = torch.tensor([rng.choice((0, 1, 15, 63, 64, 65, 128, 150, rng.randint(0, 150))) for _ in range(120)])
    own = [rng.choice((-1, 0, 1, 3, 3, 4, 5, 6, 7)) for _ in range(120)]
    for after in ("Answer:", "k", "a", None):
        options = {"tokens": tokens, "lengths": lengths, "after": after, "which": True, "negation": True}
        expected = label_match(ids, LABELS, own, backend="reference", **options)
        for form in (ids, ids.long()):
            assert figures(label_match(form, LABELS, own, **options)) == figures(expected)
    assert expected.matched.any() and expected.negated.any()


def test_hints_are_made_once_they_pay():
    labels, tokens = LabelSet(["kick"]), TokenBytes([b"kick"] * 1000)
    ids = torch.zeros((40, 1), dtype=torch.int64)
    assert labels.hints_for(10, tokens, ()) is None
    assert labels.hints_for(80, tokens, ()) is labels.hints_for(0, tokens, ())
    assert label_match(ids, labels, [0] * 40, tokens=tokens).matched.all()
    assert labels.hints_for(1, TokenBytes([b"kick"] * 1000), ()) is None


@given(st.data())
@settings(max_examples=100)
def test_every_form_of_the_token_scan_is_the_same(data):
    vocabulary, count = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 200))
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    hints = torch.tensor([rng.getrandbits(5) << 22 | rng.getrandbits(6) for _ in range(vocabulary)], dtype=torch.int32)
    ids = torch.tensor([rng.randrange(vocabulary) for _ in range(count)], dtype=torch.int64)
    if count and data.draw(st.booleans()):
        ids[rng.randrange(count)] = data.draw(st.sampled_from([-1, vocabulary, 2**31 - 1, -(2**31)]))
    for form in (ids, ids.int()):
        found = [
            _C.token_scan(name, hints.data_ptr(), vocabulary, form.data_ptr(), count, form.dtype == torch.int64)
            for name in _C.token_scan_names()
        ]
        bad = next((i for i, x in enumerate(ids.tolist()) if not 0 <= x < vocabulary), -1)
        assert all(scan[0] == bad for scan in found)
        if bad < 0:
            assert all(scan == found[0] for scan in found)
            assert found[0][1] == (hints[ids] & 63).cumsum(0).tolist()


def test_wide_ids_that_are_small_in_their_low_half_are_outside_the_vocabulary():
    tokens = TokenBytes([b"kick"] * 20)
    ids = torch.zeros((2, 20), dtype=torch.int64)
    ids[1, 17] = 1 << 32
    with pytest.raises(DataError, match="row 1 has an id at position 17"):
        label_match(ids, LABELS, [0, 0], tokens=tokens)


def test_padded_ragged_and_lists_are_the_same_rows():
    tokens = TokenBytes([None, b"back", b" ", b"flip", b" and ", b"kick", b"s"])
    rows = [[1, 2, 3, 4, 5], [], [5, 6], [0, 5, 0, 0], [1, 0, 3]]
    padded = torch.zeros((5, 6), dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    garbage = padded.clone()
    lengths = torch.tensor([len(row) for row in rows])
    for i, row in enumerate(rows):
        garbage[i, len(row) :] = 10**12
    wide = torch.zeros((5, 9), dtype=torch.int32)
    wide[:, :6] = padded
    ragged = (torch.tensor([x for row in rows for x in row]), torch.tensor([0, *lengths.tolist()]).cumsum(0))
    own = ["back flip", "kick", "kick", "kick", "back flip"]
    forms = [
        label_match(rows, LABELS, own, tokens=tokens),
        label_match(padded, LABELS, own, tokens=tokens),
        label_match(garbage, LABELS, own, tokens=tokens, lengths=lengths),
        label_match(garbage, LABELS, own, tokens=tokens, lengths=lengths.tolist()),
        label_match(wide[:, :6], LABELS, own, tokens=tokens, lengths=lengths.int()),
        label_match(padded.t().contiguous().t(), LABELS, own, tokens=tokens),
        label_match(ragged, LABELS, own, tokens=tokens),
    ]
    assert all(figures(form) == figures(forms[0]) for form in forms[1:])
    assert forms[0].matched.tolist() == [True, False, False, True, True]
    assert forms[0].first_tokens.tolist() == [[0, 3], [-1, -1], [-1, -1], [1, 2], [0, 3]]
    assert forms[0].length.tolist() == [18, 0, 5, 4, 8]


def test_positions_are_told_in_bytes_characters_and_tokens():
    text = "é字😀 Kick, kick it"
    data = text.encode()
    pieces = [data[:4], data[4:11], data[11:13], data[13:19], data[19:]]
    match = label_match([[0, 1, 2, 3, 4]], LABELS, ["kick"], tokens=TokenBytes(pieces))
    (first,), (last,) = match.first_chars.tolist(), match.last_chars.tolist()
    assert (text[slice(*first)], text[slice(*last)]) == ("Kick", "kick")
    assert tuple(first) == char_span(text, *match.first[0].tolist())
    assert match.first_tokens.tolist() == [[1, 4]]
    assert match.last_tokens.tolist() == [[3, 5]]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_ids_outside_the_vocabulary_are_an_error_that_says_where(backend):
    tokens = TokenBytes([b"kick", None])
    for bad in (2, -1, 2**40):
        with pytest.raises(DataError, match="outside the vocabulary"):
            label_match([[0], [0, bad]], LABELS, [3, 3], tokens=tokens, backend=backend)
    with pytest.raises(DataError, match="row 1 has an id at position 1"):
        label_match(torch.tensor([[0, 0], [0, 2]]), LABELS, [3, 3], tokens=tokens)
    assert label_match([[0, 1]], LABELS, [3], tokens=tokens).check().matched.all()


def test_bad_arguments_are_named():
    tokens, ids = TokenBytes([b"kick"]), torch.zeros((2, 3), dtype=torch.int64)
    bad = [
        (lambda: label_match(ids, LABELS, [0, 0]), "needs `tokens`"),
        (lambda: label_match(ids.float(), LABELS, [0, 0], tokens=tokens), "int32 or int64"),
        (lambda: label_match(ids[0], LABELS, [0, 0], tokens=tokens), r"must be \[B, T\]"),
        (lambda: label_match(ids, LABELS, [0, 0], tokens=tokens, lengths=[1]), r"integers \[2\]"),
        (lambda: label_match(ids, LABELS, [0, 0], tokens=tokens, lengths=[1, 4]), "rows have 3 ids"),
        (lambda: label_match(ids, LABELS, [0, 0], tokens=tokens, lengths=[-1, 1]), "rows have 3 ids"),
        (lambda: label_match(ids, LABELS, [0, 0], tokens=tokens, lengths=ids[:, 0].to("meta")), "put both on one"),
        (lambda: label_match((ids[0], torch.tensor([0, 3]).to("meta")), LABELS, [0], tokens=tokens), "put both on one"),
        (lambda: label_match([[0]], LABELS, [0], tokens=tokens, lengths=[1]), "leave `lengths` out"),
        (lambda: label_match((ids[0], torch.tensor([0, 3])), LABELS, [0], tokens=tokens, lengths=[1]), "leave"),
        (lambda: label_match((ids[0], torch.tensor([0, 9])), LABELS, [0], tokens=tokens), "3 ids"),
        (lambda: label_match(["kick"], LABELS, [0], lengths=[1]), "`tokens`"),
        (lambda: label_match([7], LABELS, [0]), "neither a string nor bytes"),
        (lambda: label_match(["kick"], LABELS, [None]), "own has None; give label ids or names"),
        (lambda: label_match(["kick"], LABELS, [0.5]), "int32 or int64"),
        (lambda: label_match(["kick"], LABELS, [True]), "not torch.bool"),
        (lambda: TokenBytes([]), "empty"),
        (lambda: TokenBytes(["kick"]), "token 0 is 'kick'"),
    ]
    for call, message in bad:
        with pytest.raises(DataError, match=message):
            call()


@given(st.binary(max_size=200) | st.text("aZz09@[`{/:é ", max_size=90).map(str.encode))
def test_every_form_of_the_word_masks_is_the_same(text):
    word = [int(chr(byte).isascii() and chr(byte).isalnum()) for byte in text]
    high = [int(byte > 127) for byte in text]
    for name in _C.word_mask_names():
        for bits, packed in zip((word, high), _C.word_masks(name, text), strict=True):
            unpacked = [packed[i // 64] >> i % 64 & 1 for i in range(len(packed) * 64)]
            assert unpacked == bits + [0] * (len(unpacked) - len(bits)), name
    assert _C.word_mask_names()[0] == "portable"


def test_rows_longer_than_a_block_and_words_across_blocks():
    rng = random.Random(4)
    words = [*LABELS.names, "kick", "the", "extraordinarily", "extraord", "été", "x"]
    rows = [" ".join(rng.choices(words, k=rng.randint(0, 90))) for _ in range(60)]
    own = [rng.randrange(len(LABELS)) for _ in rows]
    for shift in range(64):
        shifted = ["." * shift + row for row in rows[:: 1 + shift % 7]]
        both = [
            label_match(shifted, LABELS, own[:: 1 + shift % 7], which=True, backend=b) for b in ("cpp", "reference")
        ]
        assert figures(both[0]) == figures(both[1])
        if shift > 8:
            break


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("after", [None, "answer:"])
def test_cuda_equals_cpu_on_ids(dtype, after):
    rng = random.Random(6)
    pieces = [
        None,
        *(word.encode() for word in WORDS),
        *(bytes([byte]) for byte in range(256)),
        b" extraordinarily long ",
    ]
    tokens, ids = TokenBytes(pieces), torch.randint(0, len(pieces), (3000, 90), dtype=dtype)
    lengths = torch.randint(0, 91, (3000,))
    own = [rng.randrange(-1, len(LABELS)) for _ in range(3000)]
    options = {"tokens": tokens, "after": after, "which": True, "negation": True}
    host = label_match(ids, LABELS, own, lengths=lengths, **options)
    match = label_match(ids.cuda(), LABELS, own, lengths=lengths.cuda(), **options)
    assert match.backend == "cuda" and match.table.device.type == "cuda"
    assert figures(match.check()) == figures(host)
    broken = ids.cuda()
    broken[5, 0] = len(pieces)
    with pytest.raises(DataError, match="row 5 "):
        label_match(broken, LABELS, own, tokens=tokens).check()


@pytest.mark.gpu
@pytest.mark.parametrize("after", [None, "answer:"])
def test_nothing_waits_for_the_gpu_and_graphs_replay_the_search(after):
    pieces = [None, *(word.encode() for word in WORDS)]
    tokens, rows = TokenBytes(pieces), torch.randint(0, len(pieces), (2, 500, 60))
    ids, lengths, own = rows[0].cuda(), torch.randint(0, 61, (500,)).cuda(), torch.full((500,), 3).cuda()
    options = {"tokens": tokens, "after": after, "which": True, "negation": True}
    label_match(ids, LABELS, own, lengths=lengths, **options)  # tables and hints go to the GPU once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        label_match(ids, LABELS, own, lengths=lengths, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        match = label_match(ids, LABELS, own, lengths=lengths, **options)
    for batch in rows:
        ids.copy_(batch)
        graph.replay()
        assert figures(match) == figures(label_match(batch, LABELS, own.cpu(), lengths=lengths.cpu(), **options))
