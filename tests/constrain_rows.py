"""Batches whose rows follow different grammars, for the tests of constrain's operations."""

import functools

import torch

from constrain_tools import small_vocab
from vstar_fast import ops

NAMES = ["walk the dog", "walk", "snow", "snowboard", "back flip", "\u00e9t\u00e9"]


@functools.cache
def grammars() -> tuple[ops.Grammar, ...]:
    """Sparse, dense, counted and canonical automata of one vocabulary."""
    vocab = small_vocab("byte_level")
    label = ops.choice(NAMES)
    return (
        ops.compile(ops.template("Answer: {x}", x=label), vocab),
        ops.compile(ops.template("{why}\nA: {x}", why=ops.text(), x=label), vocab),
        ops.compile(ops.interval(20, decimals=1), vocab, "forced"),
        ops.compile(ops.template("Answer: {x}", x=label), vocab, "canonical"),
        ops.compile(ops.text(most_chars=6), vocab),
    )


def mixed(rows: int, backend: str = "cpp", device: str = "cpu", budget: int | None = 40) -> ops.DecodeState:
    """Rows of different grammars, every sixth one free."""
    every = [*grammars(), None]
    return ops.DecodeState([every[i % 6] for i in range(rows)], device=device, max_new_tokens=budget, backend=backend)


def make_logits(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, 330, generator=generator)).to(dtype)


def assert_same(ours: ops.DecodeState, theirs: ops.DecodeState) -> None:
    for name in ("state", "remaining", "step", "done", "lost", "complete"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name).cpu()), name
