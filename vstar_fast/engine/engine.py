"""`Engine`: many questions about many videos, several answers each, over one Hugging Face video-LMM.

    engine = Engine(model, processor)
    answers = engine.generate(videos, questions, n=8, settings=Settings(temperature=0.8))
    engine.text(answers[0][0])

A video's tokens go through the model once, a question once behind them, and its answers fork from there: what they
share is stored once and read once a step. Answers that end leave at once, and further questions take their place.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.engine import clips, memory
from vstar_fast.engine.batch import Batch, Flight, Group, Row
from vstar_fast.engine.prompts import Prompts
from vstar_fast.engine.request import Answer, Counts, Request, Settings
from vstar_fast.engine.stack import Stack
from vstar_fast.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import Grammar

LOOKAHEAD = 64
"""Requests that are looked at before their turn, to see which videos will be asked about again."""
PLAIN_BELOW = {"cpu": 16, "cuda": 192}
"""Prompts of at most so many tokens are copied to their answers, which then have one part to attend to, not two.

On a CPU sharing won at 90 tokens already (16 prompts x 4: 0.6 ms a layer against 1.5); for GPUs others measured a
loss at 128 and a gain at 256.
"""
REFILL = 8
"""New questions are taken in when a REFILLth of the rows is free, so that they come several at a time."""


class Scheduler:
    """Takes requests in as rows get free, steps, gives finished requests back.

    `lm`: a `VideoLM`, or a `TextLM`. `max_rows`: answers drawn at once; `memory_bytes`: for keys and values, default
    half of what is free. `plain_below`: see PLAIN_BELOW. An answer depends on its
    request alone, on none of these.
    """

    def __init__(
        self, lm: Any, *, max_rows: int = 64, memory_bytes: int | None = None, plain_below: int | None = None
    ) -> None:
        self.lm = lm
        self.stack = Stack(lm)
        self.counts = Counts()
        self.max_rows = max_rows
        self.memory_bytes = memory.free_bytes(lm.device) // 2 if memory_bytes is None else memory_bytes
        self._prompts = Prompts(self.stack)
        short = PLAIN_BELOW[lm.device.type] if plain_below is None else plain_below
        self._batch = Batch(self.stack, lm.eos_ids, self.counts, short)
        self._inbound: list[Flight] = []

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[Answer]]]:
        """Requests with their answers, as they get done."""
        source = iter(requests)
        waiting: deque[Flight] = deque()
        try:
            while True:
                self._look_ahead(source, waiting)
                if not waiting and not len(self._batch):
                    return
                for flight in self._turn(waiting):
                    yield flight.request, flight.answers
        finally:
            self.clear()

    def clear(self) -> None:
        """Let go of all prompts, rows and their memory."""
        self._batch.clear()
        self._prompts.clear()
        self.stack.store.clear()

    @staticmethod
    def _look_ahead(source: Iterator[Request], waiting: deque[Flight]) -> None:
        while len(waiting) < LOOKAHEAD:
            request = next(source, None)
            if request is None:
                return
            answers = [Answer(n, seed, finish="") for n, seed in enumerate(request.seeds)]
            waiting.append(Flight(request, answers, list(answers)))

    @torch.inference_mode()
    def _turn(self, waiting: deque[Flight]) -> list[Flight]:
        """Take in what fits, one step; the requests that got done. On out-of-memory, half the rows, all anew."""
        try:
            with self._clock("prefill"):
                done = self._take_in(waiting)
            if len(self._batch):
                with self._clock("decode"):
                    self._batch.step()
                done += self._let_go(waiting)
            return done
        except Exception as error:
            if not memory.ran_out(error):
                raise
            self._halve(waiting, error)
            return []

    def _take_in(self, waiting: deque[Flight]) -> list[Flight]:
        groups, taken = [], len(self._batch)
        if taken and self.max_rows - taken < max(1, self.max_rows // REFILL):
            return []
        picked: list[tuple[Flight, list[Answer]]] = []
        reserved = sum(g.reserved for g in self._batch.groups)
        while waiting:
            flight = waiting[0]
            n, need = len(flight.todo), self._need(flight)
            fits = taken + n <= self.max_rows and reserved + need <= self.memory_bytes
            if not fits and (taken or picked):
                break
            answers = flight.todo[: self.max_rows]
            flight.todo = flight.todo[self.max_rows :]
            picked.append((flight, answers))
            taken, reserved = taken + len(answers), reserved + need
            if flight.todo:
                break
            waiting.popleft()
        if not picked:
            return []
        for flight, answers in picked:
            flight.open += len(answers)
        self._inbound = [flight for flight, _ in picked]
        prefixes = self._prompts.put([f.request for f, _ in picked], [f.request for f in waiting])
        for (flight, answers), prefix in zip(picked, prefixes, strict=True):
            rows = [Row(flight, answer, prefix.next_position) for answer in answers]
            groups.append(Group(flight, prefix, rows, self._need(flight, len(answers))))
        self._batch.join(groups)
        self._inbound = []
        self.counts.prefilled = self._prompts.tokens
        return self._let_go(waiting)

    def _need(self, flight: Flight, rows: int | None = None) -> int:
        """Bytes of keys and values that a request may come to hold."""
        r = flight.request
        video = 0 if r.features is None else len(r.features.ids)
        prompt = len(r.head) + video + len(r.tail)
        answers = (len(flight.todo) if rows is None else rows) * r.settings.max_new_tokens
        return (prompt + answers) * self.stack.store.shape.token_bytes

    def _let_go(self, waiting: deque[Flight]) -> list[Flight]:
        """Finished rows leave; the requests that are done with it."""
        done = []
        for group in self._batch.leave():
            self._prompts.let_go(group.prefix, [f.request for f in waiting])
            if group.flight.done:
                done.append(group.flight)
        return done

    def _halve(self, waiting: deque[Flight], error: BaseException) -> None:
        flights = list(dict.fromkeys([*(g.flight for g in self._batch.groups), *self._inbound]))
        flights = [f for f in flights if not f.done]
        rows = max(len(self._batch), min(self.max_rows, sum(len(f.answers) for f in flights)))
        if rows <= 1:
            raise ModelError(
                f"memory ran out with a single answer in flight ({error}); use a smaller model or dtype, fewer frames, "
                "or a lower max_new_tokens"
            ) from error
        self.max_rows = rows // 2
        self.counts.halved += 1
        logging.getLogger(__name__).warning(
            "memory ran out with %d answers in flight; going on with %d, nothing is lost", rows, self.max_rows
        )
        for flight in flights:
            flight.restart()
        for flight in reversed(flights):
            if flight not in waiting:
                waiting.appendleft(flight)
        self.clear()
        memory.release(self.lm.device)

    def _clock(self, name: str) -> Any:
        return _Clock(self.counts.seconds, name)


class _Clock:
    """Adds the CPU seconds spent inside to `seconds[name]`."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.process_time() - self.began


