"""match_number and match_interval: compiled against the plain-Python reference, and that against vstar_fast.match."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vstar_fast.kernels.number_words import NUMBER_WORDS, OFTEN, SCALES, UNITS

from value_tools import TEXTS, figures
from vstar_fast import _C, backends
from vstar_fast.errors import BackendError, DataError
from vstar_fast.match import numbers
from vstar_fast.match.text import Case, Names
from vstar_fast.ops import match_interval, match_number
from vstar_fast.records import Label

pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("3", "", 3.0),
        ("about -1,200.5 ms", "s", -1.2005),
        ("\u22125", "", -5.0),
        ("5-3", "", 5.0),
        (".5", "", 0.5),
        ("2.5e3", "", 2500.0),
        ("1e400", "", math.inf),
        ("1:02", "s", 62.0),
        ("1:02:03.5", "s", 3723.5),
        ("1:02:03.5", "min", 3723.5 / 60),
        ("45%", "", 0.45),
        ("45 percent", "%", 45.0),
        ("twenty-five reps", "times", 25.0),
        ("Twenty", "", 20.0),
        ("two and a half minutes", "s", 150.0),
        ("3 million", "", 3e6),
        ("a dozen, two dozen", "", 24.0),
        ("thrice", "times", 3.0),
        ("5 m", "s", 300.0),
        ("90\u00b0", "degrees", 90.0),
        ("3rd 4", "", 4.0),
        ("3D v2 1.2.3 7", "", 7.0),
        ("1,2345 8", "", 8.0),
        ("1:75 9", "", 9.0),
        ("fourteenth 6", "", 6.0),
        ("3.", "", 3.0),
        ("3e5.2 2", "", 2.0),
    ],
)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_numbers_as_written(text, unit, value, backend):
    match = match_number([text], [value], unit=unit, after=None, pick="first", backend=backend)
    assert match.values[0, 0].item() == pytest.approx(value, rel=1e-15)
    assert match.matched.item() == (value != math.inf and text != "5-3")  # "5-3" may be a range


@pytest.mark.parametrize(
    ("text", "pick", "value", "status"),
    [
        ("1 or so. Answer: 2, then 3", "slot", 2.0, "ok"),
        ("1 then 2 then 3", "slot", 3.0, "ok"),
        ("1 then 2 then 3", "first", None, "no_slot"),
        ("9 Answer: 1 then 2", "first", 1.0, "off_tolerance"),
        ("9 Answer: 1 then 2", "last", 2.0, "ok"),
        ("Answer: none", "slot", None, "no_value"),
        ("", "slot", None, "no_value"),
        ("Answer: 2 kg", "slot", 2.0, "wrong_unit"),
        ("Answer: 2 or 3", "slot", 2.0, "ambiguous"),
        ("Answer: 2-three", "slot", 2.0, "ambiguous"),
        ("Answer: 5", "slot", 5.0, "off_tolerance"),
    ],
)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_which_number_counts_and_why_it_fails(text, pick, value, status, backend):
    match = match_number([text], [2.5], unit="s", abs_tolerance=0.5, pick=pick, backend=backend)
    assert match.reasons() == [status]
    assert match.values[0, 0].item() == value or (value is None and match.values[0, 0].isnan())


UNIT = st.sampled_from(["", "s", "min", "km", "times", "%", "furlongs"])


@given(st.lists(TEXTS, max_size=4), st.data())
@settings(max_examples=400)
def test_compiled_equals_reference(texts, data):
    texts = [*texts, *(t.encode() + b"\xc3" + t.encode() for t in texts[:1])]
    units = [data.draw(UNIT) for _ in texts]
    gold = [data.draw(st.sampled_from([0.0, 1.0, 12.5, -345.0, math.nan, math.inf])) for _ in texts]
    after, pick = data.draw(
        st.sampled_from([(None, "first"), (None, "last"), ("Answer:", "slot"), ("answer:", "last")])
    )
    options = {"unit": units, "abs_tolerance": 0.5, "rel_tolerance": 0.1, "pick": pick, "after": after}
    found, plain = (match_number(texts, gold, backend=b, **options) for b in ("cpp", "reference"))
    assert figures(found) == figures(plain)
    spans = [[(0.0, 12.0), (1.0, 2.0)], [], [(3.0, 1.0), (math.nan, 2.0)], [(1.0, 100.0)]]
    own = [data.draw(st.sampled_from(spans)) for _ in texts]
    found, plain = (match_interval(texts, own, pick=pick, after=after, backend=b) for b in ("cpp", "reference"))
    assert figures(found) == figures(plain)


@given(TEXTS, UNIT, st.sampled_from(["first", "last"]))
@settings(max_examples=300)
def test_reads_what_the_matching_stage_reads(text, unit, pick):
    assume(not any(char in text for char in "ſ\u212a\u0301٣"))
    case = Case(text, 0, len(text), Label("number", "n", 0, unit=unit or None))
    read = {"first": numbers.first_number, "last": numbers.last_number}[pick](case, Names([], {}))
    match = match_number([text], [0.0], unit=unit, abs_tolerance=math.inf, pick=pick, after=None)
    reason = match.reasons()[0]
    assert reason == {"negated": "ok"}.get(read.reason, read.reason)
    if read.span is not None:
        begin, end = (len(text[:at].encode()) for at in read.span)
        assert match.span.tolist() == [[begin, end]]
        assert match.values[0, 0].item() == read.value
        assert match.negated.item() or read.reason != "negated"
    label = Label("interval", "n", (0.0, 1.0))
    pair = {"first": numbers.first_interval, "last": numbers.last_interval}[pick](
        case._replace(label=label), Names([], {})
    )
    match = match_interval([text], [(0.0, 1.0)], iou=0.0, pick=pick, after=None)
    assert match.reasons()[0] == {"negated": "ok"}.get(pair.reason, pair.reason)
    if pair.value is not None:
        assert tuple(match.values[0].tolist()) == pair.value


@given(
    st.fractions(0, 100, max_denominator=8),
    st.fractions(-100, 100, max_denominator=8),
    st.fractions(0, 2, max_denominator=8),
)
def test_tolerance_is_that_of_exact_fractions(value, gold, relative):
    absolute = Fraction(1, 4)
    match = match_number(
        [str(float(value))], [float(gold)], abs_tolerance=0.25, rel_tolerance=float(relative), pick="first", after=None
    )
    assert match.matched.item() == (abs(value - gold) <= absolute + relative * abs(gold))


@given(st.lists(st.fractions(0, 60, max_denominator=4), min_size=4, max_size=4))
def test_iou_is_that_of_exact_fractions(times):
    a, b, c, d = times
    match = match_interval(
        [f"from {float(a)} to {float(b)} s"], [[(float(c), float(d)), (59.5, 60.0)]], after=None, pick="first"
    )
    if a >= b:
        assert match.reasons() == ["wrong_order"] and match.best.item() == -1
        return
    shares = [max(Fraction(0), (min(b, y) - max(a, x)) / (max(b, y) - min(a, x))) if x < y else Fraction(0)
              for x, y in ((c, d), (Fraction(119, 2), Fraction(60)))]  # fmt: skip
    assert match.score.item() == pytest.approx(float(max(shares)), abs=1e-15)
    assert match.matched.item() == (max(shares) >= Fraction(1, 2))
    assert match.best.item() == (shares.index(max(shares)) if max(shares) else -1)


def test_compiled_words_and_units_are_those_of_the_table():
    assert [_C.find_unit(name) for name in UNITS] == list(range(len(UNITS)))
    words = {**NUMBER_WORDS, **OFTEN, **{f"one {word}": factor for word, factor in SCALES.items()}}
    match = match_number(list(words), list(map(float, words.values())), after=None, pick="first", backend="cpp")
    assert match.matched.all() and match.span[:, 1].tolist() == list(map(len, words))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_best_of_several_spans_counts(backend):
    said = ["Answer: 2 to 4", "Answer: 00:02 - 00:04", "Answer: 4 to 2", "Answer: 2 to 4", "Answer: 2 to 4"]
    spans = [[(0.0, 1.0), (2.0, 5.0), (1.0, 4.5)], [(2.0, 4.0), (2.0, 4.0)], [(2.0, 4.0)]]
    spans += [[(4.0, 2.0), (math.nan, 4.0)], []]
    match = match_interval(said, spans, iou=2 / 3, backend=backend)
    assert match.reasons() == ["ok", "ok", "wrong_order", "low_iou", "low_iou"]
    assert match.best.tolist() == [1, 0, -1, -1, -1]
    assert match.score.tolist() == pytest.approx([2 / 3, 1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_denied_number_is_flagged_and_a_missing_one_fits_nothing(backend):
    match = match_number(["Answer: not 3", "Answer: 3"], [3.0, math.nan], rel_tolerance=math.inf, backend=backend)
    assert match.negated.tolist() == [True, False] and match.matched.tolist() == [True, False]


def test_no_rows_and_one_span_a_row():
    assert match_number([], []).matched.shape == (0,)
    assert match_interval([], []).matched.shape == (0,)
    match = match_interval(["2 to 4", "2 to 4"], torch.tensor([[2.0, 4.0], [3.0, 4.0]]), after=None, pick="first")
    assert match.score.tolist() == [1.0, 0.5]


def test_bad_arguments_are_named():
    bad = [
        (lambda: match_number(["1"], [1.0, 2.0]), r"gold must be one number, or \[1\]"),
        (lambda: match_number(["1"], [None]), r"gold must be numbers, not \[None\]"),
        (lambda: match_number(["1"], [1.0], unit=["s", "s"]), "2 units for 1 rows"),
        (lambda: match_number(["1"], [1.0], pick="any"), "unknown pick 'any'"),
        (lambda: match_number(["1"], [1.0], after=None), "needs the literal"),
        (lambda: match_number(["1"], [1.0], lengths=[1]), "`tokens`"),
        (lambda: match_interval(["1"], []), "spans for 0 rows"),
        (lambda: match_interval(["1"], [[(1.0, 2.0, 3.0)]]), "begin, end"),
        (lambda: match_interval(["1"], [(1.0, 2.0, 3.0)]), "begin, end"),
        (lambda: match_interval(["1"], [(1.0, 2.0)], iou=2.0), "iou is 2.0"),
        (lambda: match_interval(["1"], [(1.0, 2.0)], iou=math.nan), "iou is nan"),
        (lambda: match_number(["1"], [1.0], abs_tolerance=-1), "abs_tolerance is -1"),
        (lambda: match_number(["1"], [1.0], rel_tolerance=math.nan), "rel_tolerance is nan"),
        (lambda: match_interval(["1"], torch.ones(1, 3)), r"\[B, 2\] or \[B, S, 2\]"),
        (lambda: match_number("1", [1.0]), "list of texts"),
    ]
    for call, message in bad:
        with pytest.raises(DataError, match=message):
            call()
    if not backends.available("cuda").ok:
        with pytest.raises(BackendError, match="Remedy"):
            match_number(["1"], [1.0], backend="cuda")
