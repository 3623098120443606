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
        (lambda: label_match([[0]], LABELS, [0], tokens=tokens, lengths=[1]), "leave `lengths` out"),
        (lambda: label_match((ids[0], torch.tensor([0, 3])), LABELS, [0], tokens=tokens, lengths=[1]), "leave"),
        (lambda: label_match((ids[0], torch.tensor([0, 9])), LABELS, [0], tokens=tokens), "3 ids"),
        (lambda: label_match(["kick"], LABELS, [0], lengths=[1]), "`tokens`"),
        (lambda: label_match([7], LABELS, [0]), "neither a string nor bytes"),
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
