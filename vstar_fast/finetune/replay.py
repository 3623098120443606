"""A batch whose loss or gradient was not finite, kept so that it can be looked at again."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import RunError
from vstar_fast.files import writing
from vstar_fast.finetune.items import Item, Reader
from vstar_fast.finetune.step import accumulate, streams
from vstar_fast.models import base_model
from vstar_fast.models.base_model import weights_key
from vstar_fast.models.modules import dtype_name
from vstar_fast.models.prompts import Talk
from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.records import Example

BATCH = "batch.pt"


def save(
    folder: Path, lm: VideoLM, peft: Any, items: Sequence[Item], config: FinetuneConfig, seed: int, step: int
) -> Path:
    """Write the weights that are trained, as they were before the step, and the batch; returns the folder."""
    clips = list({id(i.features): i.features for i in items if i.features is not None}.values())
    places = {id(clip): n for n, clip in enumerate(clips)}
    batch = {
        "base": lm.path,
        "key": weights_key(lm.path),
        "dtype": dtype_name(lm),
        "quantize": "4bit" if getattr(lm.model, "is_loaded_in_4bit", False) else "none",
        "seed": seed,
        "step": step,
        "config": asdict(config),
        "examples": [asdict(i.example) for i in items],
        "texts": [i.text.text if isinstance(i.text, Talk) else i.text for i in items],
        "answers": [(i.answer, i.rejected, i.said, i.wanted) for i in items],
        "clips": [(c.ids, c.kwargs, c.token_kwargs) for c in clips],
        "clip_of": [-1 if i.features is None else places[id(i.features)] for i in items],
    }
    shutil.rmtree(folder, ignore_errors=True)
    with writing(folder):
        folder.mkdir(parents=True)
        peft.save_pretrained(str(folder))
        torch.save(batch, folder / BATCH)
    return folder


def replay(folder: str | Path, device: str = "auto") -> dict[str, Any]:
    """The saved batch once more: loss and gradient norm, of each example and of all, and where they break.

    `broken`: parameters whose gradient is not finite, or that are not themselves. Raises RunError for a folder that
    holds no saved batch.
    """
    from peft import PeftModel

    from vstar_fast import models

    path = Path(folder)
    if not (path / BATCH).is_file():
        raise RunError(f"{path} has no {BATCH}; give the folder that the error of a training names")
    try:
        saved = torch.load(path / BATCH, weights_only=True)
    except Exception as error:  # a damaged file fails in ways of its own
        why = str(error).split("\n", 1)[0]
        raise RunError(f"{path / BATCH} is damaged ({why}); run the training again to have it written anew") from None
    if not (path / "adapter_model.safetensors").is_file():
        raise RunError(f"{path} has lost its weights; run the training again to have it written anew")
    lm = models.load(saved["base"], dtype=saved["dtype"], device=device, quantize=saved["quantize"])
    base_model.check(lm, path)
    if saved.get("key", weights_key(lm.path)) != weights_key(lm.path):
        raise RunError(f"the files of {lm.path} are not those that {path} was trained on; put those back to replay it")
    peft = PeftModel.from_pretrained(lm.model, str(path), is_trainable=True).train()
    config = FinetuneConfig(**saved["config"])
    items = _items(lm, saved)
    seeds = streams(saved["seed"], saved["step"])
    alone = [_measured(lm, peft, [item], config, seeds) for item in items]
    whole = _measured(lm, peft, items, config, seeds)
    broken = [n for n, p in peft.named_parameters() if not _finite(p) or (p.grad is not None and not _finite(p.grad))]
    each = [{"question_id": i.example.question_id, **found} for i, found in zip(items, alone, strict=True)]
    return {"step": saved["step"], **whole, "examples": each, "broken": broken}


def _items(lm: VideoLM, saved: dict[str, Any]) -> list[Item]:
    clips = [Features(*given) for given in saved["clips"]]
    shown = [None if n < 0 else clips[n] for n in saved["clip_of"]]
    examples = [Example(**row) for row in saved["examples"]]
    read = Reader(lm, lambda _: (saved["texts"], shown))(examples)
    names = ("answer", "rejected", "said", "wanted")  # an answer may have been cut, or a pair taken apart
    return [
        replace(item, **dict(zip(names, given, strict=True)))
        for item, given in zip(read, saved["answers"], strict=True)
    ]


def _measured(
    lm: VideoLM, peft: Any, items: Sequence[Item], config: FinetuneConfig, seeds: Callable[[int], int]
) -> dict[str, float]:
    peft.zero_grad()
    with torch.random.fork_rng():
        loss, _ = accumulate(lm, peft, items, config, stream=seeds)
    grads = [p.grad for p in peft.parameters() if p.grad is not None]
    return {"loss": loss, "grad_norm": math.sqrt(sum(float(g.double().square().sum()) for g in grads))}


def _finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
