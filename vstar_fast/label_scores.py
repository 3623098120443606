"""Closed label sets scored instead of sampled: how likely the model holds each label, all of a set in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vstar_fast.answer_slots import ANSWER
from vstar_fast.records import Question

if TYPE_CHECKING:
    from vstar_fast.models.video_lm import Features, VideoLM

BINS = 10
"""Of the calibration error."""
TOP = 5


@dataclass(frozen=True)
class Scored:
    """One question: probability of each of its set's labels (they add up to 1), best first, and the right one."""

    question_id: str
    labels: tuple[str, ...]
    shares: tuple[float, ...]
    gold: str


def score(
    lm: VideoLM,
    asked: Sequence[Question],
    features: Sequence[Features],
    prompts: Sequence[str],
    surfaces: Sequence[Mapping[str, Sequence[str]]],
) -> list[Scored]:
    """Shares of the labels of each question right behind `Answer:`.

    `prompts`: the user's text of each question. `surfaces`: per question, name -> name and aliases as they are
    written in an answer. A label's probability is the sum over its surfaces.
    """
    from vstar_fast.engine import Request, Scorer

    scorer, found = Scorer(lm), []
    behind = _ids(lm, ANSWER)
    for question, video, prompt, names in zip(asked, features, prompts, surfaces, strict=True):
        head, tail = lm.split(prompt)
        request = Request(head, _joined(tail, behind), video, [0])
        labels = [[_ids(lm, f" {surface}") for surface in names[name]] for name in names]
        shares = scorer.score([request], labels)[0].softmax(0).tolist()
        order = sorted(range(len(shares)), key=lambda i: -shares[i])
        listed = list(names)
        gold = str(question.labels[0].value)
        ranked = tuple(listed[i] for i in order)
        found.append(Scored(question.id, ranked, tuple(shares[i] for i in order), gold))
    return found


def _ids(lm: VideoLM, text: str) -> list[int]:
    ids: list[int] = lm.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return ids


def _joined(tail: Any, ids: Sequence[int]) -> Any:
    import torch

    return torch.cat([tail, torch.tensor(ids, dtype=torch.long)])


def metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`n`, `top1`, `top5`, and the expected calibration error of the best label's share (10 equal bins)."""
    if not scored:
        return {"n": 0.0}
    places = np.array([s.labels.index(s.gold) if s.gold in s.labels else len(s.labels) for s in scored])
    sure, right = np.array([s.shares[0] for s in scored]), places == 0
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(right[bins == b].sum() - sure[bins == b].sum()) for b in range(BINS)]
    return {
        "n": float(len(scored)),
        "top1": float(right.mean()),
        "top5": float((places < TOP).mean()),
        "calibration_error": float(sum(gaps) / len(scored)),
    }
