"""label_match: every backend against the plain-Python specification, `re`, and cases worked out by hand."""

import random
import re
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vstar_fast.kernels.label_match import LabelMatch, characters, encode
from vstar_fast.kernels.label_match.characters import fold, fold_name, kind

from vstar_fast import _C, backends
from vstar_fast.errors import BackendError, DataError
from vstar_fast.ops import LabelSet, char_span, label_match

pytestmark = pytest.mark.usefixtures("poison")

ALPHABET = "aAbBkKſ\u212aßẞéÉ\u0301Σςσ12 _-–\u00a0\t.:+&'字😀"


def figures(match: LabelMatch) -> list[object]:
    """All that a result says, as plain values."""
    return [match.table.tolist(), None if match.which_bits is None else match.which_bits.tolist()]


def one(text: str, label: str, **options: object) -> LabelMatch:
    return label_match([text], LabelSet([label]), [0], **options)


@pytest.mark.parametrize(
    ("text", "label", "first", "last"),
    [
        ("a back flip", "back flip", (2, 11), (2, 11)),
        ("BACK_FLIP", "back flip", (0, 9), (0, 9)),
        ("back - _ flip, back-flip", "Back_Flip", (0, 13), (15, 24)),
        ("back\u2014flip", "back flip", (0, 11), (0, 11)),
        ("back\n\u00a0flip", "back-flip", (0, 11), (0, 11)),
        ("_kick_", "kick", (1, 5), (1, 5)),
        ("kick", "__kick--", (0, 4), (0, 4)),
        ("(kick)", "kick", (1, 5), (1, 5)),
        ("kick's kick", "kick", (0, 4), (7, 11)),
        ("ÉTÉ été", "été", (0, 5), (6, 11)),
        ("e\u0301te\u0301", "été", (0, 7), (0, 7)),
        ("ete", "e\u0301te\u0301", None, None),
        ("STRAẞE", "straße", (0, 8), (0, 8)),
        ("ΣΊΣΥΦΟΣ", "σίσυφος", (0, 14), (0, 14)),
        ("\u212aick", "kick", (0, 6), (0, 6)),
        ("clean & jerk", "Clean & Jerk", (0, 12), (0, 12)),
        ("clean  &  jerk", "clean & jerk", (0, 14), (0, 14)),
        ("clean and jerk", "clean & jerk", None, None),
        ("C++11 c++", "C++", (6, 9), (6, 9)),
        ("a b a b a", "a b a", (0, 5), (4, 9)),
        ("3.5 13.5", "3.5", (0, 3), (0, 3)),
        ("sidekick kicks kick2 kické", "kick", None, None),
        ("ete\u0301", "ete", None, None),
        ("backflip", "back flip", None, None),
        ("back flip", "backflip", None, None),
        ("back", "back flip", None, None),
        ("", "kick", None, None),
    ],
)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_one_label_in_one_text(text, label, first, last, backend):
    match = one(text, label, backend=backend)
    assert match.matched.item() == (first is not None)
    assert tuple(match.first[0].tolist()) == (first or (-1, -1))
    assert tuple(match.last[0].tolist()) == (last or (-1, -1))
    assert match.backend == backend


