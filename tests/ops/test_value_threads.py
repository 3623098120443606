"""The CUDA kernels of value_match, their own source, run on the CPU and compared with the CPU path."""

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from vstar_fast.kernels.value_match import job
from vstar_fast.kernels.value_match.result import Stated

from value_tools import WORDS, figures
from vstar_fast.errors import DataError
from vstar_fast.ops import LabelSet, TokenBytes, match_interval, match_number, match_sequence

GXX = shutil.which("g++")

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to build the kernels for the CPU")


LABELS = LabelSet(["five", "e five", "five five", "s", "million"])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("threads") / "threads.so"
    source = Path(__file__).with_name("threads_on_cpu.cpp")
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    subprocess.run([GXX, *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture
def emulated(kernels, monkeypatch) -> None:
    """The "cpp" backend runs the CUDA kernels instead: rows of bytes and rows of ragged int32 ids."""

    def run(call: job.Call) -> job.Found:
        made, tables = job._Job(call.own, call.rows.size, call.pick), call.tables(torch.device("cpu"))
        pointers, *numbers = made.arguments
        values = (ctypes.c_int64 * len(pointers))(*pointers)
        if hasattr(call.rows, "tokens"):
            ids, offsets, tokens = call.rows.ids, call.rows.offsets, call.rows.tokens
            each, workers = int(offsets.diff().max()) * tokens.longest, 5
            scratch = torch.zeros(workers * each, dtype=torch.uint8)
            where = tables, tokens.table(), ids, offsets
            room = ctypes.c_void_p(scratch.data_ptr()), ctypes.c_int64(each), workers
            kernels.values_of_ids(*(ctypes.c_void_p(x.data_ptr()) for x in where), values, *numbers, *room)
        else:
            where = tables, call.rows.text, call.rows.offsets
            kernels.values_of_text(*(ctypes.c_void_p(x.data_ptr()) for x in where), values, *numbers)
        return made.found

    monkeypatch.setattr(job, "cpp", run)


def rows_of(rng: random.Random) -> list[bytes]:
    """300 rows: more than two blocks of threads."""
    pieces = [*(word.encode() for word in WORDS.split(" ")), b" ", b" ", b"\xc3", b" to ", b" or "]
    return [b"".join(rng.choices(pieces, k=rng.randint(0, 12))) for _ in range(300)]


def calls(rows: object, tokens: TokenBytes | None) -> list[Stated]:
    gold, spans = [float(i % 9) for i in range(300)], [[(0.0, float(i)), (1.0, 3.0)] for i in range(300)]
    own = [[(i + k) % 5 for k in range(i % 4)] for i in range(300)]
    picks = ((None, "first"), ("answer:", "slot"), ("answer:", "last"))
    return [
        made
        for after, pick in picks
        for made in (
            match_number(rows, gold, unit="s", abs_tolerance=2.0, pick=pick, after=after, tokens=tokens),
            match_interval(rows, spans, pick=pick, after=after, tokens=tokens),
            match_sequence(rows, LABELS, own, after=after, tokens=tokens),
        )
    ]


@pytest.mark.parametrize("from_ids", [False, True])
def test_the_kernels_find_what_the_loop_finds(from_ids, request):
    rng = random.Random(3)
    rows, tokens = rows_of(rng), None
    data, offsets = b"".join(rows), torch.tensor([0, *map(len, rows)]).cumsum(0)
    given = torch.frombuffer(bytearray(data), dtype=torch.uint8), offsets
    if from_ids:
        table = [None, *(bytes([byte]) for byte in range(256)), b" a token longer than fifteen bytes 12"]
        tokens, ids = TokenBytes(table), given[0].int() + 1
        ids[rng.choices(range(len(ids)), k=40)] = torch.tensor(rng.choices([0, 257], k=40), dtype=torch.int32)
        given = ids, offsets
    expected = calls(given, tokens)
    request.getfixturevalue("emulated")
    found = calls(given, tokens)
    assert [figures(a) for a in found] == [figures(b) for b in expected]
    assert len({x for match in found for x in match.reasons()}) == 10
    if from_ids:
        given[0][offsets[7]] = 999
        bad = match_number(given, [0.0] * 300, tokens=tokens)
        assert bad.reasons()[7] == "no_value" and bad.span[7].tolist() == [-1, -1]
        items = match_sequence(given, LABELS, [[0, 1]] * 300, tokens=tokens)
        assert items.items[7].eq(-1).all() and items.count[7] == -1
        with pytest.raises(DataError, match="row 7 has an id at position 0"):
            bad.check()
