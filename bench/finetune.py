"""LoRA steps on the answers of one video: packed behind one prefix, and as rows by Hugging Face Trainer with PEFT.

Model: the demo's (SmolLM2-135M). The video is random features of P tokens, given to all sides, so that no tower runs
on any. Each side runs in a process of its own, in turn; loss and gradient norm of every step must agree first. Memory
of the step: the most it takes beyond the loaded model; of the process: all of it, model and libraries included. TRL's
trainer has its row where it is installed, and what it says to packing is told. `pack = true`: that packing gives the
loss of rows is proved here; a training with `auto` tries it once before its first step, which takes as long as one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

    from vstar_fast.models.video_lm import Features, VideoLM

NAMES = ("packed", "HF Trainer rows", "TRL SFTTrainer rows")
SPEED, MEMORY = 3.5, 3.0
"""Ratios wanted at 4 answers and a prefix of 512 tokens."""


@dataclass(frozen=True)
class Shape:
    """`video` tokens of prefix, `answers` of `tokens` each, `steps` of the optimizer."""

    video: int
    answers: int
    tokens: int
    steps: int


def run(bench: Bench, quick: bool) -> None:
    """Time and memory of a step, at 4 answers a video and at 1."""
    shapes = [Shape(16, 2, 6, 2)] if quick else [Shape(512, 4, 48, 2), Shape(512, 1, 48, 2)]
    for shape in shapes:
        _compare(bench, shape, turns=1 if quick else 3)


def _compare(bench: Bench, shape: Shape, turns: int) -> None:
    from vstar_fast.bench import hf_trainer

    sides = {"theirs": NAMES[1]} | ({"trl": NAMES[2]} if hf_trainer.has_trl() else {})
    found = [{side: _in_child(side, shape) for side in ("ours", *sides)} for _ in range(turns)]
    for side, name in sides.items():
        _rows(bench, shape, [(turn["ours"], turn[side]) for turn in found], name)
    for setting, said in found[0].get("trl", {}).get("refusals", {}).items():
        _note(bench, f"{NAMES[2]} with {setting}: {said}")
    if "trl" not in sides:
        _note(bench, f"no row of {NAMES[2]}: trl and datasets are not installed")


def _note(bench: Bench, text: str) -> None:
    if bench.echo:
        print(text, flush=True)


def _rows(bench: Bench, shape: Shape, pairs: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> None:
    equal = all(_close(mine[key], other[key]) for mine, other in pairs for key in ("loss", "grad_norm"))
    wanted = shape == Shape(512, 4, 48, 2) and name == NAMES[1]
    targets = {"cpu": SPEED, "memory of the step": MEMORY, "memory of the process": MEMORY} if wanted else {}
    scales = {"cpu": (1.0, "s/step"), "memory of the step": (2.0**20, "MiB"), "memory of the process": (2.0**20, "MiB")}
    for metric, (scale, unit) in scales.items():
        ratio = median(other[metric] / mine[metric] for mine, other in pairs)
        bench.add(
            case=f"P={shape.video}, {shape.answers} answers of {shape.tokens} tokens",
            subject=NAMES[0],
            baseline=name,
            metric=metric,
            value=median(mine[metric] for mine, _ in pairs) / scale if equal else None,
            unit=unit,
            ratio=ratio if equal else None,
            equal=equal,
            target=targets.get(metric),
            threads=1,
        )


def _close(mine: list[float], other: list[float]) -> bool:
    return all(abs(a - b) <= 1e-4 * abs(b) for a, b in zip(mine, other, strict=True))


def _in_child(side: str, shape: Shape) -> dict[str, Any]:
    """What one side measured, in a fresh process with one thread."""
    command = [sys.executable, "-m", "vstar_fast.bench.finetune", side, json.dumps(asdict(shape))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(side: str, shape: Shape) -> dict[str, Any]:
    import resource

    import torch
    from peft import get_peft_model

    from vstar_fast import models
    from vstar_fast.config import FinetuneConfig
    from vstar_fast.demo import model
    from vstar_fast.finetune import lora_settings

    torch.set_num_threads(1)
    lm = models.load(str(model.build()), dtype="float32", device="auto")
    sizes: dict[str, Any] = {"batch_size": shape.answers, "micro_batch_size": shape.answers, "steps": shape.steps}
    config = FinetuneConfig(**sizes, pack=True, warmup_ratio=0.0, max_grad_norm=1e9, track="none")
    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    train = {"ours": _ours, "theirs": _theirs, "trl": _trl}[side]
    for weight in lm.model.parameters():
        weight.sum()  # a mapped file is no memory until it is read
    before, start = _resident(), time.process_time()
    found = train(lm, peft, shape, config)
    cpu = (time.process_time() - start) / shape.steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**found, "cpu": cpu, "memory of the step": peak - before, "memory of the process": peak}


def _resident() -> int:
    """Bytes of this process in memory now."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _video(lm: VideoLM, shape: Shape) -> Features:
    import torch

    from vstar_fast.models.video_lm import Features

    mark = lm.tokenizer.convert_tokens_to_ids("<video>")
    width = lm.model.config.vision_config.hidden_size
    made = torch.randn(1, shape.video, width, generator=torch.Generator().manual_seed(0))
    return Features(torch.full((shape.video,), mark), {"video_features": made})


def _answers(lm: VideoLM, shape: Shape) -> list[str]:
    """Answers of so many tokens, the end of the turn counted."""
    words = lm.tokenizer(" step" * 4 * shape.tokens)["input_ids"]
    start = [f"{n}" for n in range(shape.answers)]
    texts = [s + lm.tokenizer.decode(words[: shape.tokens - 1 - len(lm.answer_ids(s)) + 1]) for s in start]
    lengths = {len(lm.answer_ids(t)) for t in texts}
    if lengths != {shape.tokens}:
        raise RuntimeError(f"answers have {lengths} tokens, wanted {shape.tokens}")
    return texts


def _ours(lm: VideoLM, peft: Any, shape: Shape, config: Any) -> dict[str, Any]:
    from vstar_fast.finetune import finetune
    from vstar_fast.records import Example

    video = _video(lm, shape)
    examples = [Example("v", f"q{i}", "What is done?", a, "direct") for i, a in enumerate(_answers(lm, shape))]

    def rows(part: Any) -> Any:
        return [e.question for e in part], [video] * len(part)

    with tempfile.TemporaryDirectory() as folder:
        log = finetune(lm, peft, examples, rows, config, Path(folder), seed=0)
    return {"loss": log["loss"], "grad_norm": log["grad_norm"]}


def _theirs(lm: VideoLM, peft: Any, shape: Shape, config: Any, *, trl: bool = False) -> dict[str, Any]:
    from vstar_fast.bench import hf_trainer

    video, answers = _video(lm, shape), _answers(lm, shape)

    def collate(numbers: list[int]) -> dict[str, Any]:
        texts = ["What is done?"] * len(numbers)
        return lm.inputs(texts, [video] * len(numbers), [answers[n % shape.answers] for n in numbers])

    cpu = lm.device.type == "cpu"
    found = hf_trainer.train(peft, collate, shape.answers * shape.steps, config, cpu=cpu, trl=trl)
    return found | ({"refusals": hf_trainer.trl_refusals(peft, lm.processor)} if trl else {})


def _trl(lm: VideoLM, peft: Any, shape: Shape, config: Any) -> dict[str, Any]:
    return _theirs(lm, peft, shape, config, trl=True)


if __name__ == "__main__":
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    print(json.dumps(_measure(sys.argv[1], Shape(**json.loads(sys.argv[2])))))
