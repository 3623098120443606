"""Losses over preferences: DPO on pairs, KTO on single answers; the reference is the model with its adapter off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from vstar_fast.finetune.items import Item
from vstar_fast.models.video_lm import VideoLM

NLL = Callable[[VideoLM, Sequence[Item]], torch.Tensor]
"""Negative log-likelihood of each item's answer: `packed_nll` or `row_nll`."""


def dpo_loss(lm: VideoLM, peft: Any, items: Sequence[Item], beta: float, nll: NLL) -> torch.Tensor:
    """DPO's loss (arXiv 2305.18290, eq. 7) of each item's two answers, `[len(items)]`; both behind one prefix."""
    sides = [*items, *(i.against for i in items)]
    gained = log_ratios(lm, peft, sides, nll).view(2, -1)
    return -torch.nn.functional.logsigmoid(beta * (gained[0] - gained[1]))


def kto_loss(lm: VideoLM, peft: Any, items: Sequence[Item], beta: float, kl: float, nll: NLL) -> torch.Tensor:
    """KTO's loss (arXiv 2402.01306, eq. 8) of each item's answer, wanted or not, `[len(items)]`.

    `kl`: how far the model is from its reference on answers to other questions, see `divergence`.
    """
    signs = torch.tensor([1.0 if i.wanted else -1.0 for i in items], device=lm.device)
    return 1 - torch.sigmoid(beta * signs * (log_ratios(lm, peft, items, nll) - kl))


def log_ratios(lm: VideoLM, peft: Any, items: Sequence[Item], nll: NLL) -> torch.Tensor:
    """By how much the model finds each answer likelier than the reference does, `[len(items)]`."""
    with torch.no_grad(), peft.disable_adapter():
        reference = nll(lm, items)
    return reference - nll(lm, items)


def mismatched(items: Sequence[Item]) -> list[Item]:
    """Each item with the answer of the one before it (of the last, for the first) that is about something else.

    Where all are about the same question it is the answer of the one before.
    """
    found = []
    for n, item in enumerate(items):
        others = (items[n - back] for back in range(1, len(items)))
        other = next((o for o in others if (o.clip, o.text) != (item.clip, item.text)), items[n - 1])
        found.append(item.saying(other))
    return found


def divergence(
    lm: VideoLM,
    peft: Any,
    groups: Iterable[tuple[Sequence[Item], float]],
    nll: NLL,
    total: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    """KTO's reference point: the mean log ratio of mismatched answers, at least 0.

    `groups`: this process's passes over `mismatched` items, and what each counts. `total` sums over processes.
    """
    found = torch.zeros(2, dtype=torch.float64)
    for group, counted in groups:
        with torch.no_grad():
            ratios = log_ratios(lm, peft, group, nll)
        found += counted * torch.tensor([float(ratios.double().sum()), len(ratios)], dtype=torch.float64)
    gained, count = total(found).tolist()
    return max(0.0, gained / count)
