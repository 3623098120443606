"""The CUDA kernel of label_match, its own source, run by 32 CPU threads as a warp and compared with the CPU path."""

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from vstar_fast.kernels.label_match.labels import fold_literal

from vstar_fast import _C
from vstar_fast.ops import LabelSet

GXX = shutil.which("g++")

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to build the kernel for the CPU")


@pytest.fixture(scope="module")
def warp(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("warp") / "warp.so"
    source = Path(__file__).with_name("warp_on_cpu.cpp")
    command = [GXX, "-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-w", "-o", library, source]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def rows_of(rng: random.Random, labels: LabelSet, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of 0 to 100 bytes: labels, fillers, separators and broken UTF-8."""
    pieces = [
        *(name.encode() for name in labels.names),
        b"Kick",
        b"x",
        b"\xc3",
        "é".encode(),
        b" ",
        b"__",
        b". ",
        b"ab:",
    ]
    texts = [b"".join(rng.choices([*pieces, b" "], k=rng.randint(0, 20))) for _ in range(rows)]
    offsets = torch.tensor([0, *(len(text) for text in texts)]).cumsum(0)
    own = torch.tensor([rng.randrange(-1, len(labels)) for _ in texts], dtype=torch.int32)
    return torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8), offsets, own


@pytest.mark.parametrize("after", [None, "ab:"])
def test_a_warp_finds_what_the_loop_finds(warp, after):
    labels = LabelSet(["kick", "spin kick", "kick ball", "été", "k k", "spin"], aliases={"k k": ["k"]})
    text, offsets, own = rows_of(random.Random(3), labels, 60)
    tables = labels.tables(() if after is None else fold_literal(after))
    found = []
    for threads in ((), (1,)):
        out = torch.full((60, 6), 99, dtype=torch.int32)
        which = torch.zeros((60, 1), dtype=torch.int32)
        pointers = [t.data_ptr() for t in (tables, text, offsets, own)]
        if threads:
            _C.label_match_cpu(*pointers, 60, out.data_ptr(), which.data_ptr(), 1, *threads)
        else:
            first, *rest = map(ctypes.c_void_p, pointers)
            warp.label_match_warp(
                first, *rest, 60, ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(which.data_ptr()), 1
            )
        found.append((out, which))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert (found[0][0][:, 0] >= 0).sum() > 5
    assert found[0][0][:, 5].any()
