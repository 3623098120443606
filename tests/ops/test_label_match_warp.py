"""The CUDA kernels of label_match, their own source, run by 32 CPU threads as a warp and compared with the CPU path."""

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from vstar_fast.kernels.label_match.labels import fold_literal

from vstar_fast.errors import DataError
from vstar_fast.ops import LabelMatch, LabelSet, TokenBytes, label_match

GXX = shutil.which("g++")

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to build the kernel for the CPU")

LABELS = LabelSet(["kick", "spin kick", "kick ball", "été", "k k", "spin"], aliases={"k k": ["k"]})
ROWS = 60


@pytest.fixture(scope="module")
def warp(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("warp") / "warp.so"
    source = Path(__file__).with_name("warp_on_cpu.cpp")
    command = [GXX, "-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-w", "-o", library, source]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def call(function, *arguments: object) -> None:
    """Tensors go as pointers, 64-bit numbers as c_int64, the rest as int."""
    function(*(ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else x for x in arguments))


def rows_of(rng: random.Random) -> list[bytes]:
    """Rows of 0 to 100 bytes: labels, fillers, separators, denials and broken UTF-8."""
    pieces = [name.encode() for name in LABELS.names]
    pieces += [b"Kick", b"x", b"\xc3", "é".encode(), b" ", b"__", b". ", b"ab:", b"not ", b"isn't ", b"\xa9"]
    return [b"".join(rng.choices([*pieces, b" "], k=rng.randint(0, 20))) for _ in range(ROWS)]


def results() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((ROWS, 16), 99, dtype=torch.int32), torch.zeros((ROWS, 1), dtype=torch.int32)


def same(found: tuple[torch.Tensor, torch.Tensor], expected: LabelMatch) -> None:
    assert found[0].tolist() == expected.table.tolist()
    assert torch.equal(found[1], expected.which_bits)
    assert expected.matched.sum() > 1
    if (expected.searched_from == 0).all():
        assert expected.inside_longer.any() and expected.negated.any()


@pytest.mark.parametrize("after", [None, "ab:"])
def test_a_warp_finds_what_the_loop_finds(warp, after):
    rng = random.Random(3)
    rows, own = rows_of(rng), [rng.randrange(-1, len(LABELS)) for _ in range(ROWS)]
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    text, labels = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8), torch.tensor(own, dtype=torch.int32)
    tables = LABELS.tables(() if after is None else fold_literal(after))
    found = results()
    call(warp.label_match_warp, tables, text, offsets, labels, *found, ROWS, 1, 1)
    same(found, label_match(rows, LABELS, own, after=after, which=True, negation=True))


@pytest.mark.parametrize("after", [None, "ab:"])
def test_a_warp_reads_ids_as_the_loop_does(warp, after):
    rng = random.Random(4)
    pieces: list[bytes | None] = [None, b""]
    rows = []
    for text in rows_of(rng):
        row = []
        while text:
            size = rng.choice((1, 2, 3, 5, 30))
            row += [len(pieces), *rng.choices((0, 1), k=rng.randint(0, 1))]
            pieces.append(text[:size])
            text = text[size:]
        rows.append(row)
    tokens, own = TokenBytes(pieces), [rng.randrange(-1, len(LABELS)) for _ in range(ROWS)]
    ids = torch.tensor([x for row in rows for x in row], dtype=torch.int32)
    offsets, labels = torch.tensor([0, *map(len, rows)]).cumsum(0), torch.tensor(own, dtype=torch.int32)
    literal = () if after is None else fold_literal(after)
    tables, hints = LABELS.tables(literal), LABELS.hints(tokens, literal, torch.device("cpu"))
    found = results()
    arguments = (tables, tokens.table(), hints, ids, offsets, labels, *found, ROWS, 1, 1)
    call(warp.label_match_ids_warp, *arguments)
    same(found, label_match(rows, LABELS, own, tokens=tokens, after=after, which=True, negation=True))
    ids[offsets[7] + 1] = len(pieces)
    call(warp.label_match_ids_warp, *arguments)
    assert found[0][7].tolist()[:5] == [-1] * 5 and found[0][7, 14] == 1
    with pytest.raises(DataError, match="row 7 has an id at position 1"):
        LabelMatch(*found, LABELS, "cuda").check()
