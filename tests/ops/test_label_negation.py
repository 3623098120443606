"""label_match: a label that is denied, and how far a denial reaches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vstar_fast.kernels.label_match.reference import denied

from vstar_fast.ops import LabelSet, label_match

pytestmark = pytest.mark.usefixtures("poison")

LABELS = LabelSet(
    ["snow", "snowboard", "back flip", "kick", "spin kick", "été", "C++", "(x)", "字 a", "extraordinarily long"],
    aliases={"back flip": ["backflip"]},
)
WORDS = [*LABELS.names, "Answer:", "not a ", "isn't ", "never", "snowboarding", "KICK", "\u212aick", "ſnow", "é", "😀"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a kick", False),
        ("not a kick", True),
        ("isn't really a kick", True),
        ("isn\u2019t a kick", True),
        ("not only a kick", False),
        ("It is not one two three kick", True),
        ("It is not one two three four kick", False),
        ("not. A kick", False),
        ("rather than (kick", True),
        ("nothing, a kick", False),
        ("cannot_kick", True),
        ("NO \u201ckick\u201d", True),
        ("kick, not kick", True),
        ("neither kick", True),
    ],
)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_denied_label_is_flagged_and_still_matched(text, expected, backend):
    match = label_match([text], LABELS, ["kick"], negation=True, backend=backend)
    assert (match.matched.item(), match.negated.item()) == (True, expected)
    assert not label_match([text], LABELS, ["kick"], backend=backend).negated.item()


def test_the_search_for_a_denial_ends_where_the_slot_begins():
    match = label_match(["not Answer: kick"], LABELS, ["kick"], after="Answer:", negation=True)
    assert not match.negated.item()


@given(
    st.lists(
        st.sampled_from(
            ["not", "no", "n't", "n’t", "never", "rather than", "but", "only", "ſt", "İ", "wıthout", "x", "é"]
        )
        | st.sampled_from([" ", "_", "-", '"', "*", "(", ". ", "\u0301", "\u2013", "\x1f", "‘", "x" * 50]),
        max_size=9,
    )
)
@settings(max_examples=400)
def test_denial_is_the_pattern_of_the_specification(parts):
    text = ("".join(parts) + " kick").encode()
    match = label_match([text], LABELS, ["kick"], negation=True)
    if match.matched.item():
        assert match.negated.item() == denied(text, 0, len(text) - 4)
