"""Stage 5: examples -> LoRA adapter (PEFT), row by row: prompt masked, loss on the answer's tokens only.

The paper fine-tunes in full, as far as one can tell from its settings; LoRA is our departure.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import ModelError, RunError
from vstar_fast.models.video_lm import IGNORE, Features, VideoLM
from vstar_fast.records import Example

Rows = Callable[[Sequence[Example]], tuple[list[str], list[Features]]]


def lora_settings(lm: VideoLM, config: FinetuneConfig) -> Any:
    """PEFT settings: LoRA on every linear layer of the text stack; the projector, if trained, is saved whole.

    Raises ModelError for a name in `finetune.target_modules` that no layer of the model has.
    """
    from peft import LoraConfig

    named = [n.strip() for n in config.target_modules.split(",") if n.strip()]
    if config.target_modules != "auto":
        _check_targets(lm, named)
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=lm.language_linears() if config.target_modules == "auto" else named,
        modules_to_save=lm.projector_names() if config.projector else None,
    )


def _check_targets(lm: VideoLM, named: Sequence[str]) -> None:
    """PEFT takes a name that is a layer's whole name or its last parts."""
    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    layers = [n for n, m in lm.model.named_modules() if isinstance(m, kinds)]
    for name in named:
        if not any(f".{layer}".endswith(f".{name}") for layer in layers):
            linear = {n.rsplit(".", 1)[-1] for n, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear)}
            some = ", ".join(sorted(linear)[:12])
            raise ModelError(
                f"finetune.target_modules names {name!r}, but no layer of {lm.path} that LoRA can adapt has that "
                f"name; use auto, or names such as {some}"
            )


def count_steps(config: FinetuneConfig, examples: int) -> int:
    """Optimizer steps for this many examples."""
    return config.steps or max(1, math.ceil(config.epochs * examples / config.batch_size))


def finetune(
    lm: VideoLM,
    peft: Any,
    examples: Sequence[Example],
    rows: Rows,
    config: FinetuneConfig,
    out: Path,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train the adapter on `examples` and save it in folder `out`; returns steps, tokens and losses.

    `rows` gives (question texts, features) of examples; `on_step(step, steps, loss)` is called after each
    step. The loss of a step is the mean over the answer tokens of its whole batch, each weighted by its
    example, so that micro-batches do not change it. Raises RunError when the loss is not finite.
    """
    from transformers import get_scheduler

    steps = count_steps(config, len(examples))
    optimizer = torch.optim.AdamW(_groups(peft, config), weight_decay=config.weight_decay)
    warmup = int(config.warmup_ratio * steps)  # rounded up, a short run would waste its first step at rate 0
    schedule = get_scheduler(config.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    peft.train()
    losses, tokens = [], 0
    for step, batch in enumerate(_batches(examples, config.batch_size, steps, seed)):
        loss, count = _accumulate(lm, peft, batch, rows, config.micro_batch_size)
        if not math.isfinite(loss):
            raise RunError(f"loss is {loss} at step {step}; lower finetune.lr (now {config.lr}) and run again")
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        tokens += count
        if on_step is not None:
            on_step(step + 1, steps, loss)
    peft.eval()
    peft.save_pretrained(str(out))
    log = {"steps": steps, "examples": len(examples), "answer_tokens": tokens, "loss": losses}
    (out / "training.json").write_text(json.dumps(log))
    return log


def _groups(peft: Any, config: FinetuneConfig) -> list[dict[str, Any]]:
    trained = [(n, p) for n, p in peft.named_parameters() if p.requires_grad]
    lora = [p for n, p in trained if "lora_" in n]
    other = [p for n, p in trained if "lora_" not in n]
    groups = [{"params": lora, "lr": config.lr}]
    return groups + ([{"params": other, "lr": config.projector_lr}] if other else [])


def _batches(examples: Sequence[Example], size: int, steps: int, seed: int) -> list[list[Example]]:
    """`steps` batches; every epoch goes through the examples once, in an order of its own."""
    order: list[Example] = []
    epoch = 0
    while len(order) < steps * size:
        shuffled = list(examples)
        random.Random(f"{seed}/{epoch}").shuffle(shuffled)
        order += shuffled
        epoch += 1
    return [order[i * size : (i + 1) * size] for i in range(steps)]


def _accumulate(lm: VideoLM, peft: Any, batch: Sequence[Example], rows: Rows, micro: int) -> tuple[float, int]:
    """Backward over one batch in micro-batches; (loss of the batch, answer tokens)."""
    lengths = [len(lm.answer_ids(e.answer)) for e in batch]
    total = sum(n * e.weight for n, e in zip(lengths, batch, strict=True))
    loss = 0.0
    for start in range(0, len(batch), micro):
        part = batch[start : start + micro]
        texts, features = rows(part)
        inputs = lm.inputs(texts, features, [e.answer for e in part])
        weights = torch.tensor([e.weight for e in part], device=lm.device)
        piece = _weighted_loss(peft.get_base_model(), inputs, weights) / total
        piece.backward()
        loss += piece.item()
    return loss, sum(lengths)


def _weighted_loss(model: Any, inputs: dict[str, Any], weights: torch.Tensor) -> torch.Tensor:
    """Sum over answer tokens of weight x negative log-likelihood; the LM head sees only those tokens."""
    body = getattr(model, "model", None)
    head = model.get_output_embeddings()
    if body is None or head is None:
        raise ModelError(f"{type(model).__name__} has no `.model` and output head apart; it cannot be fine-tuned")
    labels = inputs["labels"]
    hidden = body(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)[0]
    target = labels[:, 1:]
    wanted = target != IGNORE
    logits = head(hidden[:, :-1][wanted]).float()
    each = torch.nn.functional.cross_entropy(logits, target[wanted], reduction="none")
    return (each * weights.unsqueeze(1).expand_as(target)[wanted]).sum()
