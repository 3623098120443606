"""Closed label sets scored instead of sampled: how likely the model holds each label, all of a set in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vstar_fast.errors import ConfigError
from vstar_fast.labels.slots import ANSWER
from vstar_fast.match.text import fold
from vstar_fast.models.preprocessing import probe_clip
from vstar_fast.records import FrameBatch, Question

if TYPE_CHECKING:
    from vstar_fast.engine import Request
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
    *,
    norm: str = "sum",
    blank: Features | None = None,
    engine: str = "auto",
) -> list[Scored]:
    """Shares of the labels of each question right behind `Answer:`, in the order of the questions.

    `prompts`: the user's text of each question. `surfaces`: per question, name -> name and aliases as they are
    written in an answer. `norm`: "sum", a label's probability is the sum over its surfaces; "mean", that a token of
    its likeliest surface; "pmi", "sum" against that behind `blank`, a video without content (see `blank_video`):
    what the video speaks for, less what the words alone make likely. A video goes through the model once for all its
    questions. `engine`: see `engine.ways.choose`.
    """
    from vstar_fast.engine import Scorer

    if norm == "pmi" and blank is None:
        raise ConfigError("label scores of norm 'pmi' need the features of a blank video; see scores.blank_video")
    order = sorted(range(len(asked)), key=lambda i: asked[i].video_id)
    known: dict[tuple[str, ...], list[list[list[int]]]] = {}
    labels = [known.setdefault(_key(names), _spelt(lm, names)) for names in surfaces]
    behind = _ids(lm, ANSWER)
    requests = [_request(lm, prompts[i], behind, features[i]) for i in order]
    scorer, plain = Scorer(lm, engine=engine), "sum" if norm == "pmi" else norm
    found = scorer.score_each(requests, [labels[i] for i in order], norm=plain)
    if blank is not None and norm == "pmi":
        found = _less_blank(lm, scorer, found, [(prompts[i], labels[i]) for i in order], behind, blank)
    made = {i: _scored(asked[i], list(surfaces[i]), scores) for i, scores in zip(order, found, strict=True)}
    return [made[i] for i in range(len(asked))]


def blank_video(lm: VideoLM, frames: int) -> Features:
    """The features of so many black frames, a second apart."""
    data, _ = probe_clip()
    black = data.new_zeros(frames, *data.shape[1:])
    found: Features = lm.encode(FrameBatch([black], [tuple(float(i) for i in range(frames))], []))[0]
    return found


def _less_blank(
    lm: VideoLM, scorer: Any, found: Sequence[Any], asked: Sequence[tuple[str, Any]], behind: list[int], blank: Features
) -> list[Any]:
    """Scores less those of the same labels behind the same words and a blank video; equal ones are scored once."""
    places = {(prompt, id(labels)): i for i, (prompt, labels) in enumerate(asked)}
    kinds = list(places)
    requests = [_request(lm, prompt, behind, blank) for prompt, _ in kinds]
    scores = scorer.score_each(requests, [asked[places[kind]][1] for kind in kinds])
    prior = dict(zip(kinds, scores, strict=True))
    return [x - prior[prompt, id(labels)] for x, (prompt, labels) in zip(found, asked, strict=True)]


def _request(lm: VideoLM, prompt: str, behind: list[int], video: Features) -> Request:
    from vstar_fast.engine import Request

    head, tail = lm.split(prompt)
    return Request(head, _joined(tail, behind), video, [0])


def _key(names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(part for name, listed in names.items() for part in (name, *listed, ""))


def _spelt(lm: VideoLM, names: Mapping[str, Sequence[str]]) -> list[list[list[int]]]:
    return [[_ids(lm, f" {surface}") for surface in listed] for listed in names.values()]


def _scored(question: Question, names: list[str], scores: Any) -> Scored:
    shares = scores.softmax(0).tolist()
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    value = str(question.labels[0].value)
    gold = next((name for name in names if fold(name) == fold(value)), value)
    return Scored(question.id, tuple(names[i] for i in order), tuple(shares[i] for i in order), gold)


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
