"""The training part of `cycle`: LoRA steps by vstar-fast, and by HF Trainer with PEFT on rows that carry pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vstar_fast.bench.cost import seconds_of
from vstar_fast.bench.cycle import Work, add_row, decode, features_of, in_precision

from vstar_fast import questions
from vstar_fast.config import FinetuneConfig
from vstar_fast.records import Example
from vstar_fast.run.runtime import unload

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

    from vstar_fast.models.video_lm import Features


CLOSE = {"cpu": 1e-3, "cuda": 1e-2}
"""How far the first loss may be from Hugging Face's, relatively: fp32, and half precision."""


def compare_training(bench: Bench, work: Work, steps: int) -> tuple[float, float]:
    """`steps` LoRA steps on the same examples in the same order."""
    config = replace(work.config.finetune, steps=steps, batch_size=4, micro_batch_size=4, track="none")
    gold = [questions.answer_text(q) for q in work.asked]
    texts = [f"The person moves across the floor. {a}" for a in gold]
    rows = [Example(q.video_id, q.id, q.text, t, "direct") for q, t in zip(work.asked, texts, strict=True)]
    examples = (rows * 4)[: 4 * steps]
    ours, ours_s = _train_ours(work, examples, config)
    theirs, theirs_s = _train_theirs(work, examples, config)
    equal = abs(ours - theirs) < CLOSE[bench.device] * abs(theirs)
    count = len(examples)
    return add_row(
        bench,
        f"finetune {count} examples, LoRA r={config.lora_r}",
        "example",
        ours_s / count,
        theirs_s / count,
        equal,
    )


def _adapter(work: Work, config: FinetuneConfig) -> Any:
    import torch
    from peft import get_peft_model

    from vstar_fast.finetune import lora_settings

    torch.manual_seed(0)
    return get_peft_model(work.lm.model, lora_settings(work.lm, config))


def _train_ours(work: Work, examples: list[Example], config: FinetuneConfig) -> tuple[float, float]:
    """Loss of the first batch and seconds, features encoded once included."""
    import tempfile
    from pathlib import Path

    from vstar_fast import finetune
    from vstar_fast.finetune.batches import batches

    peft = _adapter(work, config)
    prompts = {q.id: questions.prompt_text(q) for q in work.asked}
    videos = [e.video_id for e in examples]
    order = batches(examples, videos, config.batch_size, config.steps, 0)

    def train() -> dict[str, Any]:
        features = dict(zip([v.id for v in work.videos], features_of(work), strict=True))

        def rows(part: Any) -> tuple[list[str], list[Features]]:
            return [prompts[e.question_id] for e in part], [features[e.video_id] for e in part]

        with tempfile.TemporaryDirectory() as folder:
            return finetune.finetune(work.lm, peft, examples, rows, config, Path(folder), seed=0)

    log, seconds = seconds_of(train, work.lm.device.type)
    unload(peft)
    examples[:] = [e for batch in order for e in batch]
    return log["loss"][0], seconds


def _train_theirs(work: Work, examples: list[Example], config: FinetuneConfig) -> tuple[float, float]:
    """HF Trainer over rows that carry their pixels; the same order of examples."""
    from vstar_fast.bench import hf_trainer

    peft = _adapter(work, config)
    by_id = {q.id: i for i, q in enumerate(work.asked)}

    def collate(numbers: list[int]) -> dict[str, Any]:
        picked = [examples[n] for n in numbers]
        return _plain_rows(work, [by_id[e.question_id] for e in picked], [e.answer for e in picked])

    device = work.lm.device.type
    told = {"cpu": device == "cpu"}
    found, seconds = seconds_of(lambda: hf_trainer.train(peft, collate, len(examples), config, **told), device)
    unload(peft)
    return float(found["loss"][0]), seconds


def _plain_rows(work: Work, indices: list[int], answers: list[str]) -> dict[str, Any]:
    """Prompt + answer rows with pixels, as a collator of a row-by-row trainer makes them."""
    import torch

    lm = work.lm
    clips = [decode(work.videos[i].path, work.config.frames.count) for i in indices]
    prompts = [lm.prompt(work.prompts[i]) for i in indices]
    eos = lm.tokenizer.convert_ids_to_tokens(lm.eos_ids[0])
    texts = [p + a + eos for p, a in zip(prompts, answers, strict=True)]
    shared = {"return_tensors": "pt", "padding": True, "padding_side": "right", "add_special_tokens": False}
    inputs = in_precision(lm, lm.processor(text=texts, videos=clips, **shared))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for row, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
        length = lm.processor(text=[prompt], videos=[clip], **shared)["input_ids"].shape[1]
        labels[row, :length] = -100
    return inputs | {"labels": labels.to(torch.long)}
