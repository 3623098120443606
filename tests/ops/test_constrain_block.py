"""The CUDA kernels of constrain, their own source, run by 8 CPU threads as a block and compared with the CPU path."""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from vstar_fast.kernels.constrain import backend, cpp

from constrain_tools import small_vocab
from vstar_fast import ops

GXX = shutil.which("g++")

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to build the kernels for the CPU")

NAMES = ["walk the dog", "walk", "snow", "snowboard", "\u00e9t\u00e9"]


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("block") / "block.so"
    source = Path(__file__).with_name("block_on_cpu.cpp")
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", "-w"]
    subprocess.run([GXX, *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


class Emulated:
    """The backend's five functions on the emulated blocks."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def _call(self, name: str, rows: backend.Rows, *arguments: object) -> None:
        kinds = {int: ctypes.c_int64, float: ctypes.c_float}
        every = (rows.block.data_ptr(), *rows.pointers(), *arguments)
        getattr(self.library, name)(*(kinds[type(value)](value) for value in every))

    def advance(self, rows, tokens):
        self._call("advance", rows, tokens.data_ptr())
        return 0

    def mask(self, rows, logits):
        self._call("mask", rows, *backend.logits_pointers(logits))

    def advance_mask(self, rows, logits, tokens, tickets):
        self._call("advance_mask", rows, tokens.data_ptr(), tickets.data_ptr(), *backend.logits_pointers(logits))

    def fill(self, rows, out, filled):
        self._call("fill", rows, out.data_ptr(), out.stride(0))

    def forced(self, rows, tokens, lengths, advance):
        self._call("forced", rows, tokens.data_ptr(), lengths.data_ptr(), tokens.shape[1], int(advance))

    def sample(self, rows, logits, draw):
        self._call("sample", rows, *backend.logits_pointers(logits), *draw.pointers())


def rows_of(kind: str, budget: int | None, columns: int | None = None) -> ops.DecodeState:
    """Rows of sparse, dense, counted and canonical automata, and a free one."""
    vocab = small_vocab(kind)
    if columns:
        vocab = ops.TokenVocab(vocab.tokens, eos_ids=vocab.eos_ids, logits_size=columns)
    label = ops.choice(NAMES)
    text = ops.template("{why}\nA: {x}", why=ops.text(), x=label)
    made = [
        ops.compile(ops.template("Answer: {x}", x=label), vocab),
        ops.compile(text, vocab),
        ops.compile(ops.interval(20, decimals=1), vocab),
        None,
        ops.compile(ops.text(most_chars=5), vocab),
    ]
    return ops.DecodeState(made, max_new_tokens=budget)


@pytest.mark.parametrize("budget", [None, 24])
@pytest.mark.parametrize(
    ("dtype", "temperature", "top_p", "top_k"),
    [
        (torch.float32, 0.0, 1.0, 0), (torch.float32, 1.0, 1.0, 0), (torch.bfloat16, 0.5, 0.8, 0),
        (torch.float16, 2.0, 1.0, 3), (torch.float32, 1.0, 0.6, 4), (torch.bfloat16, 1.0, 0.999, 40),
    ],
)  # fmt: skip
def test_blocks_give_what_the_loop_gives(block, dtype, temperature, top_p, top_k, budget):
    ours, theirs, seeds = rows_of("twins", budget), rows_of("twins", budget), torch.arange(5) * 31
    ours._run = Emulated(block)
    for step in range(10):
        logits = (2 * torch.randn(5, 300, generator=torch.Generator().manual_seed(step))).to(dtype)
        logits[:, 3::17] = -0.0
        logits[:, 5::17] = 0.0
        wide = torch.zeros(5, 309, dtype=dtype)
        wide[:, 2:302] = logits
        assert torch.equal(ours.mask_(wide[:, 2:302]), theirs.mask_(logits.clone()))
        assert torch.equal(ours.mask_(logits.clone()), theirs.mask_(logits.clone()))
        out = torch.full((5, 12), 7, dtype=torch.int32)
        assert torch.equal(ours.fill_bitmask(out[:, :10]), theirs.fill_bitmask())
        forced = ours.forced(4, advance=False), theirs.forced(4, advance=False)
        assert all(torch.equal(a, b) for a, b in zip(*forced, strict=True))
        got = ours.sample_(logits, seeds, temperature, top_p, top_k)
        want = theirs.sample_(logits, seeds, temperature, top_p, top_k)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1], atol=2e-5, rtol=1e-5)
        for name in ("state", "remaining", "step"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("budget", "columns"), [(None, 300), (24, 300), (None, 20_000)])
def test_a_move_and_its_mask_in_one_launch(block, dtype, budget, columns):
    """Also over several blocks a row, and with tokens that are not legal."""
    ours, theirs = (rows_of("twins", budget, columns) for _ in range(2))
    ours._run = Emulated(block)
    seeds = torch.arange(5) * 17
    for step in range(8):
        logits = torch.randn(5, columns, generator=torch.Generator().manual_seed(step)).to(dtype)
        tokens = theirs.sample_(logits, seeds)[0] if step % 4 else torch.randint(-2, 280, (5,))
        if step % 4 == 0:
            theirs.advance_(tokens, strict=False)
        assert torch.equal(ours.advance_mask_(logits.clone(), tokens), theirs.mask_(logits.clone()))
        assert not ours._tickets.any()
        for name in ("state", "remaining", "step"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_rows_that_were_joined_have_a_ticket_each(block):
    """One launch counts its blocks there: with fewer tickets than rows it writes behind them."""
    grammar = ops.compile(ops.template("Answer: {x}", x=ops.choice(NAMES)), small_vocab("twins"))
    parts = [ops.DecodeState(grammar, rows) for rows in (1, 4)]
    joined, twin = parts[0].join(parts[1]), ops.DecodeState(grammar, 5)
    assert len(joined._tickets) == 5 and joined._tickets.data_ptr() != parts[0]._tickets.data_ptr()
    joined._run, logits = Emulated(block), torch.randn(5, 300)
    tokens = twin.sample_(logits, torch.arange(5))[0]
    assert torch.equal(joined.advance_mask_(logits.clone(), tokens), twin.mask_(logits.clone()))
    assert not joined._tickets.any()


def test_moves_lost_rows_and_logits_that_are_no_distribution(block):
    ours, theirs = rows_of("twins", None), rows_of("twins", None)
    run = Emulated(block)
    for tokens in ([65, 66, 49, 3, 259], [110, 0, 46, 5, 1], [-1, 10, 50, 7, 262], [262, 262, 262, 262, 262]):
        chosen = torch.tensor(tokens)
        run.advance(ours._rows, chosen)
        cpp.advance(theirs._rows, chosen)
        assert torch.equal(ours.state, theirs.state) and torch.equal(ours.step, theirs.step)
    ours.reset()
    logits = torch.zeros(5, 300)
    logits[0], logits[1], logits[2] = math.nan, -math.inf, math.inf
    logits[4] = -math.nan
    ids, logprobs = torch.full((5,), 9), torch.zeros(5)
    run.sample(ours._rows, logits, backend.Draw(torch.arange(5), ids, logprobs, 1.0, 1 << 62, 0))
    assert ids[:3].tolist() == [-1, -1, -1] and ids[4] == -1 and ids[3] >= 0
    assert logprobs[[0, 1, 2, 4]].isnan().all() and torch.equal(ours.state, ours._starts)
