"""Stage 2: questions about videos -> sampled answers (direct, or rationalized when a question has its hint)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.errors import ConfigError
from vstar_fast.kernels.sample import sample
from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.records import Candidate, CandidateBatch, Question

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import DecodeState, Grammar

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


class _Draw:
    """Draws the next token of each living row from the row's own random stream, and books it."""

    def __init__(
        self,
        seeds: Sequence[int],
        sampling: Sampling,
        eos_ids: Sequence[int],
        pad_id: int,
        device: Any,
        state: DecodeState | None,
    ) -> None:
        self.sampling = sampling
        self.state = state
        self.seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self.eos_ids = torch.tensor(eos_ids, device=device)
        shape = (len(seeds), sampling.max_new_tokens)
        self.token_ids = torch.full(shape, pad_id, dtype=torch.int64, device=device)
        self.lengths = torch.full((len(seeds),), sampling.max_new_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(len(seeds), device=device)

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Next token of each of `rows` from logits `[len(rows), V]`, and which of them end with it."""
        s = self.sampling
        if self.state is None:
            ids, logprobs = sample(logits, self.seeds[rows], step, s.temperature, top_p=s.top_p, top_k=s.top_k)
        else:
            ids, logprobs = self.state.sample_(logits, self.seeds[rows], s.temperature, s.top_p, s.top_k)
        ended = torch.isin(ids, self.eos_ids)
        open_rows = self.lengths[rows] == s.max_new_tokens
        self.token_ids[rows, step] = torch.where(open_rows, ids, self.token_ids[rows, step])
        self.logprobs[rows] += logprobs * open_rows
        self.lengths[rows] = torch.where(open_rows & ended, step, self.lengths[rows])
        return ids, ended | ~open_rows

    def keep(self, left: torch.Tensor) -> None:
        """Only these of the rows drawn last are drawn from now on."""
        if self.state is not None:
            self.state = self.state.take(left)


LEAVE = 0.75
"""Rows that ended leave the batch when no more than this share is left: each leaving copies the cache."""


def _decode(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,  # noqa: ARG001 - the signature of `generate(custom_generate=...)`
    stopping_criteria: Any,  # noqa: ARG001
    generation_config: Any,  # noqa: ARG001
    draw: _Draw,
    **kwargs: Any,
) -> torch.Tensor:
    """Decoding loop for `generate`: each prompt is read once, its samples fork behind it, ended rows leave."""
    samples = len(draw.seeds) // len(input_ids)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
    out = model(**inputs, return_dict=True)
    kwargs = model._update_model_kwargs_for_generation(out, kwargs, is_encoder_decoder=False)
    forks = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(samples)
    logits, ids = out.logits[forks, -1].float(), input_ids[forks]
    kwargs = _take(model, kwargs, forks) if samples > 1 else kwargs
    rows = torch.arange(len(forks), device=input_ids.device)
    for step in range(draw.sampling.max_new_tokens):
        token, ended = draw(logits, rows, step)
        left = (~ended).nonzero().squeeze(1)
        if len(left) == 0 or step == draw.sampling.max_new_tokens - 1:
            break
        ids = torch.cat([ids, token[:, None]], 1)
        if len(left) <= LEAVE * len(rows):
            rows, ids, kwargs = rows[left], ids[left], _take(model, kwargs, left)
            draw.keep(left)
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **kwargs)
        out = model(**inputs, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(out, kwargs, is_encoder_decoder=False)
        logits = out.logits[:, -1].float()
    return draw.token_ids


def _take(model: Any, kwargs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """The state of a generation for some of its rows (or several times the same one)."""
    from vstar_fast.models.hf_cache import CACHE

    taken = dict(kwargs)
    taken[CACHE].batch_select_indices(rows)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if isinstance(taken.get(name), torch.Tensor):
            taken[name] = taken[name][rows]
    if isinstance(taken.get("position_ids"), torch.Tensor):
        taken["position_ids"] = taken["position_ids"].index_select(-2, rows)  # [B, T], or [3, B, T] for M-RoPE
    for module in model.modules():
        if isinstance(getattr(module, "rope_deltas", None), torch.Tensor):
            module.rope_deltas = module.rope_deltas[rows]
    return taken


@torch.inference_mode()
def generate(
    lm: VideoLM,
    questions: Sequence[Question],
    features: Sequence[Features],
    sampling: Sampling,
    prompt: Prompter,
    seed: Seeder,
    grammars: Sequence[Grammar | None] = (),
) -> CandidateBatch:
    """Draw `sampling.samples` answers to each question in one batch of B = questions x samples rows.

    `features[i]` belongs to `questions[i]`; `prompt` gives the user's text of a question, `seed` the
    random stream of (question, sample). A sample does not depend on what else is in the batch. `grammars`: per
    question what its answers may be (None: anything); such an answer always ends within `max_new_tokens`, and
    its log-probability is that among the tokens allowed.
    """
    from transformers import GenerationConfig

    rows = [(q, n) for q in questions for n in range(sampling.samples)]
    seeds = [seed(q, n) for q, n in rows]
    state = _constrained(grammars, sampling, lm.device)
    draw = _Draw(seeds, sampling, lm.eos_ids, lm.pad_id, lm.device, state)
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=False, eos_token_id=lm.eos_ids, pad_token_id=lm.pad_id
    )
    inputs = lm.inputs([prompt(q) for q in questions], list(features))
    ids = lm.model.generate(**inputs, generation_config=settings, custom_generate=_decode, draw=draw)
    finished = draw.lengths < sampling.max_new_tokens
    return CandidateBatch(ids, draw.lengths, draw.logprobs, finished, [q for q, _ in rows], [n for _, n in rows], seeds)


def _constrained(grammars: Sequence[Grammar | None], sampling: Sampling, device: torch.device) -> DecodeState | None:
    """Where each row stands in its grammar; one token of the budget is kept for the end of the turn."""
    from vstar_fast.kernels.constrain import DecodeState

    if not any(grammars):
        return None
    least = max(grammar.shortest for grammar in grammars if grammar) + 1
    if sampling.max_new_tokens < least:
        raise ConfigError(
            f"max_new_tokens is {sampling.max_new_tokens}, but the shortest answer of a label takes {least} tokens; "
            "raise it, or set generate.constrain = false"
        )
    rows = [grammar for grammar in grammars for _ in range(sampling.samples)]
    budgets = [sampling.max_new_tokens - (grammar is not None) for grammar in rows]
    return DecodeState(rows, device=device, max_new_tokens=budgets)


def to_candidates(
    batch: CandidateBatch, lm: VideoLM, sampling: Sampling, tokenizer_key: str, mode: str
) -> Iterator[Candidate]:
    """The rows of a batch as records: ids without text, but for a tokenizer whose tokens have no bytes of their own."""
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
            text="" if lm.token_bytes else lm.tokenizer.decode(tokens, skip_special_tokens=True),
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
