"""A crew against one scheduler with all threads, on a CPU: answers in batches that do not wait for each other.

The wall counts here; with one thread there is nothing to compare, and a row says so.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from vstar_fast.bench.language_models import build

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

    from vstar_fast.engine import Request

CASES = {"SmolLM2-135M": (128, 48, 24), "tiny": (64, 16, 8)}
"""Model -> prompts, tokens of each, tokens of its answer."""


def run(bench: Bench, quick: bool) -> None:
    """Greedy answers to different prompts, 64 at once, and 64 at once by each of the crew."""
    import torch

    from vstar_fast.engine import Crew, Scheduler, TextLM
    from vstar_fast.engine.crew import workers_for

    model = "tiny" if quick else "SmolLM2-135M"
    prompts, length, tokens = CASES[model]
    lm = TextLM(build(model))
    workers, threads = workers_for(lm), torch.get_num_threads()
    case = f"{model}, {prompts} prompts of {length} tokens, {tokens} new"
    if workers == 1:
        bench.absent(case, "crew", "one thread: a crew is one scheduler then; run with more threads")
        return
    asked = _asked(lm, prompts, length, tokens)
    bench.compare(
        case,
        partial(_drawn, Crew(lm), asked),
        partial(_drawn, Scheduler(lm), asked),
        equal=lambda ours, theirs: ours == theirs,
        names=(f"crew of {workers}", f"one scheduler, {threads} threads"),
        work=(prompts, "answer"),
        metric="wall",
        threads=threads,
    )


def _asked(lm: Any, prompts: int, length: int, tokens: int) -> list[Request]:
    import torch

    from vstar_fast.engine import Request, Settings

    made = torch.Generator().manual_seed(1)
    ids = torch.randint(6, lm.model.config.vocab_size, (prompts, length), generator=made)
    return [Request(row[:0], row, None, [0], Settings(max_new_tokens=tokens)) for row in ids]


def _drawn(drawing: Any, asked: list[Request]) -> list[list[int]]:
    found = {id(request): answers[0].token_ids for request, answers in drawing.run(asked)}
    return [found[id(request)] for request in asked]
