"""Stage 2: questions about videos -> sampled answers (direct, or rationalized when a question has its hint)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vstar_fast.kernels.sample import sample
from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.records import Candidate, CandidateBatch, Question

Prompter = Callable[[Question], str]
Seeder = Callable[[Question, int], int]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy."""

    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


class _SeededSampler:
    """Logits processor: draws each row's token from the row's own random stream and leaves only that one."""

    def __init__(self, seeds: Sequence[int], sampling: Sampling, prompt_tokens: int, device: torch.device) -> None:
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        s = self._sampling
        step = input_ids.shape[1] - self._prompt_tokens
        ids, logprobs = sample(scores, self._seeds, step, s.temperature, top_p=s.top_p, top_k=s.top_k)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, float("-inf")).scatter_(1, ids.unsqueeze(1), 0.0)


@torch.inference_mode()
def generate(
    lm: VideoLM,
    questions: Sequence[Question],
    features: Sequence[Features],
    sampling: Sampling,
    prompt: Prompter,
    seed: Seeder,
) -> CandidateBatch:
    """Draw `sampling.samples` answers to each question in one batch of B = questions x samples rows.

    `features[i]` belongs to `questions[i]`; `prompt` gives the user's text of a question, `seed` the
    random stream of (question, sample). A sample does not depend on what else is in the batch.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    k = sampling.samples
    rows = [(q, f, n) for q, f in zip(questions, features, strict=True) for n in range(k)]
    inputs = lm.inputs([prompt(q) for q, _, _ in rows], [f for _, f, _ in rows])
    width = inputs["input_ids"].shape[1]
    seeds = [seed(q, n) for q, _, n in rows]
    sampler = _SeededSampler(seeds, sampling, width, lm.device)
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=False, eos_token_id=lm.eos_ids, pad_token_id=lm.pad_id
    )
    out = lm.model.generate(**inputs, generation_config=settings, logits_processor=LogitsProcessorList([sampler]))
    ids = out[:, width:]
    ended = torch.isin(ids, torch.tensor(lm.eos_ids, device=ids.device))
    lengths = torch.where(ended.any(1), ended.int().argmax(1), ids.shape[1])
    scored = torch.stack(sampler.logprobs, 1)
    inside = torch.arange(ids.shape[1], device=ids.device) <= lengths.unsqueeze(1)
    total = (scored * inside).sum(1)
    return CandidateBatch(ids, lengths, total, ended.any(1), [q for q, _, _ in rows], [n for _, _, n in rows], seeds)


def to_candidates(
    batch: CandidateBatch, lm: VideoLM, sampling: Sampling, tokenizer_key: str, mode: str
) -> Iterator[Candidate]:
    """The rows of a batch as records, with their text."""
    ids, lengths = batch.token_ids.tolist(), batch.lengths.tolist()
    logprobs, finished = batch.logprobs.tolist(), batch.finished.tolist()
    settings = asdict(sampling)
    for i, question in enumerate(batch.questions):
        tokens = ids[i][: lengths[i]]
        yield Candidate(
            question_id=question.id,
            video_id=question.video_id,
            sample=batch.samples[i],
            mode=mode,
            text=lm.tokenizer.decode(tokens, skip_special_tokens=True),
            token_ids=tuple(tokens),
            logprob=logprobs[i],
            finish="stop" if finished[i] else "length",
            seed=batch.seeds[i],
            tokenizer=tokenizer_key,
            sampling=settings,
            template=question.template,
        )


def batches(questions: Sequence[Question], rows: int, samples: int) -> Iterator[list[Question]]:
    """Cut questions into groups of at most `rows` answers."""
    size = max(1, rows // samples)
    for start in range(0, len(questions), size):
        yield list(questions[start : start + size])


def usable(questions: Sequence[Question], features: Mapping[str, Any]) -> tuple[list[Question], list[Features]]:
    """The questions whose video could be encoded, with its features."""
    kept = [q for q in questions if isinstance(features[q.video_id], Features)]
    return kept, [features[q.video_id] for q in kept]
