"""constrain: numbers, times and intervals, all that the automaton lets through against enumerations written here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_tools import allowed, small_vocab
from vstar_fast import ops

pytestmark = pytest.mark.usefixtures("poison")


def answers(node: object) -> set[bytes]:
    """All that the automaton spells with one-byte tokens."""
    vocab = small_vocab("twins")
    grammar = ops.compile(node, vocab)
    single = [t for t in range(256) if vocab.tokens[t] == bytes([t])]
    found: set[bytes] = set()
    ways: list[tuple[int, ...]] = [()]
    while ways:
        state = ops.DecodeState(grammar, len(ways))
        for column in range(len(ways[0])):
            state.advance_(torch.tensor([way[column] for way in ways]))
        longer = []
        for row, way in enumerate(ways):
            legal = set(allowed(state, row))
            if legal & set(vocab.eos_ids):
                found.add(bytes(way))
            longer += [(*way, token) for token in single if token in legal]
        ways = longer
    return found


def clock(second: int, form: str) -> str:
    if form == "s":
        return str(second)
    if form == "hh:mm:ss":
        return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    return f"{second // 60:02d}:{second % 60:02d}" if form == "mm:ss" else f"{second // 60}:{second % 60:02d}"


@settings(max_examples=15)
@given(low=st.integers(0, 120), more=st.integers(0, 30), form=st.sampled_from(["s", "mm:ss", "m:ss", "hh:mm:ss"]))
def test_times_lie_between_their_bounds(low, more, form):
    expected = {clock(x, form).encode() for x in range(low, low + more + 1)}
    assert answers(ops.time(low + more, low_s=low, form=form)) == expected


@pytest.mark.parametrize(("low", "high"), [(3597, 3603), (35_998, 36_001)])
def test_times_over_the_hour(low, high):
    expected = {clock(x, "hh:mm:ss").encode() for x in range(low, high + 1)}
    assert answers(ops.time(high, low_s=low, form="hh:mm:ss")) == expected


@settings(max_examples=15)
@given(low=st.integers(0, 5), more=st.integers(0, 9), least=st.integers(0, 9), form=st.sampled_from(["s", "mm:ss"]))
def test_intervals_end_after_they_start_and_inside_the_duration(low, more, least, form):
    least, high = min(least, more), low + more
    pairs = [(a, b) for a in range(low, high + 1) for b in range(a + least, high + 1)]
    expected = {f"{clock(a, form)} - {clock(b, form)}".encode() for a, b in pairs}
    assert answers(ops.interval(high, low_s=low, least_s=least, form=form)) == expected


def test_intervals_of_tenths_stay_below_a_duration_between_them():
    pairs = [(a, b) for a in range(13) for b in range(a, 13)]
    expected = {f"{a / 10:.1f} to {b / 10:.1f}".encode() for a, b in pairs}
    assert answers(ops.interval(1.29, decimals=1, separator=" to ")) == expected


@settings(max_examples=15)
@given(low=st.integers(-120, 120), more=st.integers(0, 60))
def test_numbers_lie_between_their_bounds(low, more):
    assert answers(ops.number(low, low + more)) == {str(x).encode() for x in range(low, low + more + 1)}


def test_decimals():
    expected = {f"{x / 10:.1f}".encode() for x in range(-11, 26) if x}
    assert answers(ops.number(-1.1, 2.5, decimals=1)) - {b"0.0", b"-0.0"} == expected
    assert answers(ops.number(digits=1, decimals=(0, 1))) >= {b"0", b"9", b"0.0", b"9.9"}


def test_repeats_and_optional_parts():
    node = ops.template("{a}{b}", a=ops.repeat("ab", 1, 3), b=ops.optional("."))
    assert answers(node) == {b"ab" * n + dot for n in (1, 2, 3) for dot in (b"", b".")}
