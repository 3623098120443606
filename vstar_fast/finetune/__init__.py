"""Stage 5: examples -> adapter (PEFT): what the examples of a video share is read once, answers branch off behind it.

The loss is over the answers' tokens only. The paper fine-tunes in full, as far as one can tell from its settings;
LoRA, the default, is our departure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vstar_fast.config import FinetuneConfig
from vstar_fast.distributed import Ranks
from vstar_fast.errors import ModelError, NothingKept
from vstar_fast.finetune.adapter import lora_settings
from vstar_fast.finetune.batches import count_steps
from vstar_fast.finetune.fit import Fit, Places
from vstar_fast.finetune.fsdp import split_layers
from vstar_fast.finetune.items import Item, Reader, Rows, cut
from vstar_fast.finetune.packing import decided
from vstar_fast.finetune.replay import replay
from vstar_fast.finetune.step import accumulate, checkpointed
from vstar_fast.models import base_model
from vstar_fast.models.modules import dtype_name
from vstar_fast.models.video_lm import VideoLM
from vstar_fast.records import Example

__all__ = ["Places", "Rows", "accumulate", "checkpointed", "count_steps", "finetune", "lora_settings", "replay"]


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
    places: Places | None = None,
    key: str = "",
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train the adapter on `examples` and save it in folder `out`; returns what `training.json` there holds.

    `rows` gives (question texts, features) of examples; `on_step(step, steps, loss)` is called after each
    step. How a batch is split up changes neither its loss nor its gradients. Stopped anywhere and called again with
    the same arguments, it goes on from the last checkpoint (see `Places`; default: beside `out`) to the same weights;
    `key` names what they depend on, by default a digest of everything: examples, features, settings, and the weights
    of `lm` as they are in memory (see `base_model.key_of`), so that a base model that was changed is trained anew
    and one that was moved is not. `note` is told what the user should know.
    Under `torchrun` every rank calls this with the same arguments and takes its share of each batch; the first saves.

    Raises ModelError for `half` with a model that is not in mixed precision, RunError when loss or gradient is not
    finite or `out` cannot be written, NothingKept when no example can be used.
    """
    ranks = Ranks()
    if config.half and not lm.mixed:
        told = f"finetune.half = true is for model.dtype = mixed, {lm.path} is in {dtype_name(lm)}"
        raise ModelError(f"{told}; set finetune.half = false")
    if config.split:
        split_layers(lm, config, ranks)
    items, left_out = _usable(Reader(lm, rows)(examples), config)
    config = decided(lm, peft, items, config, note)
    note = note or _silent
    fit = Fit(lm, peft, items, config, ranks, seed, places or Places.beside(Path(out)), key, note)
    with checkpointed(lm, config):
        fit.run(on_step)
    counted = {"steps": fit.steps, "examples": len(items), "left_out": left_out, "packed": config.pack}
    log = {**fit.log, **counted, "base": base_model.describe(lm)}
    fit.save(Path(out), log)
    return log


def _silent(_: str) -> None:
    pass


def _usable(items: list[Item], config: FinetuneConfig) -> tuple[list[Item], list[dict[str, str]]]:
    """Items that can be trained on (cut, if the settings say so), and for each other one why it cannot."""
    most = config.micro_batch_tokens
    items = [cut(i, most) if config.cut_long and i.tokens > most else i for i in items]
    if config.objective == "kto":  # a pair is an answer that is wanted and one that is not
        items = [one for i in items for one in ([i] if i.rejected is None else [i.alone, i.against])]
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
    if not item.said.strip():
        return "no_answer", "its answer has no words, so nothing of it can be trained on; take it out of the data"
    if item.tokens > most:
        return (
            "too_long",
            f"{item.tokens} tokens, but finetune.micro_batch_tokens = {most}; raise it or use fewer frames",
        )
    if config.objective == "dpo" and item.rejected is None:
        return (
            "no_failed_answer",
            "objective dpo needs an answer to the same question that did not pass; raise generate.samples or "
            "generate.temperature, or set finetune.objective = sft or kto",
        )
    if config.objective == "dpo" and not item.example.rejected.strip():
        return "no_answer", "its rejected answer has no words, so nothing of it can be trained on; take the pair out"
    if config.objective != "kto" and not item.wanted:
        return "failed_answer", f"an answer that did not pass is of use to objective kto alone, not {config.objective}"
    return None