class Engine:
    """The importable face: a Hugging Face video-LMM with its processor, as they come from `from_pretrained`."""

    def __init__(self, model: Any, processor: Any, *, max_rows: int = 64, memory_bytes: int | None = None) -> None:
        self.lm = as_lm(model, processor)
        self.scheduler = Scheduler(self.lm, max_rows=max_rows, memory_bytes=memory_bytes)

    @property
    def counts(self) -> Counts:
        """What was done so far: answers, tokens, steps, CPU seconds by kind, batches halved."""
        return self.scheduler.counts

    def generate(
        self,
        videos: Sequence[Any],
        questions: Sequence[str],
        *,
        n: int = 1,
        settings: Settings | None = None,
        template: Any = None,
        seed: int = 0,
    ) -> list[list[Answer]]:
        """`n` answers to each question about the video at its place.

        Args:
            videos: per question, what `FrameSource.read` gave for its video, frames uint8 [F, H, W, 3] (the same
                object for the same video, which is then encoded once), what `encode` gave, or None without a video.
            questions: the user's text; the chat template is put around it.
            n: answers a question. settings: how they are drawn, default greedy.
            template: what an answer may be (`vstar_fast.ops.template`), or one a question.
            seed: of all random streams; an answer depends on it and on its own question, video and number only.
        """
        if n < 1:
            raise ConfigError(f"n is {n}; a question gets at least 1 answer")
        features = self.encode(videos)
        grammars = self._grammars(template, len(questions))
        requests = [
            self.request(text, f, _seeds(seed, i, n), settings or Settings(), g)
            for i, (text, f, g) in enumerate(zip(questions, features, grammars, strict=True))
        ]
        found = {id(r): answers for r, answers in self.scheduler.run(requests)}
        return [found[id(r)] for r in requests]

    def request(
        self, text: str, features: Any, seeds: Sequence[int], settings: Settings, grammar: Grammar | None = None
    ) -> Request:
        """A request for `Scheduler.run`."""
        head, tail = self.lm.split(text)
        return Request(head, tail, features, seeds, settings, grammar)

    def encode(self, videos: Sequence[Any]) -> list[Any]:
        """The model's features of each video; the same object is encoded once."""
        known: dict[int, Any] = {}
        for video in videos:
            if id(video) not in known:
                known[id(video)] = clips.encode(self.lm, video)
        return [known[id(video)] for video in videos]

    def text(self, answer: Answer) -> str:
        """The words of an answer."""
        return str(self.lm.tokenizer.decode(answer.words, skip_special_tokens=True))

    def _grammars(self, template: Any, count: int) -> list[Grammar | None]:
        from vstar_fast import ops

        listed = list(template) if isinstance(template, (list, tuple)) else [template] * count
        made: dict[int, Grammar | None] = {id(None): None}
        for node in listed:
            if id(node) not in made:
                made[id(node)] = ops.compile(node, self.lm.vocab)
        return [made[id(node)] for node in listed]


def as_lm(model: Any, processor: Any) -> Any:
    """The adapter of a model: `VideoLM` where the processor takes videos, else `TextLM` over a tokenizer."""
    from vstar_fast.engine.text import TextLM

    if not hasattr(processor, "tokenizer"):
        return TextLM(model, processor)
    import importlib

    from vstar_fast.models import FAMILIES, GENERIC

    module, _, name = FAMILIES.get(model.config.model_type, GENERIC).partition(":")
    family = getattr(importlib.import_module(module), name)
    return family(model.config.name_or_path, model, processor, model.device)


def _seeds(seed: int, question: int, n: int) -> list[int]:
    import hashlib

    texts = (f"{seed}\x1f{question}\x1f{i}".encode() for i in range(n))
    return [int.from_bytes(hashlib.blake2b(t, digest_size=8).digest(), "big") >> 1 for t in texts]
