"""Answers behind shared prompts: the engine against Hugging Face's `generate` and others.

Baselines: `generate(num_return_sequences=k)`, a loop that prefills each prompt once and expands its cache, Hugging
Face's `generate_batch`, and vLLM where it is installed. Every token of every answer is compared first (greedy; in
half precision on a GPU, where rounding parts ways, the first token of each). Figures are CPU seconds (on a GPU:
seconds), and the most memory taken on top of the model. `vstar-fast bench generate --help` lists other models and
shapes (`options`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vstar_fast.bench.cost import seconds_of

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

ASKED = 16
"""Tokens of each question, where there are several behind one prefix."""
AGREE = 0.6
"""Share of first tokens that must be equal in half precision: of random weights one in eight or so is not."""


@dataclass(frozen=True)
class Case:
    """What is drawn: `k` answers of `tokens` tokens to each of `questions` about each of `videos` prefixes.

    `targets`: against HF generate, against the expanded cache, and of HF generate's memory.
    """

    model: str = "SmolLM2-135M"
    videos: int = 8
    questions: int = 1
    k: int = 8
    prefix: int = 512
    tokens: int = 64
    baseline_videos: int = 8
    """Prefixes that the baselines answer about; their time is taken times videos / baseline_videos."""
    targets: tuple[float, float, float] | None = (6.0, 2.2, 6.0)

    def __str__(self) -> str:
        asked = f" x {self.questions} questions" if self.questions > 1 else ""
        return f"{self.model}, {self.videos}{asked} x {self.k}, P={self.prefix}, {self.tokens} new"

    @property
    def answers(self) -> int:
        """Answers in all."""
        return self.videos * self.questions * self.k


@dataclass
class Cost:
    """What one run took."""

    seconds: float
    mib: float


def run(bench: Bench, quick: bool) -> None:
    """The issue's CPU case, or a tiny one."""
    measure(bench, Case("tiny", 3, 1, 2, 70, 12, 3, None) if quick else Case())


def measure(bench: Bench, case: Case) -> None:
    """Rows for one case."""
    from vstar_fast.bench import generate_split, language_models

    language_models.check_size(case.model, bench.device)
    model = language_models.build(case.model, bench.device)
    prompts = _prompts(case, model)
    draw(model, prompts[:1, :, :8], case, 2)  # warm-up
    (found, scheduler), ours = cost_of(lambda: draw(model, prompts, case, case.tokens), bench.device)
    few = prompts[: case.baseline_videos].flatten(0, 1)
    against = _Against(bench, case, found[: len(few)], ours, len(prompts) / len(prompts[: case.baseline_videos]))
    speed, once, memory = case.targets or (None, None, None)
    for name, baseline, target, spared in (
        ("HF generate", _plain, speed, memory),
        ("prefix once, cache expanded", _expanded, once, None),
    ):
        ids, cost = cost_of(lambda: baseline(model, few, case.k, case.tokens), bench.device)  # noqa: B023
        against.time(name, ids, cost.seconds, target)
        against.memory(name, ids, cost.mib, spared)
    _rivals(bench, case, model, prompts[: 1 if bench.device == "cpu" else len(prompts)], found, ours)
    generate_split.rows(bench, case, scheduler, ours.seconds, model)


class _Against:
    """Adds rows of the engine against baselines that answered some of the prompts."""

    def __init__(self, bench: Bench, case: Case, found: Any, ours: Cost, times: float) -> None:
        self.bench, self.case, self.found, self.ours, self.times = bench, case, found, ours, times
        self._note = "" if times == 1 else f" (baseline: {len(found)} prompts)"

    def time(self, name: str, ids: Any, seconds: float, target: float | None) -> None:
        """A row of time a token."""
        metric = self.bench.metrics()[0] if self.bench.device == "cpu" else "wall"
        value = self.ours.seconds / (self.case.answers * self.case.tokens) * 1e6
        ratio = seconds * self.times / self.ours.seconds
        self._add(f"{self.case}{self._note}", name, ids, metric, value, "us/token", ratio, target)

    def memory(self, name: str, ids: Any, mib: float, target: float | None) -> None:
        """A row of memory on top of the model; below 1 MiB nothing can be told."""
        mine, case = max(self.ours.mib, 1.0), f"{self.case}{self._note}, memory on top of the model"
        self._add(case, name, ids, "memory", mine, "MiB", max(mib, 1.0) / mine, target)

    def _add(
        self, case: str, name: str, ids: Any, metric: str, value: float, unit: str, ratio: float, target: float | None
    ) -> None:
        from vstar_fast import backends

        backend = backends.choose("prefix_attention", self.bench.device).name
        self.bench.add(
            case=case, subject="engine", baseline=name, metric=metric, value=value, unit=unit, ratio=ratio,
            equal=same(self.found, ids), target=target, backend=backend,
        )  # fmt: skip


def same(ours: Any, theirs: Any) -> bool:
    """Equal ids [V, k, tokens]; half precision is given away by a first token that is equal almost everywhere."""
    import torch

    if torch.equal(ours, theirs):
        return True
    first = (ours[..., 0] == theirs[..., 0]).float().mean()
    return torch.cuda.is_available() and bool(first >= AGREE)