@pytest.mark.parametrize(
    ("text", "searched_from", "first"),
    [
        ("kick. Answer: walk", 13, (-1, -1)),
        ("Answer: walk. ANSWER: kick", 21, (22, 26)),
        ("I answer kick", -1, (-1, -1)),
        ("Answer:kick Answer:", 19, (-1, -1)),
        ("Answer:kick", 7, (7, 11)),
        ("", -1, (-1, -1)),
    ],
)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_search_begins_behind_the_last_literal(text, searched_from, first, backend):
    match = one(text, "kick", after="Answer:", backend=backend)
    assert match.searched_from.item() == searched_from
    assert tuple(match.first[0].tolist()) == first


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_search_that_begins_inside_a_word_does_not_cut_it(backend):
    assert not one("xkick", "kick", after="x", backend=backend).matched.item()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_label_inside_a_longer_one_is_told(backend):
    labels = LabelSet(["kick", "spin kick", "kick ball"], aliases={"kick": ["high kick"]})
    texts = ["a spin-kick", "a kick ball", "a spin kick, a kick", "a kick", "high kick", "spin kick ball"]
    match = label_match(texts, labels, ["kick"] * 6, which=True, backend=backend)
    assert match.matched.all()
    assert match.inside_longer.tolist() == [True, True, False, False, False, True]
    assert [match.labels_in(i) for i in range(6)] == [(0, 1), (0, 2), (0, 1), (0,), (0,), (0, 1, 2)]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_which_holds_every_label_in_every_word_of_bits(backend):
    labels = LabelSet([f"label {i}" for i in range(70)])
    texts = [f"Label_{i} and label-{(i + 32) % 70}" for i in range(70)]
    match = label_match(texts, labels, [-1] * 70, which=True, backend=backend)
    assert match.which.shape == (70, 70)
    assert not match.matched.any()
    for i in range(70):
        assert match.labels_in(i) == tuple(sorted({i, (i + 32) % 70}))
        assert match.which[i].nonzero()[:, 0].tolist() == sorted({i, (i + 32) % 70})


def test_aliases_are_their_label():
    labels = LabelSet(["back flip", "walk"], aliases={"Back_Flip": ["backflip", "back somersault", "BACKFLIP"]})
    match = label_match(["a BackFlip", "Back-somersault", "walk"], labels, ["back flip"] * 3)
    assert match.matched.tolist() == [True, True, False]
    assert labels.find("BACK SOMERSAULT") == 0
    assert labels.find("run") is None
    assert len(labels) == 2


names = st.text(ALPHABET, min_size=1, max_size=5).filter(lambda name: any(kind(char) == 1 for char in name))


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    def forms(name: str) -> frozenset[tuple[int, ...]]:
        return frozenset(fold_name(unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))

    chosen: list[str] = []
    taken: set[tuple[int, ...]] = set()
    for name in draw(st.lists(names, min_size=1, max_size=6)):
        if not forms(name) & taken:
            taken |= forms(name)
            chosen.append(name)
    return LabelSet(chosen)


@st.composite
def texts_of(draw: st.DrawFn, labels: LabelSet) -> str:
    """Text with labels in it, whole or cut, in upper, lower or title case."""
    parts = st.one_of(
        st.sampled_from(labels.names),
        st.sampled_from(labels.names).map(str.upper),
        st.sampled_from(labels.names).map(lambda name: name[:-1]),
        st.text(ALPHABET, max_size=3),
        st.sampled_from([" ", "_", "-", ". ", "Ab:"]),
    )
    return "".join(draw(st.lists(parts, max_size=8)))


@given(st.data())
@settings(max_examples=300)
def test_compiled_equals_specification(data):
    labels = data.draw(label_sets())
    texts = data.draw(st.lists(texts_of(labels), max_size=5))
    own = [data.draw(st.integers(-1, len(labels) - 1)) for _ in texts]
    after = data.draw(st.sampled_from([None, "ab:", "É", "k k"]))
    compiled, plain = (
        label_match(texts, labels, own, after=after, which=True, backend=backend) for backend in ("cpp", "reference")
    )
    assert figures(compiled) == figures(plain)


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"a", b" ", b"\xc3", b"\xa9", "é".encode()]), max_size=6))
def test_bytes_that_are_not_utf8_belong_to_no_word(pieces):
    labels = LabelSet(["a", "é", "a é"])
    rows = [b"".join(pieces), b" ".join(pieces)]
    results = [label_match(rows, labels, [0, 2], which=True, backend=b) for b in ("cpp", "reference")]
    assert figures(results[0]) == figures(results[1])


