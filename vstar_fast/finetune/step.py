"""One batch: its loss and gradients, pass by pass."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.distributed import Ranks
from vstar_fast.finetune.batches import packs
from vstar_fast.finetune.items import Item
from vstar_fast.finetune.loss import packed_nll, packed_rows, row_nll
from vstar_fast.finetune.preferences import divergence, dpo_loss, kto_loss, mismatched
from vstar_fast.kernels.linear import fast_linears, packed_linears
from vstar_fast.models.video_lm import VideoLM

Losses = Callable[[Sequence[Item]], torch.Tensor]


def accumulate(
    lm: VideoLM,
    peft: Any,
    items: Sequence[Item],
    config: FinetuneConfig,
    ranks: Ranks | None = None,
    stream: Callable[[int], int] | None = None,
) -> tuple[float, dict[str, int]]:
    """Backward over one batch, pack by pack; (loss of the batch, tokens counted).

    The loss is the mean over answer tokens, each weighted by its example (`loss_per = "token"`), or the weighted mean
    over examples of their own means (`"example"`); with preferences, the weighted mean over examples. `stream` gives
    a pack's random seed by its number, so that what is dropped out depends on neither processes nor a restart.
    """
    ranks = ranks or Ranks()
    weights = {id(i): _weight(i, config) for i in items}
    by_token = config.loss_per == "token" and config.objective == "sft"
    total = sum(i.example.weight * (len(i.answer) if by_token else 1) for i in items)
    groups = _passes(items, config)
    loss = torch.zeros((), dtype=torch.float64)
    with fast_linears(half=lm.mixed and config.half), packed_rows(lm) if config.pack else contextlib.nullcontext():
        losses = _objective(lm, peft, items, config, ranks, stream)
        for group, counted in _shared(groups, ranks, stream):
            scale = torch.tensor([counted * weights[id(i)] / total for i in group], device=lm.device)
            piece = (losses(group) * scale).sum()
            piece.backward()
            loss += piece.item()
    return float(ranks.sum(loss)), _counts(items, groups, config)


def _shared(
    groups: Sequence[list[Item]], ranks: Ranks, stream: Callable[[int], int] | None, first: int = 0
) -> Iterator[tuple[list[Item], float]]:
    """This process's passes and what each counts, random numbers set for each; the passes count from `first`."""
    for (number, group), counted in ranks.share(list(enumerate(groups, first))):
        if stream is not None:
            torch.manual_seed(stream(number))
        yield group, counted


def _passes(items: Sequence[Item], config: FinetuneConfig) -> list[list[Item]]:
    """Items of one forward and backward each; rows go alone: what is kept for backward would be that of all of them."""
    return packs(items, config.micro_batch_size, config.micro_batch_tokens) if config.pack else [[i] for i in items]


def streams(seed: int, step: int) -> Callable[[int], int]:
    """Number of a pass -> seed of its random numbers, in this step of a training."""

    def of_pass(number: int) -> int:
        text = f"{seed}/{step}/{number}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

    return of_pass


def _objective(
    lm: VideoLM,
    peft: Any,
    items: Sequence[Item],
    config: FinetuneConfig,
    ranks: Ranks,
    stream: Callable[[int], int] | None,
) -> Losses:
    """Items of a pass -> the loss of each, before its weight. KTO's reference point is that of the whole batch."""
    nll = packed_nll if config.pack else row_nll
    if config.objective == "dpo":
        return lambda group: dpo_loss(lm, peft, group, config.dpo_beta, nll)
    if config.objective == "kto":
        others = _passes(mismatched(items), config)
        kl = divergence(lm, peft, _shared(others, ranks, stream, -len(others)), nll, ranks.sum)
        return lambda group: kto_loss(lm, peft, group, config.kto_beta, kl, nll)
    return lambda group: nll(lm, group)


def _weight(item: Item, config: FinetuneConfig) -> float:
    """What an item's loss counts."""
    mean = config.loss_per == "example" and config.objective == "sft"
    return item.example.weight / (len(item.answer) if mean else 1)


def _counts(items: Sequence[Item], groups: Sequence[Sequence[Item]], config: FinetuneConfig) -> dict[str, int]:
    """Tokens of a batch: of its answers, of its rows, and of what its passes hold."""
    rows = [row for i in items for row in ((i, i.against) if i.rejected is not None else (i,))]
    packed = [{key: n for i in group for key, n in i.parts.items()} for group in groups]
    return {
        "answer_tokens": sum(len(i.answer) for i in rows),
        "row_tokens": sum(i.tokens for i in rows),
        "packed_tokens": sum(i.tokens for i in rows) if not config.pack else sum(sum(g.values()) for g in packed),
    }


@contextlib.contextmanager
def copied(lm: VideoLM, config: FinetuneConfig) -> Iterator[None]:
    """Inside, frozen weights that are multiplied in bf16 are rounded once, if there is memory for the copies."""
    from vstar_fast.models import memory

    size = sum(p.nbytes for p in lm.text_model.parameters()) // 2
    if not (lm.mixed and config.half and memory.room_for_copies(size, lm.device)):
        yield
        return
    with packed_linears([lm.text_model], half=True, backward=True):
        yield


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
