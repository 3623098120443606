"""Stage 2: questions about videos -> sampled answers (direct, or rationalized when a question has its hint)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.records import Candidate, CandidateBatch, Question

if TYPE_CHECKING:
    from vstar_fast.engine import Answer, Counts, Request
    from vstar_fast.kernels.constrain import Grammar

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


class Asked(NamedTuple):
    """A question, its video, what its answers may be (or a list, of each), and which of them are wanted (None: any).

    An answer that can no longer become a wanted one is not drawn to its end.
    """

    question: Question
    features: Features
    grammar: Grammar | Sequence[Grammar | None] | None = None
    gold: Grammar | None = None


def stream(
    lm: VideoLM,
    asked: Iterable[Asked],
    sampling: Sampling,
    prompt: Prompter,
    seed: Seeder,
    *,
    max_rows: int | None = None,
    engine: str = "auto",
    counts: Callable[[Counts], None] | None = None,
) -> Iterator[tuple[Question, CandidateBatch]]:
    """`sampling.samples` answers to each question, as they get done; questions come in as rows get free.

    `prompt` gives the user's text of a question, `seed` the random stream of (question, sample). A sample does not
    depend on what else is drawn. `max_rows`, `engine`: see `Crew`. `counts` is told at the end what was done.
    """
    from vstar_fast.engine import Crew
    from vstar_fast.engine.merged import merged
    from vstar_fast.models import memory

    with merged(lm.model, lm.device):
        crew = Crew(lm, max_rows=max_rows, engine=engine)
        with contextlib.closing(crew.run(_requests(lm, asked, sampling, prompt, seed))) as drawn:
            for request, answers in drawn:
                yield request.tag, _batch(lm, request.tag, answers, sampling)
        if counts is not None:
            counts(crew.counts)
    memory.release(lm.device)


def _requests(
    lm: VideoLM, asked: Iterable[Asked], sampling: Sampling, prompt: Prompter, seed: Seeder
) -> Iterator[Request]:
    from vstar_fast.engine import Request, Settings

    settings = Settings(sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens)
    for question, features, grammar, gold in asked:
        head, tail = lm.split(prompt(question))
        seeds = [seed(question, n) for n in range(sampling.samples)]
        yield Request(head, tail, features, seeds, settings, grammar, gold, question)


def _batch(lm: VideoLM, question: Question, answers: Sequence[Answer], sampling: Sampling) -> CandidateBatch:
    """The answers to one question, padded."""
    ids = torch.full((len(answers), sampling.max_new_tokens), lm.pad_id, dtype=torch.int64)
    for i, answer in enumerate(answers):
        ids[i, : len(answer.token_ids)] = torch.tensor(answer.token_ids)
    return CandidateBatch(
        token_ids=ids,
        lengths=torch.tensor([len(a.words) for a in answers]),
        logprobs=torch.tensor([a.logprob for a in answers]),
        finished=torch.tensor([a.finish == "stop" for a in answers]),
        questions=[question] * len(answers),
        samples=[a.sample for a in answers],
        seeds=[a.seed for a in answers],
        stopped=torch.tensor([a.finish == "stopped_early" for a in answers]),
    )


def generate(
    lm: VideoLM,
    questions: Sequence[Question],
    features: Sequence[Features],
    sampling: Sampling,
    prompt: Prompter,
    seed: Seeder,
    grammars: Sequence[Grammar | None] = (),
    *,
    max_rows: int | None = None,
) -> CandidateBatch:
    """Answers to all questions as one batch of B = questions x samples rows, in the order of the questions.

    `features[i]` belongs to `questions[i]`. `grammars`: per question what its answers may be (None: anything); such
    an answer always ends within `max_new_tokens`, and its log-probability is that among the tokens allowed.
    """
    allowed = grammars or [None] * len(questions)
    asked = [Asked(q, f, g) for q, f, g in zip(questions, features, allowed, strict=True)]
    found = {id(q): batch for q, batch in stream(lm, asked, sampling, prompt, seed, max_rows=max_rows)}
    return joined([found[id(q)] for q in questions])


def joined(parts: Sequence[CandidateBatch]) -> CandidateBatch:
    """Batches of equal width as one."""

    def tensors(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    def lists(name: str) -> list[Any]:
        return [x for part in parts for x in getattr(part, name)]

    return CandidateBatch(
        token_ids=tensors("token_ids"),
        lengths=tensors("lengths"),
        logprobs=tensors("logprobs"),
        finished=tensors("finished"),
        questions=lists("questions"),
        samples=lists("samples"),
        seeds=lists("seeds"),
        stopped=tensors("stopped"),
    )


def to_candidates(
    batch: CandidateBatch, lm: VideoLM, sampling: Sampling, tokenizer_key: str, mode: str
) -> Iterator[Candidate]:
    """The rows of a batch as records: ids without text, but for a tokenizer whose tokens have no bytes of their own."""
    ids, lengths = batch.token_ids.tolist(), batch.lengths.tolist()
    logprobs, finished, stopped = batch.logprobs.tolist(), batch.finished.tolist(), batch.stopped.tolist()
    settings = asdict(sampling)
    for i, question in enumerate(batch.questions):
        tokens = ids[i][: lengths[i]]
        yield Candidate(
            question_id=question.id,
            video_id=question.video_id,
            sample=batch.samples[i],
            mode=mode,
            text="" if lm.token_bytes else _text(lm, tokens),
            token_ids=tuple(tokens),
            logprob=logprobs[i],
            finish="stop" if finished[i] else "stopped_early" if stopped[i] else "length",
            seed=batch.seeds[i],
            tokenizer=tokenizer_key,
            sampling=settings,
            template=question.template,
        )


def _text(lm: VideoLM, tokens: list[int]) -> str:
    """The words of an answer; of one without words its special tokens, for an answer with ids has text."""
    return lm.tokenizer.decode(tokens, skip_special_tokens=True) or lm.tokenizer.decode(tokens)


def batches(questions: Sequence[Question], rows: int, samples: int) -> Iterator[list[Question]]:
    """Cut questions into groups of at most `rows` answers."""
    size = max(1, rows // samples)
    for start in range(0, len(questions), size):
        yield list(questions[start : start + size])


def usable(questions: Sequence[Question], features: Mapping[str, Any]) -> tuple[list[Question], list[Features]]:
    """The questions whose video could be encoded, with its features."""
    kept = [q for q in questions if isinstance(features[q.video_id], Features)]
    return kept, [features[q.video_id] for q in kept]