@given(
    st.text("aAbB1 _-.", max_size=30),
    st.lists(st.text("abAB1", min_size=1, max_size=2), min_size=1, max_size=3),
)
def test_equals_re(text, words):
    separated = r"[ _-]+".join(words)
    found = [m.span(1) for m in re.finditer(rf"(?<![^\W_])(?=({separated})(?![^\W_]))", text, re.IGNORECASE)]
    match = one(text, " ".join(words))
    assert match.matched.item() == bool(found)
    if found:
        assert tuple(match.first[0].tolist()) == found[0]
        assert tuple(match.last[0].tolist()) == found[-1]


def test_character_tables_are_this_pythons_unicode():
    """Every code point: the C++ tables say what characters.py says."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "csrc"))
    try:
        import unicode_tables
    finally:
        sys.path.pop(0)
    written = Path(unicode_tables.__file__).with_suffix(".h").read_text()
    known = re.search(r'kVersion = "(.*)"', written)[1] == unicodedata.unidata_version
    if known:
        assert written == unicode_tables.header()
    for point in range(sys.maxunicode + 1):
        char = chr(point)
        if known or unicodedata.category(char) != "Cn":
            assert (_C.char_kind(point), _C.char_fold(point)) == (kind(char), ord(fold(char))), hex(point)


def test_folding_is_one_to_one_and_stable():
    for point in range(sys.maxunicode + 1):
        folded = fold(chr(point))
        assert fold(folded) == folded
        assert characters.kind(folded) == characters.kind(chr(point)), hex(point)


@pytest.mark.parametrize(
    ("names", "aliases", "message"),
    [
        ([], None, "empty"),
        (["walk", "--"], None, "label 1 .*no letter or digit"),
        (["walk", ""], None, "label 1 .*no letter or digit"),
        (["spin kick", "walk", "Spin_Kick"], None, "labels 0 .'spin kick'. and 2 .'Spin_Kick'. are the same name"),
        (["walk", "walk"], None, "labels 0 .* and 1"),
        (["walk", "run"], {"walk": ["RUN"]}, "the same name"),
        (["walk"], {"fly": ["soar"]}, "'fly' is none of the 1 labels"),
        (["walk", 3], None, "label 1 is 3 .int."),
        (["walk\udc80"], None, "not valid Unicode"),
        ("walk", None, "not one string"),
        (["été", "e\u0301te\u0301"], None, "the same name"),
    ],
)
def test_bad_label_sets_say_which_label(names, aliases, message):
    with pytest.raises(DataError, match=message):
        LabelSet(names, aliases)


def test_bad_arguments_are_named():
    labels = LabelSet(["walk"])
    text, offsets = torch.zeros(4, dtype=torch.uint8), torch.tensor([0, 4])
    bad = [
        (lambda: label_match("walk", labels, [0]), "list of texts"),
        (lambda: label_match(["walk"], labels, [0, 0]), "one label a text"),
        (lambda: label_match(["walk"], labels, [1]), "ids are -1 to 0"),
        (lambda: label_match(["walk"], labels, [-2]), "ids are -1 to 0"),
        (lambda: label_match(["walk"], labels, ["fly"]), "'fly' is none"),
        (lambda: label_match(["walk"], labels, torch.tensor([0.0])), "label ids"),
        (lambda: label_match(["walk"], labels, [0], after=" - "), "no character to look for"),
        (lambda: label_match((text.float(), offsets), labels, [0]), "uint8"),
        (lambda: label_match((text, offsets.int()), labels, [0]), "int64"),
        (lambda: label_match((text, torch.tensor([0, 9])), labels, [0]), "offsets must ascend"),
        (lambda: label_match((text, torch.tensor([0, 4, 2])), labels, [0, 0]), "offsets must ascend"),
        (lambda: label_match((text, torch.tensor([-1, 2])), labels, [0]), "offsets must ascend"),
        (lambda: label_match(["walk"], labels, [0]).which, "which=True"),
    ]
    for call, message in bad:
        with pytest.raises(DataError, match=message):
            call()


def test_unknown_and_missing_backends_are_errors_with_a_remedy():
    with pytest.raises(BackendError, match="label_match has no backend 'gpu'; it has: cpp, cuda, reference"):
        one("walk", "walk", backend="gpu")
    if not backends.available("cuda").ok:
        with pytest.raises(BackendError, match="Remedy: "):
            one("walk", "walk", backend="cuda")


def test_bytes_and_offsets_are_taken_as_they_are():
    rows = [encode(text) for text in ("walk", "", "a Walk", "run")]
    joined = torch.frombuffer(bytearray(b"xx" + b"".join(rows)), dtype=torch.uint8)
    offsets = torch.tensor([2, 6, 6, 12, 15])
    match = label_match((joined, offsets), LabelSet(["walk"]), torch.zeros(4, dtype=torch.int64))
    assert match.matched.tolist() == [True, False, True, False]
    assert match.first.tolist() == [[0, 4], [-1, -1], [2, 6], [-1, -1]]


def test_no_rows():
    match = label_match([], LabelSet(["walk"]), [], which=True)
    assert match.matched.shape == (0,) and match.which.shape == (0, 1)


def many_rows(rows: int) -> tuple[LabelSet, list[str], list[int]]:
    """Rows long enough for several threads, with over 60 labels at the trie's root."""
    rng = random.Random(1)
    labels = LabelSet([f"{chr(0x430 + i % 32)}{chr(97 + i // 3)} kick {i}" for i in range(66)] + ["kick", "кк"])
    words = [*labels.names, "Kick", "sidekick", "Ответ", "the", "é"]
    texts = ["_".join(rng.choices(words, k=rng.randint(0, 80))) for _ in range(rows)]
    return labels, texts, [rng.randrange(len(labels)) for _ in range(rows)]


