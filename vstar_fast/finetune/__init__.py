"""Stage 5: examples -> adapter (PEFT): what the examples of a video share is read once, answers branch off behind it.

The loss is over the answers' tokens only. The paper fine-tunes in full, as far as one can tell from its settings;
LoRA, the default, is our departure.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import NothingKept, RunError
from vstar_fast.finetune.adapter import lora_settings
from vstar_fast.finetune.batches import batches, count_steps, packs
from vstar_fast.finetune.distributed import Ranks
from vstar_fast.finetune.items import Item, Reader, Rows, cut
from vstar_fast.finetune.loss import dpo_loss, packed_nll, packed_rows, row_nll
from vstar_fast.finetune.optimizer import Optimizer
from vstar_fast.kernels.linear import fast_linears
from vstar_fast.models.video_lm import VideoLM
from vstar_fast.records import Example
from vstar_fast.runfolder import writing

__all__ = ["Rows", "accumulate", "count_steps", "finetune", "lora_settings"]


def finetune(
    lm: VideoLM,
    peft: Any,
    examples: Sequence[Example],
    rows: Rows,
    config: FinetuneConfig,
    out: str | Path,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train the adapter on `examples` and save it in folder `out`; returns what `training.json` there holds.

    `rows` gives (question texts, features) of examples; `on_step(step, steps, loss)` is called after each
    step. How a batch is split up changes neither its loss nor its gradients. Under `torchrun` every rank calls this
    with the same arguments and takes its share of each batch; the first saves. Raises RunError when the loss is not
    finite or `out` cannot be written, NothingKept when no example can be used.
    """
    ranks = Ranks()
    items, left_out = _usable(Reader(lm, rows)(examples), config)
    steps = count_steps(config, len(items))
    optimizer = Optimizer(lm, peft, config, steps)
    ranks.same_start(optimizer.parameters)
    peft.train()
    log: dict[str, Any] = {"loss": [], "grad_norm": [], "answer_tokens": 0, "row_tokens": 0, "packed_tokens": 0}
    with checkpointed(lm, config):
        videos = [i.example.video_id for i in items]
        for step, batch in enumerate(batches(items, videos, config.batch_size, steps, seed)):
            loss, counts = accumulate(lm, peft, batch, config, ranks)
            ranks.sum_gradients(optimizer.parameters)
            if not math.isfinite(loss):
                raise RunError(f"loss is {loss} at step {step}; lower finetune.lr (now {config.lr}) and run again")
            log["loss"].append(loss)
            log["grad_norm"].append(optimizer.step())
            log |= {name: log[name] + n for name, n in counts.items()}
            if on_step is not None:
                on_step(step + 1, steps, loss)
    peft.eval()
    log |= {"steps": steps, "examples": len(items), "left_out": left_out}
    if ranks.first:
        with writing(Path(out)):
            peft.save_pretrained(str(out))
            (Path(out) / "training.json").write_text(json.dumps(log))
    ranks.wait()
    return log


def _usable(items: list[Item], config: FinetuneConfig) -> tuple[list[Item], list[dict[str, str]]]:
    """Items that can be trained on (cut, if the settings say so), and for each other one why it cannot."""
    most = config.micro_batch_tokens
    items = [cut(i, most) if config.cut_long and i.tokens > most else i for i in items]
    reasons = [_obstacle(i, config) for i in items]
    left_out = [
        {"question_id": i.example.question_id, "reason": why[0], "detail": why[1]}
        for i, why in zip(items, reasons, strict=True)
        if why
    ]
    if len(left_out) == len(items):
        first = f"; the first: {left_out[0]['detail']}" if left_out else ""
        raise NothingKept(f"none of {len(items)} examples can be trained on{first}")
    return [i for i, why in zip(items, reasons, strict=True) if not why], left_out


def _obstacle(item: Item, config: FinetuneConfig) -> tuple[str, str] | None:
    """(reason, in words) why an item cannot be trained on."""
    most = config.micro_batch_tokens
    if not item.example.weight > 0:
        return "no_weight", f"its weight is {item.example.weight}; give it one above 0, or leave it out"
    if item.tokens > most:
        return (
            "too_long",
            f"{item.tokens} tokens, but finetune.micro_batch_tokens = {most}; raise it or use fewer frames",
        )
    if config.objective == "dpo" and item.rejected is None:
        return "no_failed_answer", "objective dpo needs an answer to the same question that did not pass"
    return None


@fast_linears()
def accumulate(
    lm: VideoLM, peft: Any, items: Sequence[Item], config: FinetuneConfig, ranks: Ranks | None = None
) -> tuple[float, dict[str, int]]:
    """Backward over one batch, pack by pack; (loss of the batch, tokens counted).

    The loss is the mean over answer tokens, each weighted by its example (`loss_per = "token"`), or the weighted mean
    over examples of their own means (`"example"`); of pairs (`objective = "dpo"`), the weighted mean over examples.
    """
    ranks = ranks or Ranks()
    weights = {id(i): _weight(i, config) for i in items}
    by_token = config.loss_per == "token" and config.objective == "sft"
    total = sum(i.example.weight * (len(i.answer) if by_token else 1) for i in items)
    groups = packs(items, config.micro_batch_size, config.micro_batch_tokens)
    loss = torch.zeros((), dtype=torch.float64)
    with packed_rows(lm) if config.pack else contextlib.nullcontext():
        for group in ranks.share(groups):
            scale = torch.tensor([weights[id(i)] / total for i in group], device=lm.device)
            piece = (_losses(lm, peft, group, config) * scale).sum()
            piece.backward()
            loss += piece.item()
    rows = [row for i in items for row in ((i, i.against) if i.rejected is not None else (i,))]
    counts = {
        "answer_tokens": sum(len(i.answer) for i in rows),
        "row_tokens": sum(i.tokens for i in rows),
        "packed_tokens": sum(_packed_tokens(g) for g in groups) if config.pack else sum(i.tokens for i in rows),
    }
    return float(ranks.sum(loss)), counts


def _losses(lm: VideoLM, peft: Any, items: Sequence[Item], config: FinetuneConfig) -> torch.Tensor:
    """Loss of each item, before its weight."""
    nll = packed_nll if config.pack else row_nll
    return nll(lm, items) if config.objective == "sft" else dpo_loss(lm, peft, items, config.dpo_beta, nll)


def _weight(item: Item, config: FinetuneConfig) -> float:
    """What an item's loss counts."""
    mean = config.loss_per == "example" and config.objective == "sft"
    return item.example.weight / (len(item.answer) if mean else 1)


def _packed_tokens(items: Sequence[Item]) -> int:
    return sum({key: n for i in items for key, n in i.parts.items()}.values())


@contextlib.contextmanager
def checkpointed(lm: VideoLM, config: FinetuneConfig) -> Iterator[None]:
    """Inside, the text stack's layers are run again in backward instead of being kept, if the settings say so."""
    if not config.gradient_checkpointing:
        yield
        return
    lm.text_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        lm.text_model.gradient_checkpointing_disable()
