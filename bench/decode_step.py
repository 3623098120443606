"""A whole decode step of the engine: recorded against made anew, and its share of what the card can do at best.

32 videos x 8 answers on the shapes of 7B models, random weights (on a CPU a tiny one, steps in bursts without graphs).
At best means: weights, each prefix and each row's own tokens read once at the bandwidth that a copy reaches here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

SHARE = 1 / 1.5
"""Of the roofline, wanted."""


ALIKE = {"cpu": 1.0, "cuda": 0.6}
"""Share of answers whose first two tokens must be the same: in bf16 the two best of 150 thousand random logits change
places in one step of eight or so; a wrong step leaves none alike."""


@dataclass(frozen=True)
class Case:
    """`videos` prompts of `prefix` tokens, `k` answers of `tokens` to each."""

    model: str
    videos: int = 32
    k: int = 8
    prefix: int = 2000
    tokens: int = 96

    def __str__(self) -> str:
        return f"{self.model}, {self.videos} x {self.k}, P={self.prefix}, {self.tokens} new"


def run(bench: Bench, quick: bool) -> None:
    """Seconds a step, recorded and made anew."""
    if bench.device != "cuda":
        measure(bench, Case("tiny", 2, 3, 70, 20), None)
        return
    from vstar_fast.bench import cost

    copied = cost.copy_bytes_s()
    for model in ("Qwen2.5-VL-7B", "Video-LLaVA-7B"):
        measure(bench, Case(model, 8 if quick else 32), copied)
        gc.collect()  # a model hangs on what it was measured with


def measure(bench: Bench, case: Case, copied: float | None) -> None:
    """Rows of one case."""
    from vstar_fast.bench import language_models

    if bench.device == "cuda":
        language_models.check_size(case.model, bench.device)
    model = language_models.build(case.model, bench.device)
    made = torch.Generator().manual_seed(0)
    prompts = torch.randint(6, 500, (case.videos, case.prefix), generator=made)
    anew, anew_s, _ = generate(model, prompts, case, recorded=False)
    found, seconds, scheduler = generate(model, prompts, case, recorded=True)
    same = sum(a[:2] == b[:2] for a, b in zip(found, anew, strict=True)) / len(found)
    backend = scheduler._graphs.recorder.name
    bench.add(
        case=str(case), subject="recorded steps", baseline="steps made anew", metric="wall", value=seconds * 1e3,
        unit="ms/step", ratio=anew_s / seconds, equal=same >= ALIKE[bench.device],
        backend=backend,
    )  # fmt: skip
    if copied is not None:
        best = least_bytes(model, scheduler, case) / copied
        bench.add(
            case=str(case), subject="recorded steps", baseline="roofline / 1.5", metric="share", value=best * 1e3,
            unit="ms/step at best", ratio=best / seconds / SHARE, equal=True, target=1.0, backend=backend,
        )  # fmt: skip


def least_bytes(model: Any, scheduler: Any, case: Case) -> float:
    """Weights, prefixes and half of the answers' tokens, each once."""
    weights = sum(p.nbytes for n, p in model.named_parameters() if "embed_tokens" not in n)
    token = scheduler.stack.store.shape.token_bytes
    return float(weights + token * (case.videos * case.prefix + case.videos * case.k * case.tokens / 2))


def generate(model: Any, prompts: torch.Tensor, case: Case, *, recorded: bool) -> tuple[list[list[int]], float, Any]:
    """Greedy answers, seconds a step (prefill and recording left out), and the scheduler."""
    from vstar_fast.engine import Request, Scheduler, Settings, TextLM, graphs
    from vstar_fast.models import memory

    room = int(0.9 * memory.free_bytes(model.device))
    scheduler = Scheduler(TextLM(model), max_rows=case.videos * case.k, memory_bytes=room, skip_forced=False)
    if not recorded:
        scheduler._graphs = None
    elif scheduler._graphs is None:
        scheduler._graphs = graphs.Graphs(scheduler._batch, graphs.Again())
    timer = Timer(scheduler._graphs or scheduler._batch, model.device)
    settings = Settings(max_new_tokens=case.tokens)
    asked = [Request(ids[:0], ids, None, list(range(case.k)), settings) for ids in prompts]
    answers = {id(r): found for r, found in scheduler.run(asked)}
    steps = scheduler.counts.steps
    return [a.token_ids for r in asked for a in answers[id(r)]], timer.per_step(steps), scheduler


class Timer:
    """Wall seconds of `step` calls; the longest fifth, in which graphs are recorded, is left out."""

    def __init__(self, stepping: Any, device: torch.device) -> None:
        self.taken: list[float] = []
        self._device = device
        own: Callable[[], None] = stepping.step

        def step() -> None:
            self._wait()
            began = time.perf_counter()
            own()
            self._wait()
            self.taken.append(time.perf_counter() - began)

        stepping.step = step

    def per_step(self, steps: int) -> float:
        """Seconds a step of the model."""
        kept = sorted(self.taken)[: max(1, len(self.taken) * 4 // 5)]
        return sum(kept) / len(kept) * len(self.taken) / steps

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
