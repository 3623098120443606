"""Where the engine's time goes, how much of it the machine needs at best, and videos a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstar_fast.bench.generate import Case
    from vstar_fast.bench.runner import Bench

HOST = 5.0
"""Percent of a decode step that may go to the host."""
PARTS = ("prefill", "decode: text stack", "decode: head", "decode: sample", "decode: host")


def rows(bench: Bench, case: Case, scheduler: Any, seconds: float, model: Any) -> None:
    """All rows of one case, of which the engine took `seconds`; the split is of a second run."""
    from vstar_fast import backends

    backend = backends.choose("prefix_attention", bench.device).name

    def add(what: str, metric: str, value: float, unit: str, ratio: float | None = None, **more: Any) -> None:
        fixed: dict[str, Any] = {"subject": "engine", "baseline": "-", "equal": True, "backend": backend} | more
        bench.add(case=f"{case}, {what}", metric=metric, value=max(value, 1e-9), unit=unit, ratio=ratio, **fixed)

    split = measure(case, model, bench.device)
    vision = _vision(bench, case)
    if vision is not None:
        add("vision", "seconds", vision, "s", backend="-")
    for name in PARTS:
        add(name, "seconds", split[name], "s")
    decode = sum(split[name] for name in PARTS[1:])
    for name, share in ((n, 100 * split[n] / decode) for n in ("decode: sample", "decode: host")):
        add(f"{name.removeprefix('decode: ')} a step, share of the step", "share", share, "%")
    drawn = split["decode: sample"] + split["decode: host"]
    limit = {"baseline": f"{HOST:g} %", "target": 1.0 if case.targets and bench.device == "cpu" else None}
    add(
        "draw and host a step, share of the step",
        "share",
        100 * drawn / decode,
        "%",
        HOST / (100 * drawn / decode),
        **limit,
    )
    least = _least(scheduler, case, model, bench.device)
    add(
        "share of the roofline",
        "share",
        100 * least / seconds,
        "%",
        baseline="matrix products and memory at their best",
    )
    add("tokens", "rate", case.answers * case.tokens / seconds, "tokens/s")
    add("videos", "rate", case.videos / (seconds + (vision or 0.0)), "videos/s")


def measure(case: Case, model: Any, device: str) -> dict[str, float]:
    """Seconds of each of PARTS in one run; of steps made anew, since a recorded one has no parts."""
    from vstar_fast.bench.generate import _prompts, draw

    with _unrecorded(), _watched(device) as seconds:
        draw(model, _prompts(case, model), case, case.tokens)
    inside = seconds["stack"] + seconds["head"] + seconds["sample"]
    host = seconds["step"] - inside
    return dict(
        zip(PARTS, (seconds["prefill"], seconds["stack"], seconds["head"], seconds["sample"], host), strict=True)
    )


@contextmanager
def _unrecorded() -> Iterator[None]:
    """Schedulers made inside record no steps."""
    from vstar_fast.engine import graphs

    before = os.environ.get(graphs.VARIABLE)
    os.environ[graphs.VARIABLE] = "0"
    try:
        yield
    finally:
        os.environ.pop(graphs.VARIABLE) if before is None else os.environ.update({graphs.VARIABLE: before})


@contextmanager
def _watched(device: str) -> Iterator[dict[str, float]]:
    """Seconds inside the engine's parts, those of a step apart from those of prefill."""
    from vstar_fast.engine import TextLM
    from vstar_fast.engine.batch import Batch
    from vstar_fast.engine.lanes import Lane
    from vstar_fast.engine.scheduler import Scheduler
    from vstar_fast.engine.stack import Stack

    seconds = dict.fromkeys(("prefill", "step", "stack", "head", "sample"), 0.0)
    stepping: list[int] = []
    places: list[tuple[Any, str, str]] = [(Scheduler, "_take_in", "prefill"), (Batch, "step", "step")]
    places += [(Stack, "call", "stack"), (TextLM, "logits", "head"), (Lane, "draw", "sample")]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, key in places:
        setattr(owner, name, _timed(getattr(owner, name), key, seconds, stepping, device))
    try:
        yield seconds
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _timed(
    function: Callable[..., Any], key: str, seconds: dict[str, float], stepping: list[int], device: str
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if key not in ("prefill", "step") and not stepping:
            return function(*args, **kwargs)
        if key == "step":
            stepping.append(1)
        began = _now(device)
        try:
            return function(*args, **kwargs)
        finally:
            seconds[key] += _now(device) - began
            if key == "step":
                stepping.pop()

    return call


def _now(device: str) -> float:
    """CPU seconds of this process; beside a GPU seconds, once it has done what it was told."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def _least(scheduler: Any, case: Case, model: Any, device: str) -> float:
    """Seconds that the case takes where products and memory are at their best."""
    from vstar_fast.bench import roofline

    counts, shape = scheduler.counts, scheduler.stack.store.shape
    work = roofline.Work(
        counts.prefilled, counts.steps, case.answers, case.videos * case.questions, case.prefix, shape.token_bytes
    )
    return roofline.least_seconds(model, work, roofline.measure(device, model.dtype))


def _vision(bench: Bench, case: Case) -> float | None:
    """Seconds of the model's own tower (random weights) for all videos; None for a model that has none."""
    from vstar_fast.bench import towers
    from vstar_fast.bench.generate import cost_of

    if case.model not in towers.TOWERS:
        bench.absent(f"{case}, vision", case.model, "a language model, it has no tower")
        return None
    see, tokens = towers.build(case.model, case.prefix, bench.device)
    see()
    _, cost = cost_of(see, bench.device)
    return cost.seconds * case.videos * case.prefix / tokens