def _rivals(bench: Bench, case: Case, model: Any, prompts: Any, found: Any, ours: Cost) -> None:
    """Rows against others' engines; on a CPU, where they are slow, over the first prefix."""
    from vstar_fast.bench import generate_rivals

    asked = prompts.flatten(0, 1)
    against = _Against(bench, case, found[: len(asked)], ours, case.videos / len(prompts))
    for name, rival in generate_rivals.RIVALS.items():
        try:
            rival(model, asked[:1, :8], 1, 2)  # warm-up
            (ids, start), cost = cost_of(lambda: rival(model, asked, case.k, case.tokens), bench.device)  # noqa: B023
        except generate_rivals.Absent as reason:
            bench.absent(f"{case}", name, str(reason))
            continue
        except Exception as error:  # a rival that does not run here is a line, not the end of the bench
            bench.absent(f"{case}", name, f"it fails: {type(error).__name__}: {str(error)[:100]}")
            continue
        against.time(name, ids, cost.seconds - start, None)


def _prompts(case: Case, model: Any) -> Any:
    """Ids [videos, questions, P]: the questions about a video differ in their last tokens."""
    import torch

    made = torch.Generator().manual_seed(1)
    sizes = (case.videos, 1, case.prefix)
    ids = torch.randint(6, model.config.vocab_size, sizes, generator=made)
    if case.questions > 1:
        asked = torch.randint(6, model.config.vocab_size, (case.videos, case.questions, ASKED), generator=made)
        ids = torch.cat([ids.expand(-1, case.questions, -1), asked], 2)
    return ids.to(model.device)


def draw(model: Any, prompts: Any, case: Case, tokens: int) -> tuple[Any, Any]:
    """(ids [V * Q, k, tokens] of the engine's answers, the scheduler)."""
    import torch

    from vstar_fast.engine import Request, Scheduler, Settings, TextLM

    scheduler = Scheduler(TextLM(model), max_rows=prompts.shape[0] * prompts.shape[1] * case.k)
    shared = max(0, prompts.shape[2] - ASKED) if case.questions > 1 else 0
    settings = Settings(max_new_tokens=tokens)
    rows = prompts.flatten(0, 1).cpu()
    asked = [Request(p[:shared], p[shared:], None, range(case.k), settings) for p in rows]
    found = {id(r): [a.token_ids for a in answers] for r, answers in scheduler.run(asked)}
    return torch.tensor([found[id(r)] for r in asked]), scheduler


def _plain(model: Any, prompts: Any, k: int, tokens: int) -> Any:
    """Hugging Face's `generate`, the prompts repeated by it; ids [V, k, tokens]."""
    import torch

    repeated = prompts.repeat_interleave(k, 0)  # greedy search refuses num_return_sequences above 1; it does just this
    with torch.inference_mode():
        out = model.generate(
            repeated,
            attention_mask=torch.ones_like(repeated),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
    return out[:, prompts.shape[1] :].cpu().view(len(prompts), k, tokens)


def _expanded(model: Any, prompts: Any, k: int, tokens: int) -> Any:
    """Each prompt once, its cache repeated for its answers, then a plain loop; ids [V, k, tokens]."""
    import torch

    from vstar_fast.models.hf_cache import CACHE

    with torch.inference_mode():
        out = model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        cache = out[CACHE]
        cache.reorder_cache(torch.arange(len(prompts), device=prompts.device).repeat_interleave(k))
        token = out.logits[:, -1].argmax(-1).repeat_interleave(k)[:, None]
        found = [token]
        for _ in range(tokens - 1):
            out = model(input_ids=token, use_cache=True, **{CACHE: cache})
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(token)
    return torch.cat(found, 1).cpu().view(len(prompts), k, tokens)


def cost_of(work: Callable[[], Any], device: str) -> tuple[Any, Cost]:
    """Result, seconds (of the CPU, or on the wall beside a GPU), and MiB taken on top of what was there."""
    import torch

    from vstar_fast import profiling
    from vstar_fast.models import memory

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result, taken = seconds_of(work, device)
        return result, Cost(taken, (torch.cuda.max_memory_allocated() - before) / (1 << 20))
    memory.release(torch.device("cpu"))
    profiling.reset_peaks()
    resident = profiling.peak_mib()
    result, taken = seconds_of(work, device)
    return result, Cost(taken, profiling.peak_mib() - resident)


def options(bench: Bench, arguments: Sequence[str]) -> None:
    """Any shape: `vstar-fast bench generate --model Qwen2.5-VL-7B --videos 32 --k 8 --prefix 2000`."""
    import argparse
    from dataclasses import fields

    parser = argparse.ArgumentParser("vstar-fast bench generate", description=__doc__.splitlines()[0])
    for field in fields(Case):
        if field.name != "targets":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    chosen = Case(**vars(parser.parse_args(list(arguments))))
    measure(bench, chosen if chosen == Case() else replace(chosen, targets=None))
