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
from vstar_fast.finetune.loss import packed_nll, packed_rows, row_nll
from vstar_fast.finetune.optimizer import Optimizer
from vstar_fast.models.video_lm import VideoLM
from vstar_fast.records import Example

__all__ = ["Rows", "accumulate", "count_steps", "finetune", "lora_settings"]


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
    """Train the adapter on `examples` and save it in folder `out`; returns what `training.json` there holds.

    `rows` gives (question texts, features) of examples; `on_step(step, steps, loss)` is called after each
    step. How a batch is split up changes neither its loss nor its gradients. Under `torchrun` every rank calls this
    with the same arguments and takes its share of each batch; the first saves. Raises RunError when the loss is not
    finite, NothingKept when every example is longer than `micro_batch_tokens`.
    """
    ranks = Ranks()
    items, too_long = _fitting(Reader(lm, rows)(examples), config)
    steps = count_steps(config, len(items))
    optimizer = Optimizer(lm, peft, config, steps)
    ranks.same_start(optimizer.parameters)
    peft.train()
    log: dict[str, Any] = {"loss": [], "grad_norm": [], "answer_tokens": 0, "row_tokens": 0, "packed_tokens": 0}
    with checkpointed(lm, config):
        videos = [i.example.video_id for i in items]
        for step, batch in enumerate(batches(items, videos, config.batch_size, steps, seed)):
            loss, counts = accumulate(lm, batch, config, ranks)
            ranks.sum_gradients(optimizer.parameters)
            if not math.isfinite(loss):
                raise RunError(f"loss is {loss} at step {step}; lower finetune.lr (now {config.lr}) and run again")
            log["loss"].append(loss)
            log["grad_norm"].append(optimizer.step())
            log |= {name: log[name] + n for name, n in counts.items()}
            if on_step is not None:
                on_step(step + 1, steps, loss)
    peft.eval()
    log |= {"steps": steps, "examples": len(items), "too_long": too_long}
    if ranks.first:
        peft.save_pretrained(str(out))
        (out / "training.json").write_text(json.dumps(log))
    ranks.wait()
    return log


def _fitting(items: list[Item], config: FinetuneConfig) -> tuple[list[Item], list[dict[str, Any]]]:
    """Items that fit `micro_batch_tokens` as a row (cut, if the settings say so), and a record of every other."""
    most = config.micro_batch_tokens
    items = [cut(i, most) if config.cut_long and i.tokens > most else i for i in items]
    fitting = [i for i in items if i.tokens <= most]
    if not fitting:
        raise NothingKept(
            f"all {len(items)} examples are longer than finetune.micro_batch_tokens = {most} "
            f"(the shortest has {min(i.tokens for i in items)} tokens); raise it or use fewer frames"
        )
    return fitting, [{"question_id": i.example.question_id, "tokens": i.tokens} for i in items if i.tokens > most]


def accumulate(
    lm: VideoLM, items: Sequence[Item], config: FinetuneConfig, ranks: Ranks | None = None
) -> tuple[float, dict[str, int]]:
    """Backward over one batch, pack by pack; (loss of the batch, tokens counted).

    The loss is the mean over answer tokens, each weighted by its example (`loss_per = "token"`), or the weighted mean
    over examples of their own means (`"example"`).
    """
    ranks = ranks or Ranks()
    nll = packed_nll if config.pack else row_nll
    weights = {id(i): _weight(i, config) for i in items}
    total = sum(i.example.weight * (len(i.answer) if config.loss_per == "token" else 1) for i in items)
    groups = packs(items, config.micro_batch_size, config.micro_batch_tokens)
    loss = torch.zeros((), dtype=torch.float64)
    with packed_rows(lm) if config.pack else contextlib.nullcontext():
        for group in ranks.share(groups):
            scale = torch.tensor([weights[id(i)] / total for i in group], device=lm.device)
            piece = (nll(lm, group) * scale).sum()
            piece.backward()
            loss += piece.item()
    counts = {
        "answer_tokens": sum(len(i.answer) for i in items),
        "row_tokens": sum(i.tokens for i in items),
        "packed_tokens": sum(_packed_tokens(g) for g in groups) if config.pack else sum(i.tokens for i in items),
    }
    return float(ranks.sum(loss)), counts


def _weight(item: Item, config: FinetuneConfig) -> float:
    """What an item's summed log-likelihood counts."""
    return item.example.weight / (1 if config.loss_per == "token" else len(item.answer))


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