def test_threads_do_not_change_results():
    labels, texts, own = many_rows(1500)
    assert sum(map(len, texts)) > 4 << 17
    alone, together = (label_match(texts, labels, own, which=True, threads=threads) for threads in (1, 4))
    assert figures(alone) == figures(together)
    plain = label_match(texts[:40], labels, own[:40], which=True, backend="reference")
    assert figures(plain) == [rows[:40] for rows in figures(alone)]


def test_char_spans_slice_the_text():
    text = "é字😀 Kick it"
    match = one(text, "kick")
    begin, end = char_span(text, *match.first[0].tolist())
    assert text[begin:end] == "Kick"


def test_what_ran_is_recorded():
    backends.reset_report()
    one("walk", "walk", backend="reference")
    one("walk", "walk")
    assert backends.report() == {"label_match": {"cpp": 1, "reference": 1}}


@pytest.mark.gpu
@pytest.mark.parametrize("after", [None, "kick 7"])
def test_cuda_equals_cpu(after):
    labels, texts, own = many_rows(3000)
    texts[::7] = ["" for _ in texts[::7]]
    host = label_match(texts, labels, own, after=after, which=True, backend="cpp")
    match = label_match(texts, labels, own, after=after, which=True, device="cuda", backend="cuda")
    assert match.first.device.type == "cuda"
    assert figures(match) == figures(host)


@pytest.mark.gpu
def test_cuda_equals_cpu_on_any_bytes():
    rng = random.Random(2)
    labels = LabelSet(["a", "é", "a é", "字", "a a a"])
    rows = [bytes(rng.choices(b"aA \xc3\xa9-\xe5\xad\x97.", k=rng.randint(0, 200))) for _ in range(2000)]
    own = [rng.randrange(5) for _ in rows]
    results = [label_match(rows, labels, own, which=True, device=d) for d in ("cpu", "cuda")]
    assert [m.backend for m in results] == ["cpp", "cuda"]
    assert figures(results[0]) == figures(results[1])
