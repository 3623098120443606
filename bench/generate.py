"""Answers behind shared prompts: the engine against Hugging Face's `generate` and against a prefix read once.

Baselines: `generate(num_return_sequences=k)`, and a loop that prefills each prompt once and expands its cache.
Every token of every answer is compared first (greedy). Figures are CPU seconds (on a GPU: seconds), and the most
memory taken on top of the model. `python -m vstar_fast.bench.generate --help` takes other shapes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

NAMES = ("engine", "HF generate", "prefix once, cache expanded")


@dataclass(frozen=True)
class Case:
    """What is drawn: `k` answers of `tokens` tokens to each of `videos` prompts of `prefix` tokens."""

    model: str = "SmolLM2-135M"
    videos: int = 8
    k: int = 8
    prefix: int = 512
    tokens: int = 64
    baseline_videos: int = 8
    """Prompts that the baselines answer; their time is taken times videos / baseline_videos."""
    targets: tuple[float, float, float] | None = (6.0, 2.2, 6.0)
    """Against HF generate, against the expanded cache, and of HF generate's memory."""

    def __str__(self) -> str:
        return f"{self.model}, {self.videos} x {self.k}, P={self.prefix}, {self.tokens} new"


@dataclass
class Cost:
    """What one run took."""

    seconds: float
    mib: float


def run(bench: Bench, quick: bool) -> None:
    """The issue's CPU case, or a tiny one."""
    measure(bench, Case("tiny", 3, 2, 70, 12, 3, None) if quick else Case())


def measure(bench: Bench, case: Case) -> None:
    """Rows for one case."""
    from vstar_fast.bench import language_models

    model = language_models.build(case.model, bench.device)
    prompts = _prompts(case, model)
    _engine(model, prompts[:1, :8], case.k, 2)  # warm-up
    (found, scheduler, inside), ours = _cost(lambda: _engine(model, prompts, case.k, case.tokens), bench.device)
    few = prompts[: case.baseline_videos]
    times = len(prompts) / len(few)
    (expanded, _), once = _cost(lambda: (_expanded(model, few, case.k, case.tokens), None), bench.device)
    (plain, _), hf = _cost(lambda: (_plain(model, few, case.k, case.tokens), None), bench.device)
    equal = found[: len(few)].tolist() == plain.tolist() == expanded.tolist()
    note = "" if times == 1 else f" (baseline: {len(few)} prompts)"
    targets = case.targets or (None, None, None)
    tokens = case.videos * case.k * case.tokens
    fixed: dict[str, Any] = {"equal": equal, "subject": NAMES[0], "backend": _backend(bench.device)}
    for name, theirs, target in ((NAMES[1], hf, targets[0]), (NAMES[2], once, targets[1])):
        ratio = theirs.seconds * times / ours.seconds
        unit, value = "us/token", ours.seconds / tokens * 1e6
        metric = bench.metrics()[0] if bench.device == "cpu" else "wall"
        bench.add(
            case=f"{case}{note}",
            baseline=name,
            metric=metric,
            value=value,
            unit=unit,
            ratio=ratio,
            target=target,
            **fixed,
        )
    for name, theirs, target in ((NAMES[1], hf, targets[2]), (NAMES[2], once, None)):
        ratio = max(theirs.mib, 1.0) / max(ours.mib, 1.0)  # below 1 MiB nothing can be told
        bench.add(
            case=f"{case}{note}, memory on top of the model",
            baseline=name,
            metric="memory",
            value=max(ours.mib, 1.0),
            unit="MiB",
            ratio=ratio,
            target=target,
            **fixed,
        )
    _split(bench, case, scheduler, inside, ours.seconds, model, fixed)


