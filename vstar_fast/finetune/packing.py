"""Whether examples are packed or trained on row by row: for `finetune.pack = "auto"` it is tried."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vstar_fast import backends
from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import NotPacked
from vstar_fast.finetune.items import Item
from vstar_fast.finetune.loss import packed_nll, packed_rows, row_nll
from vstar_fast.models.modules import evaluating, rounding
from vstar_fast.models.video_lm import VideoLM

_said: WeakKeyDictionary[VideoLM, str] = WeakKeyDictionary()
"""Why a model's training goes row by row, as it was said."""


def decided(
    lm: VideoLM, peft: Any, items: Sequence[Item], config: FinetuneConfig, note: Callable[[str], None] | None
) -> FinetuneConfig:
    """The settings with `pack` true or false. Where "auto" comes to false, `note` (None: the log) is told why, once."""
    why = obstacle(lm, peft, items) if config.pack == "auto" else "asked for"
    packed = not why if config.pack == "auto" else bool(config.pack)
    name = "packed" if packed else "row by row"
    backends.ran("training", name, why=why or "it gives the loss of rows")
    if not packed and config.pack == "auto" and _said.get(lm) != why:
        _said[lm] = why
        tell = note or logging.getLogger(__name__).warning
        tell(f"training goes row by row, slower: {why}")
    return dataclasses.replace(config, pack=packed)


def refusal(lm: VideoLM) -> str:
    """Why a model's layers allow no packed rows, in words; empty where they may. No weights are looked at."""
    try:
        with packed_rows(lm):
            pass
    except NotPacked as error:
        return _words(error)
    return ""


def _words(error: NotPacked) -> str:
    return str(error).partition("; set finetune.pack")[0].removesuffix(": not with packed rows")


def obstacle(lm: VideoLM, peft: Any, items: Sequence[Item]) -> str:
    """Why items cannot be packed, in words; empty where their longest, and one about another video, can be."""
    tried = _tried(items)
    devices = [torch.cuda.current_device()] if lm.device.type == "cuda" else []
    mode = peft.training
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), packed_rows(lm):
            peft.train()  # what is dropped out then may be refused
            packed_nll(lm, tried)
            with evaluating(peft):
                packed = packed_nll(lm, tried)
    except NotPacked as error:
        return _words(error)
    finally:
        peft.train(mode)
    return _difference(lm, peft, tried, packed)


@torch.no_grad()
def _difference(lm: VideoLM, peft: Any, items: Sequence[Item], packed: torch.Tensor) -> str:
    with evaluating(peft):
        rows = row_nll(lm, items)
    counts = torch.tensor([len(i.answer) for i in items], device=rows.device)
    error = float(((packed - rows).abs() / counts).max())
    if error <= rounding(lm):
        return ""
    return f"the loss of a packed token is {error:.2g} from that of a row's"


def _tried(items: Sequence[Item]) -> list[Item]:
    """The longest item, and the longest about another video."""
    order = sorted(items, key=lambda i: -i.tokens)
    return order[:1] + [i for i in order if i.clip != order[0].clip][:1]
