"""Saved grammars: the same after loading; anything else gives a clean error and never a crash. And the cache."""

import contextlib
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrain_tools import Members, small_vocab, walk
from vstar_fast import ops
from vstar_fast.errors import ConstrainError

MADE = ops.template("{why}\nA: {x}", why=ops.text(), x=ops.choice(["kick", "spin kick", "snow", "snowboard"]))


def saved() -> bytes:
    return ops.compile(MADE, small_vocab("byte_level")).to_bytes()


def resigned(data: bytes) -> bytes:
    """Bytes whose checksums are made right again, so that the check behind them is reached."""
    import hashlib

    body = bytearray(data[:-8])
    block = bytes(body[28:])
    if len(block) >= 72:
        block = block[:68] + struct.pack("<I", checksum(block)) + block[72:]
    whole = bytes(body[:28]) + block
    return whole + hashlib.sha256(whole).digest()[:8]


def checksum(block: bytes) -> int:
    """The arena's FNV-1a, in plain integers."""
    h, mask = 0xCBF29CE484222325, (1 << 64) - 1
    for i in range(0, len(block) // 8 * 8, 8):
        (word,) = struct.unpack_from("<Q", block, i)
        word = word & 0xFFFFFFFF if i == 64 else word
        h = ((h ^ word) * 0x100000001B3) & mask
        h ^= h >> 32
    for byte in block[len(block) // 8 * 8 :]:
        h = ((h ^ byte) * 0x100000001B3) & mask
    return (h ^ (h >> 32)) & 0xFFFFFFFF


def test_what_is_loaded_is_what_was_saved():
    vocab = small_vocab("byte_level")
    grammar = ops.Grammar.from_bytes(saved(), vocab, MADE)
    assert torch.equal(grammar.block, ops.compile(MADE, vocab).block)
    assert grammar.tokenization == "any" and grammar.shortest > 0
    assert resigned(saved()) == saved()
    assert grammar.value("so\nA: kick") == {"why": "so", "x": "kick"}
    with pytest.raises(ConstrainError, match="without its template"):
        ops.Grammar.from_bytes(saved(), vocab).value("so\nA: kick")


@pytest.mark.parametrize("kind", ["byte_level", "twins"])
def test_foreign_bytes_are_refused(kind):
    vocab, data = small_vocab("byte_level"), saved()
    bad = [
        (b"", "0 bytes are no saved grammar"),
        (b"PK\x03\x04" * 20, "no saved grammar"),
        (data[:-1], "damaged or cut short"),
        (data[:40], "damaged or cut short"),
        (data[:7] + b"9" + data[8:], "format b'9'"),
        (data[:100] + bytes([data[100] ^ 1]) + data[101:], "damaged"),
        (resigned(data[:32] + struct.pack("<i", 99) + data[36:]), "its format is 99, this is 1"),
        (resigned(data[:28] + b"ABCD" + data[32:]), "does not begin as one"),
        (resigned(data[:400] + data[-8:]), "bytes of"),
    ]
    for value, message in bad:
        with pytest.raises(ConstrainError, match=message):
            ops.Grammar.from_bytes(value, vocab)
    with pytest.raises(ConstrainError, match="another vocabulary"):
        ops.Grammar.from_bytes(data, small_vocab("twins"))


def survives(data: bytes) -> None:
    """Loading either fails cleanly or gives a grammar that can be used without a crash."""
    vocab = small_vocab("byte_level")
    try:
        grammar = ops.Grammar.from_bytes(data, vocab)
    except ConstrainError:
        return
    state = ops.DecodeState(grammar, 3, max_new_tokens=None)
    for step in range(4):
        logits = torch.randn(3, 330, generator=torch.Generator().manual_seed(step))
        state.fill_bitmask()
        state.mask_(logits.clone())
        state.advance_(torch.tensor([5, 60, 70]) + step, strict=False)


CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)


def change(data: bytes, changes: list[tuple[float, int]], cut: float | None, head: bool) -> bytes:
    body, low = bytearray(data), 28
    high = low + 72 if head else len(data) - 8
    for place, value in changes:
        body[low + int(place * (high - low))] = value
    return bytes(body if cut is None else body[: 28 + int(cut * (len(body) - 28))])


@settings(max_examples=150)
@given(changes=CHANGES, cut=st.none() | st.floats(0, 1), head=st.booleans(), sign=st.booleans())
def test_damaged_bytes_never_crash(changes, cut, head, sign):
    data = change(saved(), changes, cut, head)
    survives(resigned(data) if sign and len(data) > 40 else data)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(changes=CHANGES, cut=st.none() | st.floats(0, 1), head=st.booleans())
def test_damaged_bytes_never_crash_at_length(changes, cut, head):
    data = change(saved(), changes, cut, head)
    survives(resigned(data) if len(data) > 40 else data)


@settings(max_examples=200)
@given(data=st.binary(max_size=60), cut=st.floats(0, 1), start=st.booleans())
def test_programs_that_no_template_writes_never_crash(data, cut, start):
    from vstar_fast import _C

    program = MADE.write()
    made = program[: int(cut * len(program))] + data if start else data
    with contextlib.suppress(ValueError):
        _C.constrain_compile(small_vocab("byte_level").block.data_ptr(), made, None)


def test_programs_with_numbers_out_of_range_are_refused():
    """Each would divide by zero, overflow or fill the memory."""
    from vstar_fast import _C

    def number(lead: int, tail: bytes, *limits: int) -> bytes:
        return struct.pack("<iI", lead, len(tail)) + tail + struct.pack(f"<{len(limits)}q", *limits)

    bad = [
        (b"N" + number(1, bytes([0]), 0, 5), "radix 0"),
        (b"N" + number(2**30, b"", 0, 5), "too many digits"),
        (b"N" + number(0, b"", 0, 5), "too many digits"),
        (b"N" + number(1, bytes([10] * 18), 0, 5), "too many digits"),
        (b"N" + number(1, b":" * 65, 0, 5), "too many digits"),
        (b"N" + number(1, b"", 0, 2**62), "too large"),
        (b"I" + number(1, b"", 0, 10**9, 1) + struct.pack("<I", 1) + b"-", "too many starts"),
        (b"I" + number(1, b"", 0, 2**62, 2**62) + struct.pack("<I", 1) + b"-", "too large"),
        (b"T" + struct.pack("<iiI", 0, 2**30, 0), "too many characters"),
    ]
    for program, message in bad:
        with pytest.raises(ValueError, match=message):
            _C.constrain_compile(small_vocab("byte_level").block.data_ptr(), program, None)


def test_sequences_of_tokens_that_are_no_text_are_refused():
    from vstar_fast import _C

    vocab = small_vocab("byte_level")
    for token in (vocab.eos_ids[0], -1, vocab.logits_size):
        with pytest.raises(ValueError, match=f"token {token} cannot stand in an answer"):
            _C.constrain_compile_sequences(vocab.block.data_ptr(), b"", [[], [token]])


def test_cache_in_memory_and_on_disk(tmp_path):
    vocab = small_vocab("byte_level")
    made = [ops.template("A: {x}", x=ops.choice([f"label {i}", "kick"])) for i in range(4)]
    cache = ops.GrammarCache(size=2, folder=tmp_path)
    first = ops.compile(made[0], vocab, cache=cache)
    assert ops.compile(made[0], vocab, cache=cache) is first and (cache.hits, cache.misses) == (1, 1)
    named = ops.template("A: {y}", y=ops.choice(["label 0", "kick"]))
    again = ops.compile(named, vocab, cache=cache)
    assert again.block is first.block and again.value("A: kick") == {"y": "kick"}
    assert ops.compile(made[0], vocab, "canonical", cache=cache) is not first
    for template in made[1:]:
        ops.compile(template, vocab, cache=cache)
    other = ops.GrammarCache(folder=tmp_path)
    loaded = ops.compile(made[0], vocab, cache=other)
    assert torch.equal(loaded.block, first.block) and (other.hits, other.misses) == (1, 0)
    for path in tmp_path.glob("*.grammar"):
        path.write_bytes(path.read_bytes()[:-3])
    healed = ops.compile(made[0], vocab, cache=ops.GrammarCache(folder=tmp_path))
    assert torch.equal(healed.block, first.block)
    members = Members(made[0].members(10))
    assert walk(ops.DecodeState(healed, 1), vocab, random.Random(0), lambda *_: None) in members.whole
    with pytest.raises(ConstrainError, match="cache size is 0"):
        ops.GrammarCache(size=0)