def _split(
    bench: Bench,
    case: Case,
    scheduler: Any,
    inside: dict[str, float],
    seconds: float,
    model: Any,
    fixed: dict[str, Any],
) -> None:
    """Where the engine's time goes, and how near it is to what the matrix products alone take."""
    from vstar_fast.bench import language_models

    counts = scheduler.counts
    stack, head = language_models.matrix_flops(model)
    rows = case.videos * case.k
    work = stack * (counts.prefilled + counts.steps * rows) + head * rows * (counts.steps + 1 / case.k)
    decode = counts.seconds["decode"]
    host = decode - inside["model"] - inside["head"]
    parts = {
        "prefill": counts.seconds["prefill"],
        "decode: text stack": inside["model"],
        "decode: head": inside["head"],
        "decode: draw and host": host,
    }
    shared = {k: v for k, v in fixed.items() if k != "subject"} | {"baseline": "-", "target": None}
    for name, value in parts.items():
        bench.add(
            case=f"{case}, {name}",
            subject="engine",
            metric="seconds",
            value=max(value, 1e-9),
            unit="s",
            ratio=None,
            **shared,
        )
    bench.add(
        case=f"{case}, draw and host a step, share of the step",
        subject="engine",
        metric="share",
        value=100 * host / decode,
        unit="%",
        ratio=5 / (100 * host / decode),
        **shared | {"baseline": "5 %", "target": 1.0 if case.targets else None},
    )
    bench.add(
        case=f"{case}, matrix products",
        subject="engine",
        metric="rate",
        value=work / seconds / 1e9,
        unit="GFLOP/s",
        ratio=None,
        **shared,
    )
    bench.add(
        case=f"{case}, videos",
        subject="engine",
        metric="rate",
        value=case.videos / seconds,
        unit="videos/s",
        ratio=None,
        **shared,
    )


def _prompts(case: Case, model: Any) -> Any:
    import torch

    made = torch.Generator().manual_seed(1)
    ids = torch.randint(6, model.config.vocab_size, (case.videos, case.prefix), generator=made)
    return ids.to(model.device)


def _engine(model: Any, prompts: Any, k: int, tokens: int) -> tuple[Any, Any, dict[str, float]]:
    """(ids [V, k, tokens], the scheduler, seconds inside the model's two parts while decoding)."""
    import torch

    from vstar_fast.engine import Request, Scheduler, Settings, TextLM

    lm = TextLM(model)
    scheduler = Scheduler(lm, max_rows=len(prompts) * k)
    inside = {"model": 0.0, "head": 0.0}
    _timed(scheduler.stack, "call", inside, "model", lambda: scheduler.counts.seconds.get("prefill") is not None)
    _timed(lm, "logits", inside, "head", lambda: scheduler.counts.seconds.get("prefill") is not None)
    asked = [Request(p[:0].cpu(), p.cpu(), None, range(k), Settings(max_new_tokens=tokens)) for p in prompts]
    found = {id(r): [a.token_ids for a in answers] for r, answers in scheduler.run(asked)}
    return torch.tensor([found[id(r)] for r in asked]), scheduler, inside


def _timed(thing: Any, name: str, seconds: dict[str, float], key: str, when: Callable[[], bool]) -> None:
    """Add the CPU seconds of each call of `thing.name` to `seconds[key]`, once prefill is over."""
    function = getattr(thing, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not when():
            return function(*args, **kwargs)
        began = time.process_time()
        result = function(*args, **kwargs)
        seconds[key] += time.process_time() - began
        return result

    setattr(thing, name, call)


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
        cache.batch_repeat_interleave(k)
        token = out.logits[:, -1].argmax(-1).repeat_interleave(k)[:, None]
        found = [token]
        for _ in range(tokens - 1):
            out = model(input_ids=token, use_cache=True, **{CACHE: cache})
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(token)
    return torch.cat(found, 1).cpu().view(len(prompts), k, tokens)


def _cost(work: Callable[[], Any], device: str) -> tuple[Any, Cost]:
    """Result, seconds (of the CPU, or on the wall beside a GPU), and MiB taken on top of what was there."""
    from vstar_fast import profiling

    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        taken = time.perf_counter() - began
        return result, Cost(taken, (torch.cuda.max_memory_allocated() - before) / (1 << 20))
    profiling.reset_peaks()
    resident = profiling.peak_mib()
    began = time.process_time()
    result = work()
    return result, Cost(time.process_time() - began, profiling.peak_mib() - resident)


def _backend(device: str) -> str:
    from vstar_fast import backends

    return backends.choose("prefix_attention", device).name


if __name__ == "__main__":
    import argparse
    from dataclasses import fields

    from vstar_fast.bench.runner import Bench as Made

    from vstar_fast import backends

    parser = argparse.ArgumentParser(description="Answers behind shared prompts, any shape.")
    for field in fields(Case):
        if field.name != "targets":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    chosen = vars(parser.parse_args())
    measure(Made("generate", False, backends.device()), Case(**chosen, targets=Case.targets))
