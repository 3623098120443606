"""`constrain` on a GPU: a move and its mask in one launch, and a draw, at the width of a 152k vocabulary in bf16.

The baseline is what engines do with xgrammar: fill bitmasks on the host, copy them, apply its kernel, accept the
tokens on the host. Targets are microseconds a step, given as ratios of the goal to the time; the share of the memory
bandwidth is that of a plain fill of the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast import ops

if TYPE_CHECKING:
    from vstar_fast.bench.constrain_rivals import Xgrammar
    from vstar_fast.bench.runner import Bench

ROWS, COLUMNS = 256, 152_064
STEP_GOAL_US, SAMPLE_GOAL_US = 25.0, 8.0


def against_goal(bench: Bench, case: str, goal_us: float) -> None:
    """A row for the time just taken, with the goal's ratio to it."""
    value = bench.latest().value
    bench.add(
        case=case, subject="vstar-fast", baseline=f"{goal_us:g} us", metric="gpu", value=value, unit="us/step",
        ratio=None if value is None else goal_us / value, equal=value is not None, target=1.0, backend="cuda",
    )  # fmt: skip


def wide_vocabulary(vocab: ops.TokenVocab) -> ops.TokenVocab:
    """The same tokens in logits of 152k columns."""
    return ops.TokenVocab(vocab.tokens, eos_ids=vocab.eos_ids, logits_size=COLUMNS)


def host_step(rival: Xgrammar, compiled: Any, ids: list[int], logits: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Accept, fill, copy and apply, as engines do it; every row takes its token and goes back."""
    matchers = [rival.xgr.GrammarMatcher(compiled) for _ in range(ROWS)]
    batch = rival.xgr.BatchGrammarMatcher(max_threads=1)
    bits = rival.xgr.allocate_token_bitmask(ROWS, COLUMNS).pin_memory()

    def run() -> torch.Tensor:
        batch.batch_accept_token(matchers, ids)
        batch.batch_fill_next_token_bitmask(matchers, bits)
        rival.xgr.apply_token_bitmask_inplace(logits, bits.to(logits.device, non_blocking=True))
        for matcher in matchers:
            matcher.rollback(1)
        return logits

    return run


def on_gpu(bench: Bench, names: list[str], prefix: str, vocab: ops.TokenVocab, rival: Xgrammar | None) -> None:
    """One step of 256 rows behind the first token of the prefix."""
    wide = wide_vocabulary(vocab)
    grammar = ops.compile(ops.template(prefix + "{x}", x=ops.choice(names)), wide)
    start = ops.DecodeState(grammar, ROWS, "cuda")
    logits = torch.randn(ROWS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    seeds = torch.arange(ROWS, device="cuda")
    first = start.sample_(logits, seeds, 0.0)[0]
    state, ours, filled = ops.DecodeState(grammar, ROWS, "cuda"), logits.clone(), logits.clone()

    def step() -> torch.Tensor:
        state.reset()
        return state.advance_mask_(ours, first)

    def fill() -> torch.Tensor:
        return filled.fill_(-math.inf)

    case = f"advance and mask, {len(names)} labels, B={ROWS}, V={COLUMNS}, bf16"
    bench.compare(
        f"{case}, against filling the logits", step, fill, equal=lambda a, b: bool((a.isinf() <= b.isinf()).all()),
        names=("vstar-fast", "torch fill_"), work=(1, "step"), target=0.85, backend="cuda", graph="both",
    )  # fmt: skip
    against_goal(bench, case, STEP_GOAL_US)
    if rival is not None:
        theirs = logits.clone()
        compiled = rival.compile_for(wide, names)
        bench.compare(
            case, step, host_step(rival, compiled, first.tolist(), theirs), equal=torch.equal,
            names=("vstar-fast", "xgrammar fill, copy, apply, accept"), work=(1, "step"),
            target=30.0 if len(names) <= 700 else 800.0, metric="wall", backend="cuda",
        )  # fmt: skip

    def draw() -> torch.Tensor:
        state.reset()
        return state.sample_(logits, seeds, 0.0)[0]

    def masked_argmax() -> torch.Tensor:
        state.reset()
        return state.mask_(logits.clone()).argmax(-1)

    case = f"sample, {len(names)} labels, B={ROWS}, V={COLUMNS}, bf16"
    bench.compare(
        case, draw, masked_argmax, equal=torch.equal, names=("vstar-fast", "mask and argmax"), work=(1, "step"),
        backend="cuda", graph="both",
    )  # fmt: skip
    against_goal(bench, case, SAMPLE_GOAL_US)
